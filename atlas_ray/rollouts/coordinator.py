"""Episodes played and written down: by a pool of this process's, or by actors where engines are many.

Flows in: requests and a run folder; flows out: episodes in its tables, and each to the caller. A coordinator is an
actor that owns a share of the engines as a pool of its own and writes its episodes: the driver never sees their
messages. It is supervised as an engine's replica is: what it has not written by the time it dies is played again.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from atlas_ray.cluster.placement import place_engines
from atlas_ray.config import EngineConfig, EnvironmentsConfig, LimitsConfig
from atlas_ray.environments.agentgym.agentboard import absolute
from atlas_ray.rollouts.async_set import AsyncReplicaSet
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import PolicySpec, RolloutPool, numbered_requests
from atlas_ray.rollouts.replica import Replica
from atlas_ray.rollouts.replica_set import ReplicaSet
from atlas_ray.rollouts.retry_queue import MAX_DEATHS
from atlas_ray.runs.folder import RunFolder, ShardWriter, reachable
from atlas_ray.runs.tables import EPISODES, TableSpec
from atlas_ray.runs.units import record_finished
from atlas_ray.types import Episode, StopReason, Usage

MOST_ENGINES = 32  # of one coordinator
_WRITE_SECONDS = 1.0  # between two shards of a coordinator
_AHEAD = 4  # a coordinator is given a quarter more requests than it plays, and so never waits for the driver

Played = Generator[tuple[EpisodeRequest, Episode], None, None]


def player_of(
    spec: PolicySpec, engine: EngineConfig, environments: EnvironmentsConfig, *, limits: LimitsConfig, retries: int
) -> EpisodePlayer:
    """As many coordinators as the engines need, this process where one is enough; all have started once it is made.

    Raises:
        UserError: If the cluster has no room for the engines.
        ModelFailure: If they die before they have started.
        AtlasError: If they do not start.
    """
    settings: dict[str, Any] = {"environments": environments, "limits": limits, "retries": retries}
    if len(engine_shares(engine)) == 1:
        return LocalPlayer(spec, engine, **settings)
    return CoordinatorSet(spec, engine, **settings)


def engine_shares(engine: EngineConfig) -> list[int]:
    """How many engines each coordinator has, the largest share first."""
    number = min(engine.coordinators or math.ceil(engine.replicas / MOST_ENGINES), engine.replicas)
    each, more = divmod(engine.replicas, number)
    return [each + (index < more) for index in range(number)]


def table_of(request: EpisodeRequest) -> TableSpec[Episode]:
    """Where a request's episode is written."""
    return EPISODES if request.table == EPISODES.name else replace(EPISODES, name=request.table)


class LocalPlayer(RolloutPool):
    """This process coordinates and writes."""

    def play(self, requests: Iterable[EpisodeRequest], folder: RunFolder) -> Played:
        """Plays all requests and writes each episode within 60 s, or with the next 31; they come back as they finish.

        Raises:
            UserError: If an environment or a task of a request cannot be played, or the folder not be written to.
            AtlasError: If replicas keep dying.
        """
        with ExitStack() as stack:
            writers: dict[str, ShardWriter[Episode]] = {}
            for request, episode in stack.enter_context(closing(self.run(requests))):
                if request.table not in writers:
                    writers[request.table] = stack.enter_context(folder.writer(table_of(request)))
                writers[request.table].add(episode)
                yield request, episode


