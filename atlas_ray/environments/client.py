"""Plays environments on AgentGym's servers and our own: `HttpSession` behind the one `Session` protocol.

Flows in: tasks and replies; flows out: the same openings and results as in process, or an `EnvironmentFailure`. A
server that loses an episode (restart, 500, lost answer) gets it back by create, reset and replay, compared turn by turn.
"""

from __future__ import annotations

import asyncio
import functools
import math
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import table
from atlas_ray.environments.dialects import DIALECTS, GENERIC, Dialect
from atlas_ray.environments.protocol import MALFORMED, EnvironmentSpec, LocalSession, Opening, Session, StepResult
from atlas_ray.environments.wire import TOKEN_VARIABLE, Fault, Place, Refusal, Wire
from atlas_ray.environments.wordle import vocabulary_text
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Task

__all__ = ["TOKEN_VARIABLE", "HttpSession", "Probe", "open_session", "probe"]

RECOVERIES = 2
PAUSE_SECONDS = 0.25  # before the first recovery; four times as long before the second

T = TypeVar("T")


def open_session(spec: EnvironmentSpec, config: EnvironmentsConfig) -> Session:
    """A session with the servers that `config` names for the environment, else with the built-in world.

    Raises:
        UserError: If it has neither, or an address is no URL.
    """
    table.get(spec.name)
    servers = config.servers.get(spec.name, [])
    if servers:
        return HttpSession(spec, servers, config.timeout_s)
    return LocalSession(spec)


class HttpSession:
    """One episode's connection over HTTP. The server of a task follows from the task's id, whoever asks.

    Args:
        spec: The environment.
        servers: Base addresses; the environment lies at the root or below `/<name>`.
        timeout_s: Of one request.
        instruction: What opens the conversation; the built-in world's own where not given and there is one.
    """

    def __init__(
        self, spec: EnvironmentSpec, servers: Sequence[str], timeout_s: float = 60.0, instruction: str | None = None
    ) -> None:
        for server in servers:
            if not server.startswith(("http://", "https://")):
                raise UserError(
                    f"environments.servers.{spec.name}: {server!r} is no address", "write http://HOST:PORT"
                )
        self.spec, self._servers, self._timeout = spec, [s.rstrip("/") for s in servers], timeout_s
        self._dialect = DIALECTS.get(spec.name, GENERIC)
        self._instruction = instruction or _instruction(spec)
        self._wire: Wire | None = None
        self._place: Place | None = None
        self._id: int | None = None
        self._task: Task | None = None
        self._opening = ""
        self._played: list[tuple[str, StepResult]] = []

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            UserError: If its item id carries no index.
            EnvironmentFailure: If no server can.
        """
        index = self.spec.index(task.item_id)
        if self._wire is None:
            self._wire = Wire.join()
        self._task, self._played = task, []
        self._opening = await self._recovering(lambda: self._begin(index), first=0)
        return Opening(self._instruction, self._opening)

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply; after `done` the last result again, without a call.

        Raises:
            EnvironmentFailure: If the server fails and recovery does not help, or the replay differs.
        """
        if self._task is None:
            raise EnvironmentFailure(f"{self.spec.name}: step before reset")
        last = self._played[-1][1] if self._played else StepResult(self._opening, 0.0, False)
        if last.done:
            return last
        action = self.spec.take_action(reply)
        if action is None:
            return StepResult(MALFORMED, last.reward, False, last.progress)

        async def play() -> StepResult:
            if self._id is None:
                await self._restore()
            return await self._act(action)

        result = await self._recovering(play, first=0 if self._id is not None else 1)
        self._played.append((action, result))
        return result

    async def close(self) -> None:
        """Gives the id back for reuse, and the connections with the last session."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        if self._place is not None and self._id is not None:
            wire.give_back(self._place, self._id)
        self._id = self._task = None
        await wire.leave()

    async def _recovering(self, work: Callable[[], Awaitable[T]], first: int) -> T:
        """Does `work`; after a fault with a fresh id, on the next server, a few times."""
        for attempt in range(first, RECOVERIES + 1):
            self._choose(attempt)
            try:
                return await work()
            except (Fault, asyncio.CancelledError) as fault:
                # whatever happened to the request, the id's state is unknown
                await self._drop()
                if not isinstance(fault, Fault):
                    raise
                if attempt == RECOVERIES or isinstance(fault, Refusal):
                    raise self._failure(str(fault)) from None
            await asyncio.sleep(PAUSE_SECONDS * 4**attempt)
        raise AssertionError("unreachable")

    def _choose(self, attempt: int) -> None:
        """Points at the task's server, or at a later one after failures; an id elsewhere goes back."""
        assert self._task is not None and self._wire is not None
        server = self._servers[(zlib.crc32(self._task.id.encode()) + attempt) % len(self._servers)]
        if self._place is not None and self._place.server == server:
            return
        if self._id is not None and self._place is not None:
            self._wire.give_back(self._place, self._id)
        self._place, self._id = self._wire.place(server, self.spec.name, self._timeout), None
