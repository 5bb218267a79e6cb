"""The rollouts of one trajectory: which to play next, and the selection that they give.

Flows in: a trajectory and the episodes played for it; flows out: requests, round by round, and a `Selection`. The next
round depends on this trajectory's own episodes alone, and only once all that were asked for are back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.client import with_tolerance
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import Opening
from atlas_ray.environments.replay import count_starts
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import record
from atlas_ray.selection.value.backward_sampler import Ask, BackwardSampler
from atlas_ray.selection.value.estimators import rescore
from atlas_ray.types import Episode, Message, Replay, Selection, Step, StopReason, Trajectory, Usage, last_seen

if TYPE_CHECKING:
    from atlas_ray.selection.value.settings import ValueSettings

_SAME_REWARD = 1e-9


def rollouts_of(
    trajectory: Trajectory,
    selector: ValueSettings,
    seed: int,
    environments: EnvironmentsConfig,
    proposed: Collection[int] | None = None,
) -> Rollouts:
    """The rollouts of a trajectory in the selector's mode.

    Args:
        proposed: The steps that are to be valued; all where None.
    """
    if selector.mode == "economical":
        return Economical(trajectory, selector, seed, environments)
    return Exhaustive(trajectory, selector, seed, environments, proposed)


class Rollouts(ABC):
    """What is asked for one trajectory, and what has come back so far.

    Args:
        trajectory: The expert's.
        selector: Rollouts a start, sampling, estimator, threshold.
        seed: Of the run; a rollout's own follows from it, the trajectory, the start and the sample.
        environments: Which differences between an answer and the recorded one count.
    """

    def __init__(
        self, trajectory: Trajectory, selector: ValueSettings, seed: int, environments: EnvironmentsConfig
    ) -> None:
        self.trajectory, self.selector = trajectory, selector
        self._spec = with_tolerance(registry.get(trajectory.env), environments)
        self._seed, self._steps, self._reward = seed, trajectory.steps, trajectory.reward
        self._opening = Opening.recorded(trajectory)
        self._excluded: Counter[StopReason] = Counter()
        self._replays: list[tuple[int, Replay | None]] = []
        self._errors: list[str] = []
        self._usage = Usage()

    @abstractmethod
    def more(self) -> list[EpisodeRequest]:
        """The next round, once all of the last is back; nothing where the selection can be made."""

    def add(self, request: EpisodeRequest, episode: Episode) -> None:
        """Takes one episode; what infrastructure spoilt is counted and left out."""
        self._usage += episode.usage
        self._replays.append((len(request.prefix), episode.replay))
        if episode.stop_reason.is_infrastructure:
            self._excluded[episode.stop_reason] += 1
            self._errors.append(episode.error or "no cause given")
        elif request.max_rounds == len(request.prefix) == len(self._steps):
            self._reward = episode.reward
        else:
            self._take(request, episode)

    def selection(self) -> Selection:
        """The critical steps, or an error where a start has no valid rollout.

        `rewards` hold the plain rewards, whatever the estimator; `scores` come from its values.
        """
        left_out = ", ".join(f"{count} {cause}" for cause, count in sorted(self._excluded.items()))
        kept: dict[str, Any] = {
            "model": self.selector.model,
            "usage": self._usage,
            "excluded": {str(cause): count for cause, count in self._excluded.items()},
            "replays": count_starts(self._replays),
            **self._evidence(),
        }
        empty = self._empty()
        if empty is not None:
            why = f"no rollout: none after step {empty} was valid ({left_out}; {min(self._errors)})"
            return record(self.trajectory, self.selector, error=why, **kept)
        reason = f"rollouts left out: {left_out}" if left_out else None
        scored = record(self.trajectory, self.selector, reason=reason, **kept)
        return rescore(scored, self.selector, self.selector.budget(self.trajectory))

    @abstractmethod
    def _take(self, request: EpisodeRequest, episode: Episode) -> None:
        """Takes a valid episode."""

    @abstractmethod
    def _evidence(self) -> dict[str, Any]:
        """What the selection keeps of the rollouts."""

    @abstractmethod
    def _empty(self) -> int | None:
        """The first start at which rollouts were asked for and none was valid."""

    def _request(
        self, start: int, sample: int, rest: tuple[Message, str] | None = None, max_rounds: int | None = None
    ) -> EpisodeRequest:
        """A rollout after `start` of the expert's steps, or after those and a turn of the policy's own."""
        replies, answers = [*self.trajectory.replies[:start]], [*self.trajectory.answers[:start]]
        own = () if rest is None else ("rest",)
        if rest is not None:
            replies, answers = [*replies, rest[0]], [*answers, rest[1]]
        return EpisodeRequest(
            task=self.trajectory.task,
            sample=sample,
            seed=derive_seed(self._seed, "value", self.trajectory.id, start, sample, *own),
            prefix=tuple(replies),
            recorded=tuple(answers),
            sampling=Sampling(self.selector.temperature, self.selector.max_tokens),
            max_rounds=max_rounds,
            opening=OpeningTemplate.verbatim(self._opening) if self._opening else None,
            first_observation=self._opening.observation if self._opening else None,
            trajectory=self.trajectory.id,
            group=self.trajectory.id,
        )

    def _replay(self) -> list[EpisodeRequest]:
        """The expert's whole trajectory, where the data carries no reward."""
        n = len(self._steps)
        return [self._request(n, 0, max_rounds=n)] if self.trajectory.reward is None else []


