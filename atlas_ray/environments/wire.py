"""Requests to environment servers: one keep-alive HTTP session per event loop, and the episodes' ids.

Flows in: a server, an environment's dialect, actions; flows out: observations and results, or a `Fault`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import weakref
from typing import Any, ClassVar
from urllib.parse import urlsplit

import aiohttp

from atlas_ray.environments.dialects import AVAILABLE_ACTIONS, DIALECTS, GENERIC
from atlas_ray.environments.protocol import StepResult
from atlas_ray.environments.wordle import vocabulary_text
from atlas_ray.text import printable, storable

TOKEN_VARIABLE = "ATLAS_SERVER_TOKEN"
MAX_ANSWER = 2**22
_CLOSE_SECONDS = 5.0
_PASSING = (408, 425, 429)  # refusals for the moment, by a proxy


class Fault(Exception):
    """A request that failed: the episode may be lost. `answered` tells whether the server spoke at all."""

    def __init__(self, cause: str, answered: bool = True) -> None:
        super().__init__(cause)
        self.answered = answered


class Refusal(Fault):
    """A request that the server will never take (HTTP 4xx)."""

    def __init__(self, cause: str, status: int) -> None:
        super().__init__(cause)
        self.status = status


class Wire:
    """What the sessions of one event loop share; it closes with the last of them."""

    _by_loop: ClassVar[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Wire]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        self._http: aiohttp.ClientSession | None = None
        self._users = 0
        self._connections: dict[tuple[str, str, float], Connection] = {}

    @classmethod
    def join(cls) -> Wire:
        """The running loop's wire; every call is paired with one of `leave`."""
        wire = cls._by_loop.setdefault(asyncio.get_running_loop(), cls())
        wire._users += 1
        return wire

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

    def connection(self, server: str, name: str, timeout_s: float) -> Connection:
        """The way to one environment on one server."""
        key = (server, name, timeout_s)
        if key not in self._connections:
            self._connections[key] = Connection(self, *key)
        return self._connections[key]

    @property
    def http(self) -> aiohttp.ClientSession:
        """The shared HTTP session."""
        if self._http is None:
            token = os.environ.get(TOKEN_VARIABLE)
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            # as many connections as episodes: the pool above bounds those
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
        return self._http


