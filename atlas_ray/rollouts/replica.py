"""What a replica actor does: it holds one policy and plays episodes beside it in one event loop.

Flows in: requests, many a call; flows out: episodes, as many as have ended since they were last asked for. Plain
asyncio: a turn costs no Ray call, and an episode a share of two.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from atlas_ray.cluster.connection import AGAIN
from atlas_ray.config import EnvironmentsConfig, LimitsConfig
from atlas_ray.environments.client import open_session
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.registry import get
from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.models.protocol import ModelSpec, Policy, Sampling, build_model
from atlas_ray.rollouts.episode import episode_id, run_episode
from atlas_ray.rollouts.guided import GivenTurn, Guided
from atlas_ray.rollouts.metrics import Meter
from atlas_ray.runs.local_copy import fetching
from atlas_ray.types import Episode, Task

_UNWIND_SECONDS = 8.0  # for the sessions of episodes that are left early; the driver waits a little longer
_MOST = 256  # episodes in one answer
_YOUNG = 50_000  # objects between two looks for garbage


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to play; see `run_episode` for what the parts mean.

    Attributes:
        given: Turns that are said for the policy where it sees what an expert saw before them.
        trajectory: Whose steps those of the prefix or the given turns are; episodes are named after it.
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
    opening: OpeningTemplate | None = None
    given: tuple[GivenTurn, ...] = ()
    trajectory: str | None = None
    group: str | None = None

    @property
    def id(self) -> str:
        """Of the episode."""
        return episode_id(self.task, self.sample, len(self.prefix), self.trajectory)


# A policy may also have `load(spec)` (goes on as another), `close()`, `under_way` (requests that it works at), and
# `dead` (it broke for good: the replica is replaced).
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
        self._playing: dict[int, asyncio.Task[Episode]] = {}
        self._ended: list[tuple[int, Episode | AtlasError]] = []
        self._some = asyncio.Event()
        self._meter = Meter(replica=str(os.getpid()))

    async def start(self) -> tuple[int, int | None]:
        """Makes the policy.

        Returns:
            This process's id, and the tokens that a conversation may have, where the policy knows.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._policy = await build_model(self._spec)
        # Else a turn costs the more the more conversations there are: each look walks through them and all libraries.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        return os.getpid(), self._context

    @property
    def _context(self) -> int | None:
        return getattr(self._policy, "context", None)

    async def fetching(self) -> str:
        """What it fetches from a store, before it can start."""
        return fetching()

    async def play(self, requests: Sequence[tuple[int, EpisodeRequest]]) -> None:
        """Begins episodes, each with the number under which `ended` will tell of it."""
        for number, request in requests:
            task = self._playing[number] = asyncio.create_task(self._episode(request))
            task.add_done_callback(partial(self._land, number))
        self._show()

    async def ended(self) -> list[tuple[int, Episode | AtlasError]]:
        """Episodes that have ended and were not told of yet, or why one cannot be played; waits for the first."""
        await self._some.wait()
        told, self._ended = self._ended[:_MOST], self._ended[_MOST:]
        if not self._ended:
            self._some.clear()
        return told

    async def drop(self, numbers: Sequence[int]) -> None:
        """Ends episodes that nobody waits for."""
        self._cancel([self._playing[number] for number in numbers if number in self._playing])

    @staticmethod
    def _cancel(tasks: Sequence[asyncio.Task[Episode]]) -> None:
        for task in tasks:
            if not task.cancelling():
                task.cancel()

    def _land(self, number: int, task: asyncio.Task[Episode]) -> None:
        """Keeps what an episode ended with until somebody asks."""
        del self._playing[number]
        self._show()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._meter.episode(task.result())
            self._ended.append((number, task.result()))
        elif isinstance(error, AtlasError):
            self._ended.append((number, error))
        else:
            self._ended.append((number, AtlasError(f"a replica failed: {type(error).__name__}: {error}", AGAIN)))
        self._some.set()

    def _show(self) -> None:
        """Tells how much is under way."""
        self._meter.show("atlas_episodes_in_flight", len(self._playing))
        self._meter.show("atlas_requests_under_way", getattr(self._policy, "under_way", 0))

    async def _episode(self, request: EpisodeRequest) -> Episode:
        """Plays one episode, in a session of its own.

        Raises:
            UserError: If the environment is unknown, or has neither a server nor a built-in simulator.
        """
        session = open_session(get(request.task.env), self._environments)
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
                opening=request.opening,
                limits=self._limits,
                trajectory=request.trajectory,
            )
        finally:
            with suppress(Exception):
                await session.close()
        if getattr(self._policy, "dead", False):
            # The driver replaces this replica and plays the episodes again.
            os._exit(1)
        return episode

    async def load(self, spec: PolicySpec) -> int | None:
        """Goes on with another policy.

        Returns:
            The tokens that a conversation may have, where the policy knows.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._spec = spec
        if not hasattr(self._policy, "load"):
            await self.close()
            return (await self.start())[1]
        try:
            await self._policy.load(spec)
        except AtlasError:
            raise
        except Exception as error:
            raise ModelFailure(f"the model does not load: {type(error).__name__}: {error}") from error
        return self._context

    async def close(self) -> None:
        """Ends the episodes under way and their sessions, then the policy's processes and connections."""
        tasks = list(self._playing.values())
        self._cancel(tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_UNWIND_SECONDS)
        if hasattr(self._policy, "close"):
            await self._policy.close()
