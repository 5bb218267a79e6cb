"""Requests to environment servers: one keep-alive HTTP session per event loop, and the episodes' ids.

Flows in: a server, an environment's dialect, actions; flows out: observations and results, or a `Fault`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import weakref
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp

from atlas_ray.environments.http.dialects import AVAILABLE_ACTIONS
from atlas_ray.environments.http.requests import (
    Busy,
    Fault,
    Refusal,
    Restarting,
    ServerResponse,
    Unreachable,
    request_json,
)
from atlas_ray.environments.protocol import EnvironmentSpec, StepResult
from atlas_ray.text import storable

TOKEN_VARIABLE = "ATLAS_SERVER_TOKEN"
_CLOSE_SECONDS = 5.0
_BUSY_TRIES, _BUSY_SECONDS = 5, 0.1  # as AgentGym's client of webshop
_KEEP_SECONDS = 4.0  # that a socket may idle between two requests: AgentGym's servers (uvicorn) close it after 5
_LOST = "the server lost the id: it was restarted, or handed it out twice"


class ClientPool:
    """What the sessions of one event loop share; it closes with the last of them."""

    _by_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, ClientPool]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None
        self._users = 0
        self._connections: dict[tuple[str, str, float], Connection] = {}

    @classmethod
    def join(cls) -> ClientPool:
        """The running loop's pool; every call is paired with one of `leave`."""
        pool = cls._by_loop.setdefault(asyncio.get_running_loop(), cls())
        pool._users += 1
        return pool

    async def leave(self) -> None:
        """Ends one use; the last one closes idle ids, where the server can, and the HTTP session."""
        self._users -= 1
        if self._users:
            return
        http, self._http = self._http, None
        if http is None:
            return
        try:
            await asyncio.gather(*(c.close_idle(http) for c in self._connections.values()))
        finally:
            await http.close()

    def connection(self, server: str, spec: EnvironmentSpec, timeout_s: float) -> Connection:
        """The way to one environment on one server."""
        key = (server, spec.name, timeout_s)
        if key not in self._connections:
            self._connections[key] = Connection(self, server, spec, timeout_s)
        return self._connections[key]

    @property
    def http(self) -> aiohttp.ClientSession:
        """The shared HTTP session."""
        if self._http is None:
            token = os.environ.get(TOKEN_VARIABLE)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            # as many connections as episodes: the pool above bounds those
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_SECONDS)
            self._http = aiohttp.ClientSession(connector=connector, headers=headers, response_class=ServerResponse)
        return self._http


