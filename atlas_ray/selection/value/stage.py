"""Monte-Carlo rollouts from every step of every trajectory, as a stage: actors that hold engines play them.

Flows in: blocks of trajectories; flows out: selections, each as soon as its rollouts are complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from atlas_ray.cluster.dataset import map_on_ray, stream
from atlas_ray.cluster.placement import beside_driver, place_engines
from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments.agentgym.agentboard import absolute
from atlas_ray.environments.agentgym.task_numbers import unplayable
from atlas_ray.environments.registry import not_replayed
from atlas_ray.errors import together
from atlas_ray.models.engine import EngineModel
from atlas_ray.rollouts.async_set import AsyncReplicaSet
from atlas_ray.rollouts.coordinator import engine_shares
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.heartbeat import Heartbeat
from atlas_ray.rollouts.pool import PolicySpec, RolloutPool
from atlas_ray.runs.failures import FailureWatch
from atlas_ray.runs.folder import reachable
from atlas_ray.runs.progress import console
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.budget import record
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.sources import find_source, of_trajectory, read_source
from atlas_ray.selection.value.replay_check import REPLAYED, refuse_unrepeatable, replay_rows, replays_by_environment
from atlas_ray.selection.value.rollouts import rollouts_of
from atlas_ray.types import Episode, Selection, Task, Trajectory, Usage

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from atlas_ray.selection.value.settings import ValueSettings

_OPEN = 32  # trajectories to an engine whose rollouts a kill may cost

_ANSWER_SECONDS = 5.0
_TELL_SECONDS = 3.0  # between two messages of an actor on what its engines have written

Play = Callable[[EpisodeRequest], Awaitable[Episode]]


class ValueStage(Stage):
    """Plays rollouts on as many actors as their engines need, each with a pool of its share of them.

    Raises:
        UserError: If a task has no number at the environment that would play it.
    """

    rows_per_block = 1  # hundreds of episodes each
    checked = REPLAYED

    def __init__(self, selector: ValueSettings, context: StageContext) -> None:
        # Workers may have started elsewhere.
        selector = selector.model_copy(update={"model": reachable(selector.model)})
        self._given = selector, absolute(context.environments), context.seed
        self._folder = context.folder
        tasks = context.index.filter(context.index["todo"]).select(["env", "item_id"]).to_pylist()
        self._todo = len(tasks)
        self._heartbeat: Heartbeat | None = None
        self._source = find_source(selector.propose, context.run) if selector.propose else None
        if wrong := unplayable((Task(**task) for task in tasks), context.environments):
            raise together(wrong)

    def check(self, trajectories: Dataset) -> None:
        """Replays a few trajectories, says how many replay, and writes that to `replays.json`.

        Raises:
            UserError: If an environment does not repeat itself.
        """
        selector, environments, _ = self._given
        tables = stream(map_on_ray(trajectories, replay_rows, environments, selector.limits), "replaying")
        found = replays_by_environment((row for table in tables for row in table.to_pylist()), environments)
        for env, replays in found.items():
            console.print(f"rollouts start from recorded steps: in {env} {replays}")
        self._folder.write_json("replays.json", {env: asdict(replays) for env, replays in found.items()})
        refuse_unrepeatable(found)

    def apply(self, trajectories: Dataset) -> Dataset:
        """Plays the rollouts.

        Raises:
            UserError: If the cluster has no room for the engines.
        """
        import ray
        from ray.data import ActorPoolStrategy

        selector, engine = self._given[0], self._given[0].engine
        spec = EngineModel(path=selector.model, chat_template=selector.chat_template).spec("base", engine)
        place_engines(spec.gpus, engine.replicas, engine.label_selector)  # is there room for all?
        shares = engine_shares(engine)
        # no actor takes what another, which has yet to start, is to play
        most = min(_OPEN * shares[0], ceil(self._todo / len(shares)))
        workers = ActorPoolStrategy(
            size=len(shares), max_tasks_in_flight_per_actor=most, max_concurrent_calls_per_actor=most
        )
        shared: Any = ray.remote(EngineShares).options(**beside_driver()).remote(shares)
        self._heartbeat = Heartbeat(partial(_written, shared))
        proposed = ray.put(None if self._source is None else read_source(self._source))
        given = (shared, spec, *self._given, [proposed])  # in a list: Ray would hand over what it refers to, to each
        return map_on_ray(trajectories, ValueWorker, *given, workers=workers, num_cpus=0)

    def heartbeat(self) -> str:
        """Replies and tokens a second of all actors."""
        return self._heartbeat() if self._heartbeat else ""


class EngineShares:
    """An actor that says the others how many engines are theirs: as many as before to one that was started again.

    It is told in turn what they have written.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        self._left, self._given = list(shares), dict[str, int]()
        self._written = dict[str, Usage]()

    def wrote(self, actor: str, usage: Usage) -> None:
        """Takes what an actor's engines have written so far."""
        self._written[actor] = usage

    def usage(self) -> Usage:
        """What all have written."""
        return sum(self._written.values(), Usage())

    def of(self, actor: str) -> int:
        """The share of the actor with this id."""
        if actor not in self._given:
            self._given[actor] = self._left.pop()
        return self._given[actor]


