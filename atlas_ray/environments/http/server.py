"""Serves built-in simulators over HTTP in AgentGym's wire forms, so that AgentGym's own clients can play them too.

Flows in: JSON requests of at most 1 MB; flows out: observations, rewards and AgentGym's error bodies. Every
environment lies below `/<name>`, and at the root too where it is the only one. Text is played, never evaluated.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from aiohttp import web
from pydantic import Field, create_model

from atlas_ray.environments import registry
from atlas_ray.environments.custom_data import CustomData, load_custom_data
from atlas_ray.environments.http.client_pool import TOKEN_VARIABLE
from atlas_ray.environments.http.dialects import AVAILABLE_ACTIONS, OWN_SERVER
from atlas_ray.environments.http.openenv_server import add_openenv
from atlas_ray.environments.http.request_limits import (
    KEEP_SECONDS,
    MAX_BODY,
    Malformed,
    checked,
    close_idle_connections,
    guard,
    plain_errors,
    read_form,
)
from atlas_ray.environments.local import SimulatorCalls
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, Simulator, StepResult
from atlas_ray.errors import EnvironmentFailure, UserError

_NOTHING = StepResult("", 0.0, False)
_GREETING = "Let's start Wordle!"  # AgentGym's answer to a reset, where the first observation is the vocabulary

Protocol = Literal["agentgym", "openenv"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(
    names: list[str],
    *,
    max_sessions: int = 4096,
    idle_seconds: float = 3600.0,
    token: str | None = None,
    protocol: Protocol = "agentgym",
    clock: Callable[[], float] = time.monotonic,
    custom_data: Mapping[str, CustomData] | None = None,
) -> web.Application:
    """The application.

    Args:
        names: Built-in environments.
        max_sessions: Episodes held at once, of each environment.
        idle_seconds: After so long without a request an episode may be forgotten.
        token: What requests must carry (`Authorization: Bearer ...`), or None; `GET /` is open to all.
        protocol: As whose server it answers; OpenEnv's has one environment.
        clock: Seconds that never run backwards.
        custom_data: What the user gives in place of some environments' own material.

    Raises:
        UserError: If no name is given, or several to OpenEnv, one is unknown, or its simulator is not built in.
    """
    if not names:
        raise UserError("no environment to serve", "name at least one, e.g. maze")
    app = web.Application(client_max_size=MAX_BODY, middlewares=[plain_errors, guard(token)])
    tests: dict[str, int] = {}

    async def root(_: web.Request) -> web.StreamResponse:
        return web.json_response({OWN_SERVER: tests})

    app.router.add_get("/", root)
    if protocol == "openenv" and len(names) > 1:
        raise UserError("a server of OpenEnv's kind has one environment", "serve each at a port of its own")
    for name in dict.fromkeys(names):
        spec = registry.get(name)
        if custom_data and name in custom_data:
            spec = replace(spec, simulator=custom_data[name].simulator, n_test=custom_data[name].n_test)
        if protocol == "openenv":
            add_openenv(app, spec, max_sessions)
            continue
        tests[name] = spec.n_test
        routes = EnvironmentRoutes(spec, max_sessions, idle_seconds, clock)
        app.router.add_get(f"/{name}/", root)
        for prefix in [f"/{name}"] + ([""] if len(set(names)) == 1 else []):
            routes.add_to(app.router, prefix)
    return app


def serve(
    names: list[str],
    host: str = "127.0.0.1",
    port: int = 0,
    token: str | None = None,
    data: Iterable[str] = (),
    protocol: Protocol = "agentgym",
) -> None:
    """Serves until interrupted; prints the address (port 0 takes a free one) once requests are answered.

    Args:
        data: The user's own data, as NAME=PATH; which task numbers it has is printed.
        protocol: As whose server it answers.

    Raises:
        UserError: As `create_app` and `load_custom_data`; if the address cannot be bound, or others could connect
            without a token.
    """
    token = token or None
    if token is None and not _is_loopback(host):
        raise UserError(
            f"serving at {host} would let anybody in", f"set {TOKEN_VARIABLE} on both sides, or serve at 127.0.0.1"
        )
    custom_data = load_custom_data(data, names)
    app = create_app(names, token=token, protocol=protocol, custom_data=custom_data)
    for name, what in custom_data.items():
        print(f"tasks of {name}: {what}", flush=True)
    asyncio.run(_serve(app, names, host, port))


async def _serve(app: web.Application, names: list[str], host: str, port: int) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        # only the main thread takes signals
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(interrupt, stop.set)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=KEEP_SECONDS)
    await runner.setup()
    closing = asyncio.create_task(close_idle_connections(runner))
    try:
        await web.TCPSite(runner, host, port).start()
        shown = f"[{host}]" if ":" in host else host
        print(f"serving {', '.join(names)} at http://{shown}:{runner.addresses[0][1]}", flush=True)
        await stop.wait()
    except OSError as error:
        raise UserError(f"cannot serve at {host}:{port}: {error.strerror}", "choose another port, or 0") from None
    finally:
        closing.cancel()
        await runner.cleanup()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Episode:
    """One id's state; `result` is None before the first reset, `index` and `first` are the task's."""

    def __init__(self, spec: EnvironmentSpec, now: float) -> None:
        self.calls, self.used = SimulatorCalls(spec), now
        self.turn = asyncio.Lock()  # one request at a time
        self.result: StepResult | None = None
        self.index, self.first = 0, ""

    @property
    def simulator(self) -> Simulator:
        return self.calls.simulator


class _Refused(Exception):
    """An answer of AgentGym's kind for a request that cannot be met: HTTP 200 with an error."""