class Lease:
    """An id on a server, for one episode at a time.

    Attributes:
        since: When it was made, on the loop's clock.
        lost: Whether the server is known to have forgotten it.
        game: What alfworld's server says that it plays, as TASK/TRIAL; else empty.
        idle: Set while no request about it is in flight.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number = connection, number
        self.since, self.lost, self.game = asyncio.get_running_loop().time(), False, ""
        self.idle = asyncio.Event()
        self.idle.set()

    async def reset(self, index: int) -> str:
        """Starts task `index` and composes its first observation.

        Raises:
            Fault: If the server does not.
        """
        dialect = self.connection.dialect
        body = await self.connection.request(
            self, "reset", {dialect.id_key: self.number, dialect.index_key: index, **dialect.reset_body}
        )
        try:
            match dialect.opening:
                case "vocabulary":
                    text = dialect.compose(await self.connection.request(self, "filtered_vocab"))
                case "observation":
                    text = await self.connection.request(self, "observation")
                case "description":
                    text = body["task_description"] + "\n" + body["observation"]
                case "actions":
                    self.game = str(body.get("task_type") or "")
                    text = body["observation"] + AVAILABLE_ACTIONS + ",".join(body["available_actions"])
                case _:
                    text = body["observation"]
        except (KeyError, TypeError):
            raise Fault("/reset answers in another form than AgentGym's") from None
        if not isinstance(text, str):
            raise Fault(f"the first observation is no text but {text!r:.100}")
        return storable(text)

    async def step(self, action: str) -> StepResult:
        """Plays one action.

        Raises:
            Fault: If the server does not, or its answer is malformed.
        """
        dialect = self.connection.dialect
        body = await self.connection.request(self, "step", {dialect.id_key: self.number, "action": action})
        try:
            observation, done = body[dialect.observation_key], body["done"]
            reward, progress = body[dialect.reward_key], body.get("progress")
        except (KeyError, TypeError):
            raise Fault("/step answers in another form than AgentGym's") from None
        well_formed = isinstance(observation, str) and isinstance(done, bool) and _is_finite(reward)
        if not well_formed or not (progress is None or _is_finite(progress)):
            raise Fault("/step answers values of the wrong kind")
        done = done or (dialect.pays_once and reward != 0)
        shown = storable(observation)
        return StepResult(shown, float(reward), done, None if progress is None else float(progress))

    def give_back(self) -> None:
        """Keeps the id for the next episode."""
        if not self.lost:
            self.connection.free.append(self)

    async def drop(self) -> None:
        """Forgets the id, whose state is unknown, and tells the server as far as that is possible."""
        if not self.lost:
            self.connection.lose(self)
            await self.connection.close(self)


class Connection:
    """One environment on one server, and the ids there; `free` are those that no episode holds.

    That a server was restarted shows itself in three ways: it does not know an id any more, nobody listens at its
    address, or it hands out an id that is still held. Ids that come out of order are no sign: AgentGym's servers make
    them in threads, and some of them even hand one out twice to requests at the same time.
    """

    def __init__(self, pool: ClientPool, server: str, spec: EnvironmentSpec, timeout_s: float) -> None:
        self.server, self.name, self.dialect = server, spec.name, spec.dialect
        self._pool, self._timeout = pool, timeout_s
        self._roots = _roots(server, spec.name, spec.dialect.prefixed)
        self._held: dict[int, Lease] = {}  # the last lease of each number; lost ones too, for they may be in flight
        self.free: list[Lease] = []
        self._answered = False  # ever
        self._creates = set[asyncio.Future[None]]()  # in flight
        self._serial_creates, self._turn = False, asyncio.Lock()  # where requests at the same time got one id

    async def acquire(self, fresh: bool = False) -> Lease:
        """An id for one episode: one given back, or a new one.

        Raises:
            Fault: If the server makes none.
        """
        while self.free and not fresh:
            if not (lease := self.free.pop()).lost:
                return lease
        async with self._turn if self._serial_creates else contextlib.nullcontext():
            loop = asyncio.get_running_loop()
            created, sent = loop.create_future(), loop.time()
            self._creates.add(created)
            try:
                number = await self._create()
                if not isinstance(number, int) or isinstance(number, bool):
                    raise Fault(f"/create answers no id but {number!r:.100}")
                before = self._held.get(number)
                self._held[number] = lease = Lease(self, number)
                if before is not None:
                    self._serial_creates |= not before.lost and before.since >= sent
                    before.lost = True
            finally:
                self._creates.discard(created)
                created.set_result(None)
        if before is not None:
            # what is in flight under the old lease may play in the new one's episode, whose reset comes after it
            await before.idle.wait()
        return lease

    def lose(self, lease: Lease) -> None:
        """Takes an id out of use."""
        lease.lost = True
        if self._held.get(lease.number) is lease:
            del self._held[lease.number]

    async def close_idle(self, http: aiohttp.ClientSession) -> None:
        """Closes the ids that nobody uses, where the server knows how; the others stay for later sessions."""
        if self.dialect.closes:
            free, self.free = [lease for lease in self.free if not lease.lost], []
            for lease in free:
                self.lose(lease)
            await asyncio.gather(*(self.close(lease, http) for lease in free))

    async def request(self, lease: Lease, endpoint: str, body: dict[str, Any] | None = None) -> Any:
        """What an endpoint answers about an id: to a POST of `body`, else to a GET.

        Raises:
            Fault: If it does not, or the id is lost before or meanwhile.
        """
        if lease.lost:
            raise Fault(_LOST)
        url, query = f"{self._roots[0]}/{endpoint}", f"?{self.dialect.id_key}={lease.number}"
        lease.idle.clear()
        try:
            answer = await self._request(*(("GET", url + query) if body is None else ("POST", url)), body)
        except Fault as fault:
            lease.lost |= f"id {lease.number} is not valid" in str(fault)
            raise
        finally:
            lease.idle.set()
        # A restarted server may have answered for an episode that it began under this id just now; whoever asked for
        # that one is about to learn its id.
        if self._creates:
            await asyncio.wait(set(self._creates))
        if lease.lost:
            raise Fault(_LOST)
        return answer

    async def _create(self) -> Any:
        """Asks for an id, at first wherever the environment may lie."""
        body = self.dialect.create_body
        for root in self._roots:
            try:
                answer = await self._request("POST", f"{root}/create", None if body is None else dict(body))
            except Refusal as refusal:
                if refusal.status == 404:
                    continue
                raise
            self._roots = [root]
            return answer.get("id") if isinstance(answer, dict) else answer
        raise Refusal(f"it serves no {self.name}", 404)

    async def _request(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        """One request's answer; asked again where it was turned away, and so has not happened."""
        for left in reversed(range(_BUSY_TRIES)):
            try:
                answer = await request_json(self._pool.http, method, url, body, self._timeout)
                self._answered = True
                return answer
            except Busy:
                if not left:
                    raise
                await asyncio.sleep(_BUSY_SECONDS)
            except Unreachable as fault:
                # nobody listens, so the process that knew the ids is gone
                for lease in self._held.values():
                    lease.lost = True
                if self._answered:
                    raise Restarting(str(fault), answered=False) from None
                raise
        raise AssertionError("the last try returns or raises")

    async def close(self, lease: Lease, http: aiohttp.ClientSession | None = None) -> None:
        """Has the server end an id, where it knows how."""
        if self.dialect.closes:
            url, body = f"{self._roots[0]}/close", {self.dialect.id_key: lease.number}
            # the id is of no more use either way
            with contextlib.suppress(Fault):
                await request_json(http or self._pool.http, "POST", url, body, min(self._timeout, _CLOSE_SECONDS))


def _roots(server: str, name: str, below_name: bool) -> list[str]:
    """Where an environment may lie: AgentGym serves most at the root, our server all of them below their names."""
    if urlsplit(server).path.endswith(f"/{name}"):
        return [server]
    return [f"{server}/{name}", server] if below_name else [server, f"{server}/{name}"]


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON may carry NaN and integers of any length."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
