"""What a replica actor does: it holds one policy and plays episodes beside it in one event loop.

Flows in: requests; flows out: episodes. Plain asyncio: a turn costs no Ray call.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from atlas_ray.config import EnvironmentsConfig, LimitsConfig
from atlas_ray.environments.client import open_session
from atlas_ray.environments.table import get
from atlas_ray.models.guided import GivenTurn, Guided
from atlas_ray.models.protocol import ModelSpec, Policy, Sampling, build_model
from atlas_ray.rollouts.episode import run_episode
from atlas_ray.types import Episode, Task

_UNWIND_SECONDS = 8.0  # for the sessions of episodes that are left early; the driver waits a little longer


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to play; see `run_episode` for what the parts mean.

    Attributes:
        given: Turns that are said for the policy where it sees what an expert saw before them.
        group: Requests of one group share a beginning and go to one replica, whose prefix cache then holds it.
    """

    task: Task
    sampling: Sampling
    seed: int
    sample: int = 0
    prefix: tuple[str, ...] = ()
    recorded: tuple[str, ...] = ()
    first_observation: str | None = None
    max_rounds: int | None = None
    instruction: str | None = None
    given: tuple[GivenTurn, ...] = ()
    group: str | None = None


# A policy may also have `load(spec)` (goes on as another), `close()`, and `dead` (it broke for good: the replica is
# replaced).
PolicySpec = ModelSpec[Policy]


@dataclass(frozen=True, slots=True)
class FixedSpec:
    """A policy that is simply pickled, e.g. a scripted one."""

    policy: Policy
    gpus: int = 0

    async def build(self) -> Policy:
        """The policy itself."""
        return self.policy


class Replica:
    """The actor: a policy, and the episodes under way."""

    def __init__(self, spec: PolicySpec, environments: EnvironmentsConfig, limits: LimitsConfig) -> None:
        self._spec, self._environments, self._limits = spec, environments, limits
        self._policy: Any = None
        self._under_way: set[asyncio.Task[Any]] = set()

    async def start(self) -> int:
        """Makes the policy.

        Returns:
            This process's id.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._policy = await build_model(self._spec)
        return os.getpid()

    async def play(self, request: EpisodeRequest) -> Episode:
        """Plays one episode, in a session of its own.

        Raises:
            UserError: If the environment is unknown, or has neither a server nor a built-in world.
        """
        session, task = open_session(get(request.task.env), self._environments), asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            episode = await run_episode(
                Guided(self._policy, request.given) if request.given else self._policy,
                session,
                request.task,
                prefix=request.prefix,
                recorded=request.recorded,
                first_observation=request.first_observation,
                sampling=request.sampling,
                seed=request.seed,
                sample=request.sample,
                max_rounds=request.max_rounds,
                instruction=request.instruction,
                limits=self._limits,
            )
        finally:
            with suppress(Exception):
                await session.close()
            self._under_way.discard(task)
        if getattr(self._policy, "dead", False):
            # The driver replaces this replica and plays the episodes again.
            os._exit(1)
        return episode

    async def load(self, spec: PolicySpec) -> None:
        """Goes on with another policy.

        Raises:
            AtlasError: If it cannot be made.
        """
        kind, self._spec = type(self._spec), spec
        if type(spec) is kind and hasattr(self._policy, "load"):
            return await self._policy.load(spec)
        await self.close()
        await self.start()

    async def close(self) -> None:
        """Ends the episodes under way and their sessions, then the policy's processes and connections."""
        for task in self._under_way:
            if not task.cancelling():
                task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_UNWIND_SECONDS)
        if hasattr(self._policy, "close"):
            await self._policy.close()
