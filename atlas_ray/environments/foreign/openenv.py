"""OpenEnv's servers as environments: `environments.register.NAME=openenv:http://HOST:PORT`.

A session is one WebSocket, as OpenEnv's own clients have it: a reset carries the task's number as its seed, a step the
action in the one text that the server's schema of actions wants. Of an observation the texts are told; rewards of steps
are added up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from atlas_ray.environments.protocol import MALFORMED, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Task

INSTRUCTION = "You act in the environment {name}. Answer with a Thought: line and an Action: line."
N_TEST, N_TRAIN = 200, 10_000
_ROUNDS = 30
_SECONDS = 60.0  # for a connection, and for one answer
_LARGEST = 16_000_000  # bytes of one answer
_ASIDE = {"metadata", "done", "reward"}  # of observations and actions, beside what is theirs


def environment(name: str, url: str) -> EnvironmentSpec:
    """The environment that an OpenEnv server plays.

    Args:
        name: What it is to be called.
        url: The server's address.

    Raises:
        UserError: If the address is none.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"{url} is no address of an OpenEnv server", "it is of the form openenv:http://HOST:PORT")
    return EnvironmentSpec(
        *(name, "out", _ROUNDS, "reward", "first"),
        instruction=INSTRUCTION.format(name=name),
        session=lambda spec: OpenEnvSession(spec, url.rstrip("/")),
        n_train=N_TRAIN,
        n_test=N_TEST,
    )


class OpenEnvSession:
    """One episode's connection, to the server's own environment of that connection."""

    def __init__(self, spec: EnvironmentSpec, url: str) -> None:
        self.spec, self._url = spec, url
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._field, self._reward = "", 0.0

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            UserError: If the server's actions are no single text.
            EnvironmentFailure: If it does not answer.
        """
        self._reward = 0.0
        seed = self.spec.number(task)
        if self._socket is None:
            await self._connect()
        observation = await self._ask("reset", {"seed": seed})
        return Opening(INSTRUCTION.format(name=self.spec.name), text_of(observation.get("observation")))

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply.

        Raises:
            EnvironmentFailure: If the server does not answer, or with an error.
        """
        action = self.spec.take_action(reply)
        if action is None:
            return StepResult(MALFORMED, self._reward, False)
        told = await self._ask("step", {self._field: action})
        self._reward += float(told.get("reward") or 0.0)
        return StepResult(text_of(told.get("observation")), self._reward, bool(told.get("done")))

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

    async def _connect(self) -> None:
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS))
        try:
            async with self._http.get(f"{self._url}/schema") as answer:
                self._field = action_field(await answer.json(), self._url)
            self._socket = await self._http.ws_connect(f"{self._url}/ws", max_msg_size=_LARGEST)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            await self.close()
            why = str(error) or type(error).__name__
            raise EnvironmentFailure(
                f"{self.spec.name} at {self._url} does not answer as an OpenEnv server: {why}",
                "start it, or mend environments.register",
            ) from None

    async def _ask(self, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The data that a message is answered with."""
        assert self._socket is not None
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
        await self.close()
        raise EnvironmentFailure(f"{self.spec.name} at {self._url} failed at a {kind}: {why:.300}")


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
        f"actions at {url} are no single text, they want {shown}", "serve it by a server whose actions are one text"
    )


def text_of(observation: Any) -> str:
    """An observation in words: its texts, else all of it as JSON."""
    if isinstance(observation, str):
        return observation
    found = {k: v for k, v in (observation or {}).items() if k not in _ASIDE and v not in (None, "", [], {})}
    texts = [value for value in found.values() if isinstance(value, str)]
    if len(texts) == len(found) and texts:
        return "\n".join(texts)
    return json.dumps(found, ensure_ascii=False, sort_keys=True)