@dataclass(frozen=True, slots=True)
class _PoolSpec:
    """What a coordinator makes its pool from."""

    policy: PolicySpec
    engine: EngineConfig
    settings: Mapping[str, Any]
    gpus: int = 0

    async def build(self) -> AsyncReplicaSet[EpisodeRequest, Episode]:
        """The pool, started."""
        made = AsyncReplicaSet(lambda: RolloutPool(self.policy, self.engine, **self.settings))
        await asyncio.to_thread(made.open)
        return made


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A request, and the run folder that its episode is written to."""

    request: EpisodeRequest
    run: str

    @property
    def group(self) -> str | None:
        return self.request.group


class Coordinator(Replica[_Recorded, Episode]):
    """The actor: a pool, and the episodes that are to be written next. One is told of only once it is written."""

    def __init__(self, spec: _PoolSpec) -> None:
        super().__init__(spec)
        self._unwritten: list[tuple[_Recorded, Episode]] = []
        self._writing: asyncio.Task[None] | None = None
        self._writes = set[asyncio.Task[None]]()
        self._all_played = asyncio.Event()  # nothing is in flight but what waits to be written

    async def _answer(self, request: _Recorded) -> Episode:
        episode = await self._model.result(request.request)
        self._unwritten.append((request, episode))
        # those that come while one shard is written are in the next: all wait for the task that writes theirs
        if self._writing is None:
            self._all_played.clear()
            self._writing = asyncio.create_task(self._write())
            self._writes.add(self._writing)
            self._writing.add_done_callback(self._writes.discard)
        if len(self._unwritten) == len(self._inflight):
            self._all_played.set()
        await asyncio.shield(self._writing)
        return replace(episode, messages=())

    async def _write(self) -> None:
        """Writes what is there after a while, or once there is no more to come."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._all_played.wait(), _WRITE_SECONDS)
        written, self._unwritten, self._writing = self._unwritten, [], None
        shards = defaultdict[tuple[str, TableSpec[Episode]], list[Episode]](list)
        for recorded, episode in written:
            shards[recorded.run, table_of(recorded.request)].append(episode)
        for (run, table), episodes in shards.items():
            await asyncio.to_thread(RunFolder(run).write_shard, table, episodes)

    async def usage(self) -> Usage:
        """What the pool's replicas have written."""
        return await asyncio.to_thread(self._model.open().usage)

    async def load(self, spec: Any) -> int | None:
        """Goes on with another policy in the same pool."""
        return await super().load(spec.policy)

    async def close(self) -> None:
        """Ends the pool, and writes what was played."""
        await super().close()
        await asyncio.gather(*self._writes, return_exceptions=True)


class CoordinatorSet(ReplicaSet[_Recorded, Episode]):
    """Coordinators, each with its share of the engines."""

    replica: ClassVar[str] = "coordinator"
    result: ClassVar[str] = "an episode written"
    close_s: ClassVar[float] = 30.0  # a coordinator waits for its replicas, and writes

    def __init__(self, policy: PolicySpec, engine: EngineConfig, **settings: Any) -> None:
        place_engines(policy.gpus, engine.replicas, engine.label_selector)  # is there room for all?
        self._shares = engine_shares(engine)
        settings["environments"] = self._environments = absolute(settings["environments"])
        share = self._shares[0] * engine.episodes_in_flight
        super().__init__(
            Coordinator,
            _PoolSpec(policy, engine, settings),
            replicas=len(self._shares),
            in_flight=share + share // _AHEAD,
            place={"num_cpus": 0, "scheduling_strategy": "SPREAD"},
            start_s=math.inf,  # each sees to its engines
        )
        self.wait_until_started()

    def play(self, requests: Iterable[EpisodeRequest], folder: RunFolder) -> Played:
        """See `LocalPlayer.play`. An episode comes back once it is written, without its messages."""
        run = reachable(folder.uri)
        numbered = numbered_requests(requests, self._environments)
        recorded = (None if request is None else _Recorded(request, run) for request in numbered)
        with closing(self.run(recorded)) as played:
            for one, episode in played:
                record_finished(folder.stage, folder.uri, one.request.table, episode)
                yield one.request, episode

    def load(self, spec: PolicySpec) -> None:
        """See `ReplicaSet.load`."""
        super().load(replace(self._spec, policy=spec))

    def _spec_of(self, index: int) -> Any:
        return replace(self._spec, engine=self._spec.engine.model_copy(update={"replicas": self._shares[index]}))

    def _given_up(self, recorded: _Recorded) -> Episode:
        error = f"{MAX_DEATHS} coordinators died while they played this episode"
        episode = recorded.request.episode("", StopReason.MODEL_ERROR, error)
        RunFolder(recorded.run).write_shard(table_of(recorded.request), [episode])
        return episode

    def _count_ready(self) -> None:
        """The coordinators count the engines, and are none."""


EpisodePlayer = LocalPlayer | CoordinatorSet
