"""Plays environments on AgentGym's servers and our own: `HttpSession` behind the one `Session` protocol.

Flows in: tasks and replies; flows out: the same openings and results as in process, or an `EnvironmentFailure`. An
episode that a server lost (restart, 500, lost answer) comes back by create, reset and replay, compared turn by turn.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.agentboard import with_agentboard
from atlas_ray.environments.agentgym.task_numbers import game_of
from atlas_ray.environments.http.client_pool import ClientPool, Lease
from atlas_ray.environments.http.requests import Fault, Refusal, Restarting
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import MALFORMED, EnvironmentSpec, Opening, Session, StepResult
from atlas_ray.errors import EnvironmentFailure, ReplayMismatch, UserError
from atlas_ray.text import printable
from atlas_ray.types import Task

RECOVERIES = 3
_RESTART_TRIES = 30  # where nobody listens any more: two minutes, in which a server may be started again
_GENERIC_INSTRUCTION = "You act in the environment {name}. Answer with a Thought: line and an Action: line."
PAUSE_SECONDS = 0.25  # before the first recovery; four times as long before the next, up to the third's
_CREATED_SECONDS = 4.0  # for an id that was being made when the session was given up; its server may hang

T = TypeVar("T")


def open_session(spec: EnvironmentSpec, config: EnvironmentsConfig) -> Session:
    """A session with the servers that `config` names for the environment, else with the built-in simulator
    (on AgentBoard's tasks where it names those).

    Raises:
        UserError: If it has neither, `config` names an unknown environment, or an address is no URL.
    """
    for name in (*config.servers, *config.agentboard, *config.replay_tolerance):
        registry.get(name)
    servers = config.servers.get(spec.name)
    spec = with_tolerance(spec, config)
    if servers:
        return HttpSession(spec, servers, config.timeout_s)
    if spec.session:
        return spec.session(spec)
    return LocalSession(with_agentboard(spec, config))


def with_tolerance(spec: EnvironmentSpec, config: EnvironmentsConfig) -> EnvironmentSpec:
    """The environment with the tolerance that a run sets for it, if it does."""
    return replace(spec, tolerance=config.replay_tolerance.get(spec.name, spec.tolerance))


class HttpSession:
    """One episode's connection over HTTP. Which server plays a task follows from the task's id alone.

    Args:
        spec: The environment.
        servers: Base addresses; the environment lies there or below `/<name>`.
        timeout_s: Of one request.

    Raises:
        UserError: If an address is no URL.
    """

    def __init__(self, spec: EnvironmentSpec, servers: Sequence[str], timeout_s: float = 60.0) -> None:
        for server in servers:
            check_address(spec.name, server)
        self.spec, self._servers, self._timeout = spec, [s.rstrip("/") for s in servers], timeout_s
        self._pool: ClientPool | None = None
        self._lease: Lease | None = None
        self._cancelled: list[Lease] = []  # ids in whose requests this session was cancelled
        self._creating: asyncio.Task[Lease] | None = None  # an id
        self._task: Task | None = None
        self._opening = ""
        self._history: list[tuple[str, StepResult]] = []

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            UserError: If its item id carries no index.
            EnvironmentFailure: If the server cannot.
        """
        index = self.spec.number(task)
        self._pool = self._pool or ClientPool.join()
        self._task, self._history = task, []

        async def begin(attempt: int) -> str:
            lease = await self._take(attempt)
            text = await lease.reset(index)
            named = game_of(task.item_id)
            if named and lease.game and lease.game != named:
                where, played = lease.connection.server, printable(lease.game)
                raise EnvironmentFailure(
                    f"alfworld at {where}: number {index} is the game {played}, and {named} was to be played",
                    "environments.alfworld_mappings must be the server's own: AgentGym's, or the folder that it serves",
                )
            return text

        self._opening = await self._retry(begin)
        return Opening(own_instruction(self.spec), self._opening)

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply; after `done` gives the last result again, without a call.

        Raises:
            EnvironmentFailure: If the server fails and recovery does not help; `ReplayMismatch` if the replay differs.
        """
        last = self._history[-1][1] if self._history else StepResult(self._opening, 0.0, False)
        if last.done:
            return last
        action = self.spec.take_action(reply)
        if action is None:
            return StepResult(MALFORMED, last.reward, False)

        async def play(attempt: int) -> StepResult:
            lease = self._lease
            if lease is None or lease.lost:
                lease = await self._take(max(1, attempt))
                await self._replay(lease)
            return await lease.step(action)

        result = await self._retry(play)
        self._history.append((action, result))
        return result

    async def close(self) -> None:
        """Gives the id back for reuse, and with the last session the connections."""
        pool, self._pool, self._task = self._pool, None, None
        self._give_back()
        cancelled, self._cancelled = self._cancelled, []
        try:
            await self._await_created()
            await asyncio.gather(*(lease.drop() for lease in cancelled))
        finally:
            if pool is not None:
                await pool.leave()

    async def _retry(self, work: Callable[[int], Awaitable[T]]) -> T:
        """Does `work(0)`, and after a fault again on a fresh id; for a while where a server may be about to restart.

        Raises:
            EnvironmentFailure: If that does not help, with the last fault.
        """
        faults = refused = 0
        while True:
            try:
                return await work(faults + refused)
            except Fault as fault:
                where = self._lease.connection.server if self._lease else ", ".join(self._servers)
                await self._drop()
                if isinstance(fault, Restarting):
                    refused += 1
                else:
                    faults += 1
                if faults > RECOVERIES or refused > _RESTART_TRIES or isinstance(fault, Refusal):
                    raise EnvironmentFailure(
                        f"{self.spec.name} at {where}: {fault}", "`atlas doctor` checks every server"
                    ) from None
            except asyncio.CancelledError:
                # the server may still be at the request, so nobody else may have the id
                if self._lease is not None:
                    self._cancelled.append(self._lease)
                self._lease = None
                raise
            await asyncio.sleep(PAUSE_SECONDS * 4 ** min(faults + refused - 1, RECOVERIES - 1))

    async def _take(self, attempt: int) -> Lease:
        """An id for the task: the one at hand or a pooled one at first, later a new one, at last on another server."""
        if self._task is None or self._pool is None:
            raise EnvironmentFailure(f"{self.spec.name}: a step before any reset", "reset the session first")
        turn = zlib.crc32(self._task.id.encode(errors="replace")) + max(0, attempt - 1)
        server = self._servers[turn % len(self._servers)]
        if self._lease is None or self._lease.lost or self._lease.connection.server != server:
            self._give_back()
            connection = self._pool.connection(server, self.spec, self._timeout)
            self._creating = asyncio.create_task(connection.acquire(fresh=attempt > 0))
            # cancelled half-way, it would leave an id at the server that nobody knows
            self._lease = await asyncio.shield(self._creating)
            self._creating = None
        return self._lease

    async def _await_created(self) -> None:
        """Gives back an id that was being made when this session was cancelled."""
        creating, self._creating = self._creating, None
        if creating is None:
            return
        await asyncio.wait([creating], timeout=_CREATED_SECONDS)
        if not creating.done():
            creating.cancel()
        elif not creating.cancelled() and creating.exception() is None:
            creating.result().give_back()

    async def _replay(self, lease: Lease) -> None:
        """Brings a fresh id to where the episode was.

        Raises:
            Fault: If the server fails again.
            ReplayMismatch: If the episode does not repeat itself.
        """
        assert self._task is not None
        text = await lease.reset(self.spec.number(self._task))
        same = self.spec.same_task(self._opening, text)
        for action, before in self._history:
            if not same:
                break
            again = await lease.step(action)
            same = self.spec.compare(before.observation, again.observation) != "differs"
            same &= (again.reward, again.done) == (before.reward, before.done)
        if not same:
            await self._drop()
            raise ReplayMismatch(
                f"{self.spec.name} at {lease.connection.server} lost the episode, and its replay differs",
                "`atlas doctor` tells whether the server repeats itself",
            )

    async def _drop(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.drop()

    def _give_back(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_back()


def own_instruction(spec: EnvironmentSpec) -> str:
    """What opens a conversation where nothing else is given."""
    return spec.instruction or _GENERIC_INSTRUCTION.format(name=spec.name)


def check_address(name: str, server: str) -> None:
    """Refuses what is no URL.

    Raises:
        UserError: If it is none.
    """
    if not server.startswith(("http://", "https://")):
        raise UserError(f"the server {server!r} of {name} is no address", "write http://HOST:PORT")
