"""Many episodes on replica actors. Flows in: requests; flows out: each with its episode, as they finish."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from atlas_ray.cluster.placement import place_engines
from atlas_ray.config import EngineConfig, EnvironmentsConfig, LimitsConfig
from atlas_ray.environments.agentgym.agentboard import absolute
from atlas_ray.environments.agentgym.task_numbers import numbered
from atlas_ray.environments.client import open_session
from atlas_ray.environments.registry import get
from atlas_ray.models.protocol import ModelSpec, Policy
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.metrics import Meter
from atlas_ray.rollouts.replica import Replica
from atlas_ray.rollouts.replica_set import ReplicaSet
from atlas_ray.rollouts.retry_queue import MAX_DEATHS
from atlas_ray.types import Episode, StopReason

PolicySpec = ModelSpec[Policy]


@dataclass(frozen=True, slots=True)
class FixedSpec:
    """A policy that is simply pickled, e.g. a scripted one."""

    policy: Policy
    gpus: int = 0

    async def build(self) -> Policy:
        """The policy itself."""
        return self.policy


class EpisodeReplica(Replica[EpisodeRequest, Episode]):
    """Plays episodes, each in a session of its own."""

    def __init__(self, spec: PolicySpec, environments: EnvironmentsConfig, limits: LimitsConfig) -> None:
        super().__init__(spec)
        self._environments, self._limits = environments, limits
        self._meter = Meter(replica=str(os.getpid()))

    async def _answer(self, request: EpisodeRequest) -> Episode:
        """Raises `UserError` if the environment is unknown, or has neither a server nor a built-in simulator."""
        session = open_session(get(request.task.env), self._environments)
        try:
            episode = await run_episode(self._model, session, request, self._limits)
        finally:
            with suppress(Exception):
                await session.close()
        if refusal := getattr(self._model, "refused", None):  # by its endpoint: no other episode would fare better
            raise type(refusal)(refusal.what, refusal.remedy)
        self._meter.episode(episode)
        return episode

    def _show(self) -> None:
        self._meter.show("atlas_episodes_in_flight", len(self._inflight))
        self._meter.show("atlas_requests_under_way", getattr(self._model, "under_way", 0))


class RolloutPool(ReplicaSet[EpisodeRequest, Episode]):
    """Replicas of one policy; all have started once it is made.

    Args:
        spec: What every replica makes its policy from.
        engine: How many replicas, on which nodes, and how many episodes each plays at once.
        environments: Servers of environments that are not built in.
        limits: Seconds for a turn and for an episode.
        retries: Further attempts at an episode that infrastructure spoilt, on other replicas where there are any.

    Raises:
        UserError: If the cluster has no room for them.
        ModelFailure: If the replicas die before they have started.
        AtlasError: If the replicas do not start.
    """

    result: ClassVar[str] = "an episode finished"

    def __init__(
        self,
        spec: PolicySpec,
        engine: EngineConfig | None = None,
        environments: EnvironmentsConfig | None = None,
        limits: LimitsConfig | None = None,
        retries: int = 2,
    ) -> None:
        engine = engine or EngineConfig()
        self._environments = absolute(environments or EnvironmentsConfig())
        super().__init__(
            EpisodeReplica,
            spec,
            self._environments,
            limits or LimitsConfig(),
            replicas=engine.replicas,
            in_flight=engine.episodes_in_flight,
            place=place_engines(spec.gpus, engine.replicas, engine.label_selector),
            retries=retries,
            start_s=engine.start_s,
        )
        self.wait_until_started()

    def run(self, requests: Iterable[EpisodeRequest | None]) -> Generator[tuple[EpisodeRequest, Episode], None, None]:
        """See `ReplicaSet.run`; a `UserError` where an environment or a task of a request cannot be played."""
        return super().run(numbered_requests(requests, self._environments))

    def _is_spoilt(self, episode: Episode) -> bool:
        tried = getattr(self._spec, "repeats_calls", False) and episode.stop_reason is StopReason.MODEL_ERROR
        return episode.stop_reason.is_infrastructure and not tried

    def _given_up(self, request: EpisodeRequest) -> Episode:
        error = f"{MAX_DEATHS} replicas died while they played this episode"
        return request.episode("", StopReason.MODEL_ERROR, error)


def numbered_requests(
    requests: Iterable[EpisodeRequest | None], environments: EnvironmentsConfig
) -> Iterator[EpisodeRequest | None]:
    """Requests with their tasks' numbers, looked up where the files lie that tell them: on one machine, it may be."""
    for request in requests:
        task = request and numbered(request.task, environments)
        yield replace(request, task=task) if request and task and task is not request.task else request
