"""Monte-Carlo rollouts from every step of every trajectory, assembled into selections as they come in.

Flows in: trajectories and a pool that plays episodes; flows out: selections, each as soon as its rollouts are complete.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments.agentgym.task_numbers import unplayable
from atlas_ray.errors import together
from atlas_ray.models.engine import EngineSpec
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import RolloutPool
from atlas_ray.runs.folder import reachable
from atlas_ray.selection.value.rollouts import Rollouts, rollouts_of
from atlas_ray.types import Episode, Selection, Trajectory

if TYPE_CHECKING:
    from atlas_ray.selection.settings import SelectConfig
    from atlas_ray.selection.value.settings import ValueSelector

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
        UserError: If a task has no number at the environment that would play it.
        AtlasError: If Ray cannot be reached, or the engines do not start or keep dying.
    """
    from atlas_ray.cluster.connection import connect

    if wrong := unplayable((t.task for t in todo), config.environments):
        raise together(wrong)
    connect(config.ray)
    with pool_of(selector, config.environments) as pool:
        yield from estimate_values(pool, selector, todo, config.seed, config.environments)


def pool_of(selector: ValueSelector, environments: EnvironmentsConfig) -> RolloutPool:
    """Engines of the configured model, in any process that is connected to Ray; all have started once it is made.

    Raises:
        AtlasError: If they do not start, or there is no room for them.
    """
    engine = selector.engine
    spec = EngineSpec("base", reachable(selector.model), engine.capped(), chat_template=selector.chat_template)
    return RolloutPool.of(spec, engine, environments, limits=selector.limits)


def estimate_values(
    pool: Pool,
    selector: ValueSelector,
    trajectories: Sequence[Trajectory],
    seed: int,
    environments: EnvironmentsConfig | None = None,
) -> Generator[Selection, None, None]:
    """Streams all rollouts of all trajectories through the pool, at most `MAX_OPEN` trajectories at once.

    Args:
        pool: Plays the rollouts.
        selector: Rollouts a start, estimator, threshold.
        trajectories: What to select in.
        seed: Of the run; a rollout's own follows from it, the trajectory, the start and the sample.
        environments: Of the run, for its tolerances; None: the usual ones.
    """
    start = partial(rollouts_of, selector=selector, seed=seed, environments=environments or EnvironmentsConfig())
    under_way: dict[str, Rollouts] = {}
    waiting: deque[EpisodeRequest] = deque()
    for request, episode in pool.run(_requests(trajectories, under_way, waiting, start)):
        rollouts = under_way[str(request.group)]
        rollouts.add(request, episode)
        if rollouts.missing == 0:
            waiting += rollouts.more()
        if rollouts.missing == 0:
            del under_way[rollouts.trajectory.id]
            yield rollouts.selection()


def _requests(
    trajectories: Sequence[Trajectory],
    under_way: dict[str, Rollouts],
    waiting: deque[EpisodeRequest],
    start: Callable[[Trajectory], Rollouts],
) -> Iterator[EpisodeRequest | None]:
    """Next rounds first, then further trajectories; None while too many are open."""
    source = iter(trajectories)
    while True:
        if waiting:
            yield waiting.popleft()
        elif len(under_way) < MAX_OPEN and (trajectory := next(source, None)) is not None:
            under_way[trajectory.id] = rollouts = start(trajectory)
            waiting += rollouts.more()
        elif under_way:
            yield None
        else:
            return
