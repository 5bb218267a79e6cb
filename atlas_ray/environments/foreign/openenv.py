"""OpenEnv's servers as environments: `environments.register.NAME=openenv:http://HOST:PORT`, or `openenv:PACKAGE`.

A session is one WebSocket, as OpenEnv's own clients have it: a reset carries the task's number as its seed, and where
the server offers tasks their split and index; a step the action in the one text that the server's schema of actions
wants, or a call of one of its tools, which a model makes as such or in text. Of an observation the texts are told;
rewards of steps are added up.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from atlas_ray.environments.builtin.tools.core import FORMAT_ERROR, INVALID_INPUT
from atlas_ray.environments.foreign.openenv_servers import Package, addresses
from atlas_ray.environments.foreign.openenv_tasks import Offer, offered
from atlas_ray.environments.foreign.tool_text import read_call, schema, tool_instruction
from atlas_ray.environments.protocol import MALFORMED, EnvironmentSpec, Opening, Split, StepResult
from atlas_ray.environments.tool_session import play_calls
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Message, Task, ToolCall

ABOUT = "You act in the environment {name}."
INSTRUCTION = f"{ABOUT} Answer with a Thought: line and an Action: line."
_PACKAGE = re.compile(r"(?:[\w./-]*/[\w./-]*:)?[A-Za-z_][\w.]*(?::\w+)?")  # perhaps behind a Python
_ROUNDS = 30
_SECONDS = 60.0  # for a connection, and for one answer
_LARGEST = 16_000_000  # bytes of one answer
_BEGUN, _NOTHING = "The episode has begun.", "Go on."  # where a server says nothing to that
_ASIDE = {"metadata", "done", "reward"}  # of observations and actions, beside what is theirs


def environment(name: str, url: str) -> EnvironmentSpec:
    """The environment that an OpenEnv server plays.

    Args:
        name: What it is to be called.
        url: The server's address; or `[PYTHON:]PACKAGE[:NAME]`, an installed package whose server is started here.

    Raises:
        UserError: If it is neither.
    """
    remote = urlsplit(url).scheme in ("http", "https")
    if not (urlsplit(url).hostname if remote else _PACKAGE.fullmatch(url)):
        raise UserError(
            f"{url} is no OpenEnv server", "name its address, openenv:http://HOST:PORT, or a package, openenv:echo_env"
        )
    where = url.rstrip("/") if remote else Package.of(url)
    return EnvironmentSpec(
        *(name, "out", _ROUNDS, "reward", "first"),
        instruction=INSTRUCTION.format(name=name),
        session=lambda spec: OpenEnvSession(spec, where),
        tells_tools=True,
        sizes=lambda: _sizes(name, where),
    )


_offers: dict[str | Package, Offer] = {}  # of servers that have told it to this process


def _sizes(name: str, where: str | Package) -> Mapping[Split, int]:
    """How many tasks its server offers, or as many seeds.

    Raises:
        UserError: If it does not answer.
    """
    if where not in _offers:
        with ThreadPoolExecutor(1) as other:  # this one may have an event loop that runs
            other.submit(asyncio.run, _ask_offer(name, where)).result()
    return {"test": _offers[where].n_test, "train": _offers[where].n_train}


async def _ask_offer(name: str, where: str | Package) -> None:
    try:
        url = where if isinstance(where, str) else await anext(addresses(where))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as http:
            _offers[where] = await offered(http, url)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, EnvironmentFailure) as error:
        why = str(error) or type(error).__name__
        raise UserError(f"the server of {name} does not tell its tasks: {why}", _REMEDY) from None


_REMEDY = "start it, or mend environments.register"


class OpenEnvSession:
    """One episode's connection, to the server's own environment of that connection.

    Attributes:
        tools: Schemas of the server's MCP tools, in OpenAI's form; empty where its actions are one text.
    """

    def __init__(self, spec: EnvironmentSpec, where: str | Package) -> None:
        self.spec, self._where, self._url = spec, where, where if isinstance(where, str) else where.app
        self.tools: list[dict[str, Any]] = []
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._field, self._calls_tools, self._reward = "", False, 0.0

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            UserError: If the server's actions are neither a single text nor calls of tools.
            EnvironmentFailure: If it does not answer, or is full.
        """
        told = await self._begin(task)
        instruction = INSTRUCTION.format(name=self.spec.name)
        if self.tools:
            instruction = tool_instruction(ABOUT.format(name=self.spec.name), self.tools)
        return Opening(instruction, told)

    async def reset_for_calls(self, task: Task) -> Opening:
        """Starts the task for an agent that calls the server's tools.

        Raises:
            UserError: If it has none.
            EnvironmentFailure: If it does not answer, or is full.
        """
        told = await self._begin(task)
        if not self.tools:
            raise UserError(f"{self.spec.name} at {self._url} offers no tools to call", "play it as text")
        return Opening(ABOUT.format(name=self.spec.name), told, "", json.dumps(self.tools))

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply.

        Raises:
            EnvironmentFailure: If the server does not answer, or with an error.
        """
        if self.tools:
            call = read_call(reply)
            if call is None:
                return StepResult(FORMAT_ERROR, self._reward, False)
            return await self._call_tool(*call)
        action = self.spec.take_action(reply)
        if action is None:
            return StepResult(MALFORMED, self._reward, False)
        return await self._step({self._field: action}, text_of)

    async def call(self, reply: Message) -> StepResult:
        """Calls the tools that a reply calls.

        Raises:
            EnvironmentFailure: If the server does not answer, or with an error.
        """

        async def play(call: ToolCall) -> StepResult:
            if not call.is_well_formed:
                return StepResult(INVALID_INPUT, self._reward, False)
            return await self._call_tool(call.name, json.loads(call.arguments))

        return await play_calls(reply, StepResult("", self._reward, False), play)

    async def close(self) -> None:
        """Ends the connection, and with it the server's environment of it."""
        socket, http = self._socket, self._http
        self._socket = self._http = None
        try:
            if socket is not None and not socket.closed:
                await socket.send_str(json.dumps({"type": "close"}))
                await socket.close()
        except (aiohttp.ClientError, OSError):
            pass  # it is gone already
        finally:
            if http is not None:
                await http.close()

    async def _begin(self, task: Task) -> str:
        """Starts the task; what is told of it."""
        self._reward = 0.0
        answer = await (self._reset(task) if self._socket is not None else self._first_reset(task))
        if self._calls_tools:  # which a task may have of its own
            listed = (await self._ask("step", {"type": "list_tools"})).get("observation") or {}
            told = ((tool["name"], tool.get("description"), tool.get("input_schema")) for tool in listed["tools"])
            self.tools = [schema(*tool) for tool in told]
        return text_of(answer.get("observation")) or _BEGUN

    async def _reset(self, task: Task) -> Mapping[str, Any]:
        try:
            data = _offers[self._where].reset(self.spec.number(task))
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"{self.spec.name} at {self._url}: {error}") from None
        return await self._ask("reset", data)

    async def _call_tool(self, name: str, arguments: Mapping[str, Any]) -> StepResult:
        return await self._step({"type": "call_tool", "tool_name": name, "arguments": arguments}, result_of)

    async def _step(self, action: Mapping[str, Any], in_words: Callable[[Any], str]) -> StepResult:
        answer = await self._ask("step", action)
        self._reward += float(answer.get("reward") or 0.0)
        told = in_words(answer.get("observation")) or _NOTHING
        return StepResult(told, self._reward, bool(answer.get("done")))

    async def _first_reset(self, task: Task) -> Mapping[str, Any]:
        """The answer of a server that has room; a package's may need another process for that."""
        if isinstance(self._where, str):
            await self._connect()
            return await self._reset(task)
        async for url in addresses(self._where):
            self._url = url
            try:
                await self._connect()
                return await self._reset(task)
            except _FullError:
                continue
        raise AssertionError("it ends with an error")

    async def _connect(self) -> None:
        """Connects, and learns what actions are.

        Raises:
            EnvironmentFailure: If the server does not answer as OpenEnv's do.
        """
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS))
        try:
            async with self._http.get(f"{self._url}/schema") as answer:
                schemas = await answer.json()
            self._calls_tools = {"tool_name", "arguments"} <= schemas["action"].get("properties", {}).keys()
            self._field = "" if self._calls_tools else action_field(schemas, self._url)
            if self._where not in _offers:
                _offers[self._where] = await offered(self._http, self._url)
            self._socket = await self._http.ws_connect(f"{self._url}/ws", max_msg_size=_LARGEST)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, AttributeError) as error:
            await self.close()
            why = str(error) or type(error).__name__
            raise EnvironmentFailure(
                f"{self.spec.name} at {self._url} does not answer as an OpenEnv server: {why}", _REMEDY
            ) from None
        except (UserError, EnvironmentFailure):
            await self.close()
            raise

    async def _ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The data that a message is answered with."""
        assert self._socket is not None
        full = False
        try:
            await self._socket.send_str(json.dumps({"type": kind, "data": data}))
            answer = json.loads(await self._socket.receive_str(timeout=_SECONDS))
            told = answer["data"]
            if answer["type"] != "error":
                return dict(told)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
            why = str(error) or type(error).__name__
        except asyncio.CancelledError:
            await self.close()  # the answer that comes belongs to no later question
            raise
        else:
            why = str(told.get("message", told))
            full = told.get("code") == "CAPACITY_REACHED"
        await self.close()
        raise (_FullError if full else EnvironmentFailure)(
            f"{self.spec.name} at {self._url} failed at a {kind}: {why:.300}"
        )


class _FullError(EnvironmentFailure):
    """A server plays as many episodes as it takes."""


def action_field(schemas: Mapping[str, Any], url: str) -> str:
    """The one text of a server's actions, by what it answers at `/schema`.

    Raises:
        UserError: If its actions are of another form.
    """
    action = schemas["action"]
    fields = {name: kind for name, kind in action.get("properties", {}).items() if name not in _ASIDE}
    wanted = [name for name in action.get("required", fields) if name in fields]
    if len(wanted) == 1 and fields[wanted[0]].get("type") == "string":
        return wanted[0]
    shown = ", ".join(f"{name}: {fields[name].get('type', 'a choice')}" for name in wanted) or "nothing"
    raise UserError(
        f"actions at {url} are no single text, they want {shown}",
        "serve it by a server whose actions are one text, or calls of MCP tools",
    )


def text_of(observation: Any) -> str:
    """An observation in words: its texts, else all of it as JSON; the prompt in its metadata where it is empty."""
    if isinstance(observation, str):
        return observation
    found = {k: v for k, v in (observation or {}).items() if k not in _ASIDE and v not in (None, "", [], {})}
    if not found:
        # where the environments have it that `openenv import` makes of another library's
        return _joined(((observation or {}).get("metadata") or {}).get("prompt") or [])
    texts = [value for value in found.values() if isinstance(value, str)]
    if len(texts) == len(found) and texts:
        return "\n".join(texts)
    return json.dumps(found, ensure_ascii=False, sort_keys=True)


def result_of(observation: Any) -> str:
    """A tool's result in words: its texts, its error, else all of it as JSON."""
    if not isinstance(observation, Mapping):
        return text_of(observation)
    error, result = observation.get("error"), observation.get("result")
    if error:
        return f"Error: {error.get('message', error) if isinstance(error, Mapping) else error}"
    content = (result.get("content") or result.get("blocks")) if isinstance(result, Mapping) else None
    if isinstance(content, list):
        return _joined(content)
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, sort_keys=True)


def _joined(parts: Any) -> str:
    """Blocks of text, or messages, as one text."""
    if isinstance(parts, str):
        return parts
    texts = (part.get("text", part.get("content", part)) if isinstance(part, Mapping) else part for part in parts)
    return "\n".join(map(str, texts))
