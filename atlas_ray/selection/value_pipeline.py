"""Monte-Carlo rollouts from every step of every trajectory, assembled into selections as they come in.

Flows in: trajectories and a pool that plays episodes; flows out: selections, each as soon as its rollouts are complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.pool import EpisodeRequest, RolloutPool
from atlas_ray.runs.folder import reachable
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import record
from atlas_ray.selection.settings import SelectConfig, ValueSelector
from atlas_ray.selection.value import critical, differences, values
from atlas_ray.types import Episode, Selection, StopReason, Trajectory, Usage

MAX_OPEN = 32  # trajectories whose rollouts a kill may cost


class Pool(Protocol):
    """What plays the rollouts: a `RolloutPool`, or a test's stand-in."""

    def run(self, requests: Iterable[EpisodeRequest | None]) -> Iterator[tuple[EpisodeRequest, Episode]]:
        """Plays requests; each comes back once, with its episode, in any order. None: ask again later."""
        ...


def select_value(
    config: SelectConfig, selector: ValueSelector, todo: Sequence[Trajectory]
) -> Generator[Selection, None, None]:
    """Selections by value, from rollouts of the configured model on a pool of engines.

    Raises:
        AtlasError: If Ray cannot be reached, or the engines do not start or keep dying.
    """
    from atlas_ray.models.engine import EngineSpec
    from atlas_ray.runs.cluster import connect

    connect(config.ray)
    with RolloutPool(
        EngineSpec("base", reachable(selector.model), selector.engine),
        replicas=selector.engine.replicas,
        in_flight=selector.engine.episodes_in_flight,
        environments=config.environments,
    ) as pool:
        yield from estimate_values(pool, selector, todo, config.seed)


def estimate_values(
    pool: Pool, selector: ValueSelector, trajectories: Sequence[Trajectory], seed: int
) -> Generator[Selection, None, None]:
    """Streams all rollouts of all trajectories through the pool, at most `MAX_OPEN` trajectories at once.

    Args:
        pool: Plays the rollouts.
        selector: Rollouts a start, estimator, threshold.
        trajectories: What to select in.
        seed: Of the run; a rollout's own follows from it, the trajectory, the start and the sample.
    """
    under_way: dict[str, _Rollouts] = {}
    for request, episode in pool.run(_requests(trajectories, under_way, selector, seed)):
        rollouts = under_way[str(request.group)]
        rollouts.add(len(request.prefix), episode)
        if rollouts.missing == 0:
            del under_way[rollouts.trajectory.id]
            yield rollouts.selection(selector)


def _requests(
    trajectories: Sequence[Trajectory], under_way: dict[str, _Rollouts], selector: ValueSelector, seed: int
) -> Iterator[EpisodeRequest | None]:
    """Requests trajectory by trajectory; None while too many trajectories are open."""
    for trajectory in trajectories:
        while len(under_way) >= MAX_OPEN:
            yield None
        asked = list(_of_trajectory(trajectory, selector, seed))
        under_way[trajectory.id] = _Rollouts(trajectory, missing=len(asked))
        yield from asked


def _of_trajectory(trajectory: Trajectory, selector: ValueSelector, seed: int) -> Iterator[EpisodeRequest]:
    """N rollouts after each of the steps 0..T-1; one replay of them all where the data carries no reward."""
    steps = trajectory.steps
    replies = tuple(step.reply for step in steps)
    # What answered step t is what the next step saw.
    answers = tuple(step.observation for step in steps[1:])
    starts = [(t, sample) for t in range(len(steps)) for sample in range(selector.rollouts)]
    if trajectory.reward is None:
        starts.append((len(steps), 0))
    for t, sample in starts:
        yield EpisodeRequest(
            task=trajectory.task,
            sample=sample,
            seed=derive_seed(seed, "value", trajectory.id, t, sample),
            prefix=replies[:t],
            recorded=answers[:t],
            sampling=Sampling(selector.temperature, selector.max_tokens),
            max_rounds=len(steps) if t == len(steps) else None,
            instruction=_instruction(trajectory),
            group=trajectory.id,
        )


def _instruction(trajectory: Trajectory) -> str | None:
    """The opening instruction, where the conversation starts as AgentTraj-L's do: instruction, "OK", observation."""
    roles = [(m.role, m.trainable) for m in trajectory.messages[:2]]
    return trajectory.messages[0].content if roles == [("user", False), ("assistant", False)] else None


@dataclass(slots=True)
class _Rollouts:
    """What has come back for one trajectory so far."""

    trajectory: Trajectory
    missing: int
    done: list[tuple[int, int, float, int]] = field(default_factory=list)  # start, sample, reward, rounds
    causes: Counter[StopReason] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def add(self, start: int, episode: Episode) -> None:
        """Takes one rollout; what infrastructure spoilt is counted and left out."""
        self.missing -= 1
        self.usage += episode.usage
        if episode.stop_reason.is_infrastructure:
            self.causes[episode.stop_reason] += 1
            self.errors.append(episode.error or "no cause given")
        else:
            self.done.append((start, episode.sample, episode.reward, episode.rounds))

    def selection(self, selector: ValueSelector) -> Selection:
        """The critical steps, or an error where a start has no valid rollout.

        `rewards` hold the plain rewards, whatever the estimator; `scores` the differences of its values.
        """
        n_steps = len(self.trajectory.steps)
        rewards: list[list[float]] = [[] for _ in range(n_steps + 1)]
        rounds: list[list[int]] = [[] for _ in range(n_steps + 1)]
        for start, _, reward, taken in sorted(self.done):
            rewards[start].append(reward)
            rounds[start].append(taken)
        if self.trajectory.reward is not None:
            rewards[n_steps], rounds[n_steps] = [self.trajectory.reward], [0]
        left_out = ", ".join(f"{count} {cause}" for cause, count in sorted(self.causes.items()))
        kept: dict[str, Any] = {"rewards": tuple(map(tuple, rewards)), "model": selector.model, "usage": self.usage}
        empty = [t for t, found in enumerate(rewards) if not found]
        if empty:
            why = f"no rollout: none after step {empty[0]} was valid ({left_out}; {min(self.errors)})"
            return record(self.trajectory, selector, error=why, **kept)
        q = values(rewards, selector.estimator, selector.gamma, rounds)
        return record(
            self.trajectory,
            selector,
            critical(q, selector.threshold, selector.ratio),
            scores=differences(q),
            reason=f"rollouts left out: {left_out}" if left_out else None,
            **kept,
        )