def _written(shared: Any) -> Usage:
    """What the actors have told; nothing where Ray does not answer."""
    import ray

    with suppress(ray.exceptions.RayError):
        return cast(Usage, ray.get(shared.usage.remote(), timeout=_ANSWER_SECONDS))
    return Usage()


class ValueWorker:
    """One actor: all its trajectories' rollouts go through one pool, of its share of the engines."""

    def __init__(
        self,
        shares: Any,
        spec: PolicySpec,
        selector: ValueSettings,
        environments: EnvironmentsConfig,
        seed: int,
        proposed: Sequence[Any] = (),
    ) -> None:
        import ray

        self._shares, self._spec = shares, spec
        self._given = selector, seed, environments, ray.get(proposed[0]) if proposed else None
        self._engines = AsyncReplicaSet(self._pool)
        self._watch = FailureWatch("selections")
        self._usage, self._told = Usage(), time.monotonic()

    async def _play(self, request: EpisodeRequest) -> Episode:
        import ray

        episode = await self._engines.result(request)
        self._usage += episode.usage
        if time.monotonic() - self._told > _TELL_SECONDS:
            self._told = time.monotonic()
            self._shares.wrote.remote(ray.get_runtime_context().get_actor_id(), self._usage)
        return episode

    def _pool(self) -> RolloutPool:
        import ray

        selector, _, environments, _ = self._given
        share = ray.get(self._shares.of.remote(ray.get_runtime_context().get_actor_id()))
        engine = selector.engine.model_copy(update={"replicas": share})
        return RolloutPool(self._spec, engine, environments, limits=selector.limits)

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Selections of a block.

        Raises:
            AtlasError: If the engines do not start or keep dying, or no trajectory's rollouts are of use any more.
        """
        values = (value_steps(t, self._play, *self._given) for t in TRAJECTORIES.from_table(table))
        found = await asyncio.gather(*values)
        for selection in found:
            if selection.excluded or not selection.error:  # what was played: others cost nothing
                self._watch.add(selection.error)
        return SELECTIONS.to_table(found)


async def value_steps(
    trajectory: Trajectory,
    play: Play,
    selector: ValueSettings,
    seed: int,
    environments: EnvironmentsConfig | None = None,
    proposed: Mapping[str, Selection] | None = None,
) -> Selection:
    """The selection of one trajectory, from rollouts that are played round by round.

    Args:
        trajectory: What to select in.
        play: Plays an episode.
        selector: Rollouts a start, estimator, threshold.
        seed: Of the run; a rollout's own follows from it, the trajectory, the start and the sample.
        environments: Of the run, for its tolerances; None: the usual ones.
        proposed: What `selector.propose` holds, by trajectory; None: every step is valued.
    """
    if why := not_replayed(trajectory):
        return record(trajectory, selector, error=why)
    found = None if proposed is None else of_trajectory(trajectory, selector.propose or "", proposed)
    if isinstance(found, str):
        return record(trajectory, selector, error=f"nothing is proposed: {found}")
    steps = None if found is None else found.chosen
    rollouts = rollouts_of(trajectory, selector, seed, environments or EnvironmentsConfig(), steps)
    while requests := rollouts.more():
        for request, episode in zip(requests, await asyncio.gather(*map(play, requests)), strict=True):
            rollouts.add(request, episode)
    return rollouts.selection()