class Lease:
    """An id on a server, for one episode at a time; `lost` once the server is known to have forgotten it."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.number, self.lost = connection, number, False

    async def reset(self, index: int) -> str:
        """Starts task `index` and composes its first observation.

        Raises:
            Fault: If the server does not.
        """
        dialect = self.connection.dialect
        body = await self.connection.post(
            self, "reset", {dialect.id_key: self.number, dialect.index_key: index, **dialect.reset_body}
        )
        try:
            match dialect.opening:
                case "vocabulary":
                    text = vocabulary_text(await self.connection.get(self, "filtered_vocab"))
                case "observation":
                    text = await self.connection.get(self, "observation")
                case "description":
                    text = body["task_description"] + "\n" + body["observation"]
                case "actions":
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
        body = await self.connection.post(self, "step", {dialect.id_key: self.number, "action": action})
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
        self.connection.keep(self)

    async def drop(self) -> None:
        """Forgets the id, whose state is unknown, and tells the server as far as that is possible."""
        await self.connection.drop(self)


class Connection:
    """One environment on one server, and the ids there."""

    def __init__(self, wire: Wire, server: str, name: str, timeout_s: float) -> None:
        self.server, self.name = server, name
        self._wire, self._timeout = wire, timeout_s
        self.dialect = DIALECTS.get(name, GENERIC)
        self._roots = _roots(server, name, self.dialect.prefixed)
        self._live: dict[int, Lease] = {}
        self._idle: list[Lease] = []
        self._highest = -1  # id so far
        self._restarts, self._in_flight = 0, 0
        self._quiet, self._settled = asyncio.Event(), asyncio.Event()
        self._quiet.set()
        self._settled.set()

    async def acquire(self, fresh: bool = False) -> Lease:
        """An id for one episode: one given back, or a new one.

        Raises:
            Fault: If the server makes none.
        """
        while self._idle and not fresh:
            if not (lease := self._idle.pop()).lost:
                return lease
        while True:
            await self._settled.wait()
            restarts = self._restarts
            number = await self._create()
            if not isinstance(number, int) or isinstance(number, bool):
                raise Fault(f"/create answers no id but {number!r:.100}")
            if restarts == self._restarts:
                if number not in self._live and (number > self._highest or not self.dialect.counts):
                    break
                await self._forget()
            await self._close(self._wire.http, Lease(self, number))
        self._highest = max(self._highest, number)
        self._live[number] = lease = Lease(self, number)
        return lease

    async def _forget(self) -> None:
        """Gives up every id of a server that counts anew, so was restarted.

        What is in flight under an old id may play in the episode that has this id now. So its answer is thrown away
        (the lease is lost), and no id that was handed out before all is quiet is used.
        """
        self._restarts, self._highest = self._restarts + 1, -1
        for lease in self._live.values():
            lease.lost = True
        self._live.clear()
        self._settled.clear()
        try:
            await self._quiet.wait()
        finally:
            self._settled.set()

    def keep(self, lease: Lease) -> None:
        """Keeps an id for the next episode."""
        if not lease.lost:
            self._idle.append(lease)

    async def drop(self, lease: Lease) -> None:
        """Forgets an id whose state is unknown, and tells the server as far as that is possible."""
        if not lease.lost:
            lease.lost = True
            self._live.pop(lease.number, None)
            await self._close(self._wire.http, lease)

    async def close_idle(self, http: aiohttp.ClientSession) -> None:
        """Closes the ids that nobody uses, where the server knows how; the others stay for later sessions."""
        if self.dialect.closes:
            idle, self._idle = self._idle, []
            for lease in idle:
                self._live.pop(lease.number, None)
            await asyncio.gather(*(self._close(http, lease) for lease in idle))

    async def post(self, lease: Lease, endpoint: str, body: dict[str, Any]) -> Any:
        """What an endpoint answers to a body about an id.

        Raises:
            Fault: If it does not, or the id is lost before or meanwhile.
        """
        return await self._about(lease, "POST", f"{self._roots[0]}/{endpoint}", body)

    async def get(self, lease: Lease, endpoint: str) -> Any:
        """What an endpoint answers about an id.

        Raises:
            Fault: As `post`.
        """
        return await self._about(lease, "GET", f"{self._roots[0]}/{endpoint}?{self.dialect.id_key}={lease.number}")

    async def _about(self, lease: Lease, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        if lease.lost:
            raise Fault("the server was restarted")
        self._in_flight += 1
        self._quiet.clear()
        try:
            answer = await self._request(method, url, body)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._quiet.set()
        if lease.lost:
            raise Fault("the server was restarted")
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
        return await request_json(self._wire.http, method, url, body, self._timeout)

    async def _close(self, http: aiohttp.ClientSession, lease: Lease) -> None:
        if self.dialect.closes:
            body = {self.dialect.id_key: lease.number}
            # the id is of no more use either way
            with contextlib.suppress(Fault):
                await request_json(http, "POST", f"{self._roots[0]}/close", body, min(self._timeout, _CLOSE_SECONDS))


def _roots(server: str, name: str, below_name: bool) -> list[str]:
    """Where an environment may lie: AgentGym serves most at the root, our server all of them below their names."""
    if urlsplit(server).path.endswith(f"/{name}"):
        return [server]
    return [f"{server}/{name}", server] if below_name else [server, f"{server}/{name}"]


async def request_json(
    http: aiohttp.ClientSession, method: str, url: str, body: dict[str, Any] | None, timeout_s: float
) -> Any:
    """One request's JSON answer.

    Raises:
        Refusal: For HTTP 4xx.
        Fault: For everything else that is no answer: AgentGym's `{"error": ...}` (it may be empty) with HTTP 200, any
            other status, broken JSON, a lost connection, or none in time.
    """
    try:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with http.request(method, url, json=body, timeout=timeout, allow_redirects=False) as response:
            status, text = response.status, await _text(response)
    except TimeoutError:
        raise Fault(f"no answer within {timeout_s:g} s", answered=False) from None
    except (aiohttp.ClientError, OSError, LookupError, ValueError) as error:
        raise Fault(f"{type(error).__name__}: {error}", answered=False) from None
    shown = printable(text[:200].strip())
    if 400 <= status < 500 and status not in _PASSING:
        raise Refusal(f"HTTP {status}: {shown}", status)
    if status != 200:
        raise Fault(f"HTTP {status}: {shown}")
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        raise Fault(f"the answer is no JSON: {shown!r}") from None
    if isinstance(answer, dict) and "error" in answer:
        raise Fault(f"it answers the error {answer['error']!r}")
    return answer


async def _text(response: aiohttp.ClientResponse) -> str:
    """The body, unpacked; memory is not the server's to fill.

    Raises:
        Fault: If it is too long.
    """
    body = bytearray()
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > MAX_ANSWER:
            raise Fault(f"the answer is longer than {MAX_ANSWER >> 20} MiB")
    return body.decode(response.charset or "utf-8", errors="replace")


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON may carry NaN and integers of any length."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
