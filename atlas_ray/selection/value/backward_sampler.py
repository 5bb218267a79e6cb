"""Which rollouts are worth playing: the economical mode of the value selector, for one trajectory. Plain arithmetic.

Flows in: what probes and rollouts of one trajectory gave; flows out: what to play next, and scores. A probe is the
policy's first turn alone, played after the expert's step t-1. With p_t the chance that it rejoins the expert (takes the
same action and is answered alike) and d_t the mean reward of the rollouts that do not,

    q_{t-1} = p_t g q_t + (1 - p_t) d_t,    D_t = q_t - q_{t-1},    q_T the recorded reward,

where g is gamma for `discounted` and 1 otherwise. So a probe that rejoins needs no playing out, its rest is shared with
the later starts, and D_t is at most q_t (1 - g p_t): where the policy does the expert's step by itself nothing else is
played. What is taken for granted: that a state's value does not hang on whose words (thoughts) led there, unless
`rejoin` is `text`; and, to skip, that values do not fall along an expert's trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from atlas_ray.types import Message

if TYPE_CHECKING:
    from atlas_ray.selection.value.settings import Economy


# Beta priors, with the weight of one probe (p) and of two rollouts (d).
_REJOIN_PRIOR = (0.5, 0.5)
_DEVIATE_MEAN, _DEVIATE_WEIGHT = 0.3, 2.0  # mean as a share of q_t
# A step is chosen where P(D_t > threshold) > 0.35: the choice that is best for F1 cuts at half the F1 that it reaches
# (Lipton, Elkan and Narayanaswamy 2014), here about 0.7. 0.385 is the normal quantile of 0.65.
_LEAN = 0.385
_BLOCK = 4  # steps that are looked at together, from the end of the trajectory


@dataclass(frozen=True, slots=True)
class Ask:
    """Something to play: a probe after `start` expert steps, or the rest of one that left the expert's path.

    Attributes:
        rest: Reply and answer of the probe to be played out; None: a new one.
    """

    start: int
    sample: int
    rest: tuple[Message, str] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen at step t: first turns drawn after step t-1, and the rollouts among them that were played out.

    Attributes:
        probed: First turns drawn.
        rejoined: Those that did as the expert did.
        rewards: Of the others, as far as they were played out.
        rounds: Turns that each of those took.
    """

    probed: int
    rejoined: int
    rewards: Sequence[float]
    rounds: Sequence[int]


@dataclass(slots=True)
class _Step:
    """Evidence as it comes in."""

    asked: int = 0
    probed: int = 0
    rejoined: int = 0
    waiting: dict[int, tuple[Message, str]] = field(default_factory=dict)  # by sample: reply, answer
    played: list[tuple[int, float, int]] = field(default_factory=list)  # sample, reward, rounds

    def evidence(self) -> Evidence:
        """In the order of samples, whatever the order of arrival."""
        played = sorted(self.played)
        return Evidence(self.probed, self.rejoined, [r for _, r, _ in played], [n for _, _, n in played])


@dataclass(frozen=True, slots=True)
class Posterior:
    """Mean and standard deviation of D_t, mean of q_t, and the mean of 1 - g p_t."""

    mean: float
    deviation: float
    value: float
    leaves: float

    @property
    def score(self) -> float:
        """What exceeds the threshold where the step is chosen."""
        return self.mean + _LEAN * self.deviation


