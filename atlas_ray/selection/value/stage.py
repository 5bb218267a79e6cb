"""Monte-Carlo rollouts from every step of every trajectory, as a stage: actors that hold engines play them.

Flows in: blocks of trajectories; flows out: selections, each as soon as its rollouts are complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from atlas_ray.cluster.dataset import map_on_ray
from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments.agentgym.agentboard import absolute
from atlas_ray.environments.agentgym.task_numbers import unplayable
from atlas_ray.errors import together
from atlas_ray.models.engine import EngineSpec
from atlas_ray.rollouts.async_set import AsyncReplicaSet
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import RolloutPool
from atlas_ray.runs.folder import reachable
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.budget import record
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.value.rollouts import rollouts_of
from atlas_ray.types import Episode, Selection, Task, Trajectory

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from atlas_ray.selection.value.settings import ValueSettings

MAX_OPEN = 32  # trajectories whose rollouts a kill may cost

Play = Callable[[EpisodeRequest], Awaitable[Episode]]


class ValueStage(Stage):
    """Plays rollouts on engines that an actor holds.

    Raises:
        UserError: If a task has no number at the environment that would play it.
    """

    rows_per_block = 1  # hundreds of episodes each

    def __init__(self, selector: ValueSettings, context: StageContext) -> None:
        # The worker may have started elsewhere.
        selector = selector.model_copy(update={"model": reachable(selector.model)})
        self._given = selector, absolute(context.environments), context.seed
        tasks = context.index.filter(context.index["todo"]).select(["env", "item_id"]).to_pylist()
        if wrong := unplayable((Task(**task) for task in tasks), context.environments):
            raise together(wrong)

    def apply(self, trajectories: Dataset) -> Dataset:
        from ray.data import ActorPoolStrategy

        workers = ActorPoolStrategy(
            size=1, max_tasks_in_flight_per_actor=MAX_OPEN, max_concurrent_calls_per_actor=MAX_OPEN
        )
        return map_on_ray(trajectories, ValueWorker, *self._given, workers=workers, num_cpus=0)


class ValueWorker:
    """One actor: all its trajectories' rollouts go through one pool of engines."""

    def __init__(self, selector: ValueSettings, environments: EnvironmentsConfig, seed: int) -> None:
        self._given = selector, seed, environments
        self._engines = AsyncReplicaSet(lambda: pool_of(selector, environments))

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Selections of a block.

        Raises:
            AtlasError: If the engines do not start or keep dying.
        """
        values = (value_steps(t, self._engines.result, *self._given) for t in TRAJECTORIES.from_table(table))
        return SELECTIONS.to_table(await asyncio.gather(*values))


async def value_steps(
    trajectory: Trajectory,
    play: Play,
    selector: ValueSettings,
    seed: int,
    environments: EnvironmentsConfig | None = None,
) -> Selection:
    """The selection of one trajectory, from rollouts that are played round by round.

    Args:
        trajectory: What to select in.
        play: Plays an episode.
        selector: Rollouts a start, estimator, threshold.
        seed: Of the run; a rollout's own follows from it, the trajectory, the start and the sample.
        environments: Of the run, for its tolerances; None: the usual ones.
    """
    if not trajectory.is_text:
        return record(trajectory, selector, error="it has tool calls or thoughts apart, which rollouts do not repeat")
    rollouts = rollouts_of(trajectory, selector, seed, environments or EnvironmentsConfig())
    while requests := rollouts.more():
        for request, episode in zip(requests, await asyncio.gather(*map(play, requests)), strict=True):
            rollouts.add(request, episode)
    return rollouts.selection()


def pool_of(selector: ValueSettings, environments: EnvironmentsConfig) -> RolloutPool:
    """Engines of the configured model, in any process that is connected to Ray; all have started once it is made.

    Raises:
        AtlasError: If they do not start, or there is no room for them.
    """
    engine = selector.engine
    spec = EngineSpec("base", selector.model, engine.capped(), chat_template=selector.chat_template)
    return RolloutPool.of(spec, engine, environments, limits=selector.limits)