class EnvironmentRoutes:
    """One environment's episodes and endpoints."""

    def __init__(
        self, spec: EnvironmentSpec, max_sessions: int, idle_seconds: float, clock: Callable[[], float]
    ) -> None:
        if spec.simulator is None:
            raise UserError(f"{spec.name} is not built in", "`atlas environments list` shows what is")
        self._simulator_type = type(spec.simulator())  # says at once whether its extra is missing
        self._spec, self._dialect = spec, spec.dialect
        self._max, self._idle, self._clock = max_sessions, idle_seconds, clock
        # ids never recur after a restart, or a client could go on in somebody else's episode
        self._ids = itertools.count(random.SystemRandom().randrange(2**31))
        self._episodes: dict[int, _Episode] = {}
        number: Any = (int, Field(alias=self._dialect.id_key))
        index: Any = (int, Field(alias=self._dialect.index_key))
        self._id_form = create_model("Id", number=number)
        self._step_form = create_model("Step", number=number, action=(str, ...))
        # to the tools no index means the same task again
        again: Any = (int | None, Field(None, alias=self._dialect.index_key)) if self._dialect.bare else index
        self._reset_form = create_model("Reset", number=number, index=again)
        self._create_form = create_model("Create", index=index) if self._dialect.bare else create_model("Anything")

    def add_to(self, router: web.UrlDispatcher, prefix: str) -> None:
        """Adds the endpoints that AgentGym's server of this environment has."""
        posts = {"create": self._create, "reset": self._reset, "step": self._step}
        gets: dict[str, Callable[[_Episode], Any]] = {"observation": _observation, "detail": _detail}
        if self._dialect.bare:
            gets = _PAGES if self._dialect.paged else {"observation": lambda episode: episode.first}
            router.add_get(f"{prefix}/list_envs", self._handler(self._list))
        if self._dialect.opening == "description":
            gets["task_description"] = lambda episode: _described(episode.simulator)["task_description"]
            gets["action_hint"] = lambda episode: getattr(episode.simulator, "hints", {})
        elif "deleted" in self._dialect.reset_fields:  # babyai tells more than the text
            gets["observation"] = lambda episode: _fields(episode.result or _NOTHING, self._dialect.reset_fields)
        if self._dialect.closes:
            posts["close"] = self._close
        if self._dialect.opening == "vocabulary":
            gets["filtered_vocab"] = lambda episode: getattr(episode.simulator, "vocabulary", [])
        if hasattr(self._simulator_type, "available_actions") and not self._dialect.paged:
            gets["available_actions"] = lambda episode: list(getattr(episode.simulator, "available_actions", ()))
        for name, answer in posts.items():
            router.add_post(f"{prefix}/{name}", self._handler(answer))
        for name, read in gets.items():
            router.add_get(f"{prefix}/{name}", self._handler(self._get(read)))

    async def _create(self, request: web.Request) -> Any:
        now, asked = self._clock(), None
        if self._dialect.create_body is not None:
            asked = await read_form(request, self._create_form)
        if len(self._episodes) >= self._max:
            for idle in [i for i, e in self._episodes.items() if now - e.used >= self._idle]:
                await self._drop(idle)
        if len(self._episodes) >= self._max:
            raise _Refused(f"The server is full, it holds {self._max} environments.")
        number, episode = next(self._ids), _Episode(self._spec, now)
        answer: Any = {"id": number}
        if self._dialect.bare:
            await self._begin(number, episode, asked.index if asked else 0)
            answer = number
        elif asked is not None:
            answer = await self._begin(number, episode, 0)
        self._episodes[number] = episode
        return answer

    async def _reset(self, request: web.Request) -> Any:
        form = await read_form(request, self._reset_form)
        episode = await self._episode(form.number)
        return await self._begin(form.number, episode, episode.index if form.index is None else form.index)

    async def _step(self, request: web.Request) -> Any:
        form = await read_form(request, self._step_form)
        episode = await self._episode(form.number)
        async with episode.turn:
            self._check_unfinished(form.number, episode)
            if episode.result is None:
                raise _Refused(str(form.number))
            episode.result = await episode.calls.run(episode.simulator.step, form.action)
        if self._dialect.paged:
            done = {"reward": episode.result.reward, "done": episode.result.done, "info": None}
            return {self._dialect.observation_key: episode.result.observation, **done}
        score = ("score",) if self._dialect.reward_key == "score" else ()
        answer = _fields(episode.result, ("observation", "reward", *score, "done", "progress"))
        return answer | self._extras(episode.simulator)

    def _extras(self, simulator: Simulator, reset: bool = False) -> dict[str, Any]:
        """What alfworld and sciworld tell beside the text."""
        if self._dialect.opening == "description" and reset:
            return _described(simulator)
        if self._dialect.opening != "actions":
            return {}
        told = {"available_actions": list(getattr(simulator, "available_actions", ()))}
        return told | ({"task_type": getattr(simulator, "task_type", "")} if reset else {})

    async def _close(self, request: web.Request) -> bool:
        form = await read_form(request, self._id_form)
        known = await self._drop(form.number)
        if not known and self._dialect.opening == "description":
            raise web.HTTPInternalServerError
        return known

    async def _list(self, request: web.Request) -> list[int]:
        return list(self._episodes)

    def _get(self, read: Callable[[_Episode], Any]) -> Callable[[web.Request], Awaitable[Any]]:
        async def answer(request: web.Request) -> Any:
            number = checked(self._id_form, dict(request.query), "query").number
            episode = await self._episode(number)
            async with episode.turn:
                self._check_unfinished(number, episode)
                return await episode.calls.run(read, episode)

        return answer

    async def _drop(self, number: int) -> bool:
        """Ends an episode; whether there was one."""
        episode = self._episodes.pop(number, None)
        if episode:
            await episode.calls.close()
        return episode is not None

    def _handler(self, answer: Callable[[web.Request], Awaitable[Any]]) -> Handler:
        """An endpoint from what it answers, with AgentGym's and FastAPI's ways to refuse."""

        async def handler(request: web.Request) -> web.StreamResponse:
            try:
                return web.json_response(await answer(request))
            except _Refused as refused:
                if self._dialect.bare:
                    return web.Response(text="Internal Server Error", status=500)
                return web.json_response({"error": str(refused)})
            except Malformed as malformed:
                return web.json_response({"detail": malformed.details}, status=422)

        return handler

    async def _begin(self, number: int, episode: _Episode, index: int) -> Any:
        async with episode.turn:
            return self._begun(number, episode, index, await self._reset_to(episode, index))

    async def _reset_to(self, episode: _Episode, index: int) -> Opening:
        try:
            return await episode.calls.run(episode.simulator.reset, index)
        except UserError:
            raise _Refused(f"The {self._dialect.index_key} {index} is not valid.") from None
        except EnvironmentFailure as failure:
            raise _Refused(failure.what) from None

    def _begun(self, number: int, episode: _Episode, index: int, opening: Opening) -> Any:
        text = _GREETING if self._dialect.opening == "vocabulary" else opening.observation
        if self._dialect.opening == "actions":  # the client joins them to it
            text = text.rsplit(AVAILABLE_ACTIONS, 1)[0]
        if self._dialect.opening == "description":
            text = text.removeprefix(f"{_described(episode.simulator)['task_description']}\n")
        episode.result, episode.index, episode.first = StepResult(text, 0.0, False), index, text
        if self._dialect.bare:
            return [text, None] if self._dialect.paged else text
        return _fields(episode.result, self._dialect.reset_fields, number) | self._extras(episode.simulator, reset=True)

    async def _episode(self, number: int) -> _Episode:
        episode, now = self._episodes.get(number), self._clock()
        if episode is not None and now - episode.used >= self._idle:
            await self._drop(number)
            episode = None
        if episode is None:
            raise _Refused(f"The id {number} is not valid.")
        episode.used = now
        return episode

    def _check_unfinished(self, number: int, episode: _Episode) -> None:
        if episode.result is not None and episode.result.done and not self._dialect.bare:
            raise _Refused(f"The task with environment {number} has finished.")


def _fields(result: StepResult, names: tuple[str, ...], number: int | None = None) -> dict[str, Any]:
    known = {"id": number, "observation": result.observation, "reward": result.reward, "done": result.done}
    # a built-in simulator's reward is the one so far, so it is its own score
    known |= {"progress": result.progress, "score": result.reward, "deleted": False}
    return {name: known[name] for name in names if known.get(name) is not None}


def _described(simulator: Simulator) -> dict[str, Any]:
    """What sciworld tells of a task."""
    return getattr(simulator, "described", {"task_name": "", "var_num": 0, "task_description": ""})


def _observation(episode: _Episode) -> str:
    return episode.result.observation if episode.result else ""


def _state(episode: _Episode) -> Any:
    return getattr(episode.simulator, "state", {})


# what AgentGym's webshop answers to GETs
_PAGES: dict[str, Callable[[_Episode], Any]] = {
    "observation": _observation,
    "state": _state,
    "instruction_text": lambda episode: _state(episode).get("instruction_text", ""),
    "available_actions": lambda episode: getattr(episode.simulator, "available_actions", {}),
}


def _detail(episode: _Episode) -> dict[str, Any]:
    return _fields(episode.result, ("observation", "reward", "done", "progress")) if episode.result else {}