class BackwardSampler:
    """The steps of one trajectory, climbed down from the end. Decisions fall when all that was asked is back.

    Args:
        n_steps: |tau|.
        reward: The recorded reward, q_T.
        threshold: Above which a difference is critical.
        rollouts: N of the exhaustive mode: the most at one start where `stop` is off.
        economy: Which devices are on.
        gamma: Discount factor; 1 for plain rewards.
    """

    def __init__(
        self, n_steps: int, reward: float, threshold: float, rollouts: int, economy: Economy, gamma: float = 1.0
    ) -> None:
        self.steps = [_Step() for _ in range(n_steps)]
        self._reward, self._threshold, self._rollouts = reward, threshold, rollouts
        self._economy, self._gamma = economy, gamma

    def plan(self) -> list[Ask]:
        """What to play next; nothing where all is settled. Call it when all that it asked for is back."""
        for top in range(len(self.steps), 0, -_BLOCK):
            posteriors = self.posteriors()
            if self._economy.skip and self._agree(posteriors[top - 1]):
                return []
            block = range(top, max(top - _BLOCK, 0), -1)
            first = [ask for t in block for ask in self._probes(t, self._first - self.steps[t - 1].asked)]
            if first:
                return first
            if more := [ask for t in block for ask in self._more(t, posteriors[t - 1])]:
                return more
        return []

    def posteriors(self) -> list[Posterior]:
        """What is known of the steps."""
        return posteriors([s.evidence() for s in self.steps], self._reward, self._gamma, share=self._economy.share)

    def probed(self, ask: Ask, rejoined: bool, reply: Message, answer: str) -> None:
        """A probe came back; one that left the expert's path waits to be played out, if that is worth it."""
        step = self.steps[ask.start]
        step.probed += 1
        step.rejoined += rejoined
        if not rejoined:
            step.waiting[ask.sample] = reply, answer

    def played(self, ask: Ask, reward: float, rounds: int) -> None:
        """A rollout that left the expert's path at once has ended, in so many rounds from its start."""
        step = self.steps[ask.start]
        if ask.rest is None:
            step.probed += 1
        step.played.append((ask.sample, reward, rounds))

    @property
    def _first(self) -> int:
        """Probes, or rollouts where none are shared, that every step gets."""
        economy = self._economy
        if not economy.stop:
            return self._rollouts
        return economy.probes if economy.share else min(2, self._rollouts)

    def _probes(self, t: int, count: int) -> list[Ask]:
        step = self.steps[t - 1]
        asks = [Ask(t - 1, step.asked + i) for i in range(count)]
        step.asked += len(asks)
        return asks

    def _more(self, t: int, posterior: Posterior) -> list[Ask]:
        """What else step t needs."""
        step, economy = self.steps[t - 1], self._economy
        if not economy.stop:
            return self._rest(t, len(step.waiting))
        if self._settled(step, posterior):
            return []
        if step.waiting:
            return self._rest(t, 1)
        most = economy.probes + economy.played if economy.share else self._rollouts
        return self._probes(t, 1 if step.asked < most else 0)

    def _rest(self, t: int, count: int) -> list[Ask]:
        step = self.steps[t - 1]
        return [Ask(t - 1, sample, step.waiting.pop(sample)) for sample in sorted(step.waiting)[:count]]

    def _settled(self, step: _Step, posterior: Posterior) -> bool:
        """Whether more samples would hardly change the decision."""
        if self._economy.share and (
            len(step.played) >= self._economy.played or posterior.leaves * posterior.value <= self._threshold
        ):
            return True
        sure = abs(posterior.mean - self._threshold) > self._economy.sureness * posterior.deviation
        return bool(step.played) and sure

    def _agree(self, posterior: Posterior) -> bool:
        """Whether the value so far is too low for any earlier step to have raised it by the threshold."""
        return posterior.value <= self._threshold


def posteriors(steps: Sequence[Evidence], reward: float, gamma: float, *, share: bool) -> list[Posterior]:
    """Of steps 1..T, worked out from the end: each with the moments of the independent p_t, d_t and q_t.

    Args:
        steps: What was seen at each step.
        reward: The recorded one, q_T.
        gamma: Discount factor; 1 for plain rewards.
        share: Whether probes that rejoin count for the later starts; where not, p_t is 0.
    """
    found: list[Posterior] = []
    g, mean, square = gamma, reward, reward * reward
    for step in reversed(steps):
        p1, p2 = _moments(step.rejoined, step.probed - step.rejoined) if share else (0.0, 0.0)
        weight = len(step.rewards) + _DEVIATE_WEIGHT
        played = sum(r * g**n for r, n in zip(step.rewards, step.rounds, strict=True))
        d1 = (played + _DEVIATE_WEIGHT * _DEVIATE_MEAN * mean) / weight
        d2 = d1 * d1 + d1 * (1 - d1) / (weight + 1)
        # D_t = (1 - g p) q_t - (1 - p) d
        difference = (1 - g * p1) * mean - (1 - p1) * d1
        second = (
            (1 - 2 * g * p1 + g * g * p2) * square - 2 * (1 - p1 - g * p1 + g * p2) * mean * d1 + (1 - 2 * p1 + p2) * d2
        )
        found.append(Posterior(difference, math.sqrt(max(0.0, second - difference**2)), mean, 1 - g * p1))
        # q_{t-1} = g p q_t + (1 - p) d
        mean, square = (
            g * p1 * mean + (1 - p1) * d1,
            g * g * p2 * square + 2 * g * (p1 - p2) * mean * d1 + (1 - 2 * p1 + p2) * d2,
        )
    return found[::-1]


def _moments(hits: int, misses: int) -> tuple[float, float]:
    """Mean and mean square of p's Beta posterior."""
    a, n = _REJOIN_PRIOR[0] + hits, sum(_REJOIN_PRIOR) + hits + misses
    return a / n, a * (a + 1) / (n * (n + 1))


def saved(probed: Sequence[int], rejoined: Sequence[int], played: Sequence[int], rollouts: int) -> dict[str, int]:
    """Where the rollouts of the exhaustive mode went, for each start: played out, or saved by a device.

    Returns:
        rollouts_exhaustive = rollouts_played + saved_by_share (rejoined the expert, not played on) + saved_by_stop
        (decision settled) + saved_by_skip (no start there at all).
    """
    found = dict.fromkeys(("rollouts_played", "saved_by_share", "saved_by_stop", "saved_by_skip"), 0)
    for n, back, done in zip(probed, rejoined, played, strict=True):
        whole = min(done, rollouts)
        shared = min(back, rollouts - whole)
        found["rollouts_played"] += whole
        found["saved_by_share"] += shared
        found["saved_by_stop" if n else "saved_by_skip"] += rollouts - whole - shared
    return {"rollouts_exhaustive": len(probed) * rollouts} | found