class Exhaustive(Rollouts):
    """N rollouts after each of the steps 0..T-1, or right before and behind each of those that are proposed."""

    def __init__(
        self,
        trajectory: Trajectory,
        selector: ValueSettings,
        seed: int,
        environments: EnvironmentsConfig,
        proposed: Collection[int] | None = None,
    ) -> None:
        super().__init__(trajectory, selector, seed, environments)
        n = len(self._steps)
        around = {start for t in proposed or () for start in (t - 1, t) if start < n}
        self._starts = range(n) if proposed is None else sorted(around)
        self._asked = False
        self._done: list[tuple[int, int, float, int]] = []  # start, sample, reward, rounds

    def more(self) -> list[EpisodeRequest]:
        if self._asked:
            return []
        self._asked = True
        return [self._request(t, n) for t in self._starts for n in range(self.selector.rollouts)] + self._replay()

    def _take(self, request: EpisodeRequest, episode: Episode) -> None:
        self._done.append((len(request.prefix), episode.sample, episode.reward, episode.rounds))

    def _evidence(self) -> dict[str, Any]:
        starts = range(len(self._steps))
        done = sorted(self._done)
        rewards = [tuple(r for s, _, r, _ in done if s == t) for t in starts]
        rounds = [tuple(n for s, _, _, n in done if s == t) for t in starts]
        last: tuple[tuple[float, ...], tuple[int, ...]] = ((), ()) if self._reward is None else ((self._reward,), (0,))
        return {"rewards": (*rewards, last[0]), "rounds": (*rounds, last[1])}

    def _empty(self) -> int | None:
        rewards = self._evidence()["rewards"]
        return next((t for t in (*self._starts, len(self._steps)) if not rewards[t]), None)


class Economical(Rollouts):
    """Probes and rollouts as a `BackwardSampler` asks for them; first a replay where the recorded reward is missing."""

    def __init__(
        self, trajectory: Trajectory, selector: ValueSettings, seed: int, environments: EnvironmentsConfig
    ) -> None:
        super().__init__(trajectory, selector, seed, environments)
        self._sampler: BackwardSampler | None = None
        self._asks: dict[int, Ask] = {}
        self._replayed = False

    def more(self) -> list[EpisodeRequest]:
        if self._reward is None:
            asked = [] if self._replayed else self._replay()
            self._replayed = True
            return asked
        if self._sampler is None:
            c = self.selector
            gamma = c.gamma if c.estimator == "discounted" else 1.0
            self._sampler = BackwardSampler(len(self._steps), self._reward, c.threshold, c.rollouts, c.economy, gamma)
        found = []
        for ask in self._sampler.plan():
            probe = ask.rest is None and self.selector.economy.share
            request = self._request(ask.start, ask.sample, ask.rest, ask.start + 1 if probe else None)
            self._asks[request.seed] = ask
            found.append(request)
        return found

    def _take(self, request: EpisodeRequest, episode: Episode) -> None:
        assert self._sampler is not None
        ask = self._asks.pop(request.seed)
        if request.max_rounds is None:
            own = ask.rest is not None  # the turn that the probe took counts as well
            return self._sampler.played(ask, episode.reward, episode.rounds + own)
        cut = episode.stop_reason is StopReason.MAX_ROUNDS and request.max_rounds < self._spec.max_rounds
        if episode.rounds == 0:
            return self._sampler.played(ask, episode.reward, 0)
        reply = next(m for m in reversed(episode.messages) if m.role == "assistant")
        answer = last_seen(episode.messages)
        rejoined = self._rejoins(ask.start + 1, reply, answer, episode)
        if rejoined or cut:
            return self._sampler.probed(ask, rejoined, reply, answer)
        return self._sampler.played(ask, episode.reward, episode.rounds)

    def _rejoins(self, t: int, reply: Message, answer: str, episode: Episode) -> bool:
        """Whether a turn did as the expert's step t did."""
        expert = self._steps[t - 1]
        same = [call.key for call in reply.calls] == [call.key for call in expert.message.calls]
        if self.selector.economy.rejoin == "text":
            pairs = (reply.content, expert.reply), (reply.thought, expert.message.thought)
            same &= all(one.strip() == other.strip() for one, other in pairs)
        elif not reply.calls:
            action = Step(t, 0, reply, "").action.split()
            same &= bool(action) and action == expert.action.split()
        if t < len(self._steps):
            seen = self._spec.compare(self._steps[t].observation, answer)
            return same and seen != "differs"
        assert self._reward is not None
        return same and abs(episode.reward - self._reward) < _SAME_REWARD

    def _evidence(self) -> dict[str, Any]:
        if self._sampler is None or self._reward is None:
            return {}
        steps = [step.evidence() for step in self._sampler.steps]
        return {
            "rewards": (*(tuple(step.rewards) for step in steps), (self._reward,)),
            "rounds": (*(tuple(step.rounds) for step in steps), (0,)),
            "probed": tuple(step.probed for step in steps),
            "rejoined": tuple(step.rejoined for step in steps),
        }

    def _empty(self) -> int | None:
        if self._sampler is None:
            return len(self._steps)
        return next((t for t, step in enumerate(self._sampler.steps) if step.asked and not step.probed), None)
