"""Serves a built-in simulator as OpenEnv's clients expect it: a WebSocket is a session, texts go both ways.

Flows in: messages `reset` (its seed is the task's number), `step` (`message`: the model's reply), `state` and `close`;
flows out: observations (`text`, and after a reset `instruction`), the reward that a step has added, and whether the
episode is over.
"""

from __future__ import annotations

import json
from typing import Any

from aiohttp import WSMsgType, web
from pydantic import BaseModel, Field

from atlas_ray.environments.http.request_limits import MAX_BODY
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.types import Task


class Action(BaseModel):
    """What a client sends as a step."""

    message: str = Field(description="a reply with the action, as the instruction asks for it")
    metadata: dict[str, Any] = {}


class Observation(BaseModel):
    """What it is answered."""

    text: str
    instruction: str = Field("", description="after a reset: how to play")


def add_openenv(app: web.Application, spec: EnvironmentSpec, max_sessions: int) -> None:
    """Adds OpenEnv's endpoints for one environment, with so many connections at once.

    Raises:
        UserError: If it is not built in, or its extra is missing.
    """
    LocalSession(spec)  # says at once what is missing
    playing = set[web.WebSocketResponse]()
    schemas = {"action": Action.model_json_schema(), "observation": Observation.model_json_schema(), "state": {}}

    async def schema(_: web.Request) -> web.Response:
        return web.json_response(schemas)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"})

    async def play(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=MAX_BODY, heartbeat=30.0)
        await socket.prepare(request)
        if len(playing) >= max_sessions:
            await socket.send_json(_error("CAPACITY_REACHED", f"the server is full, it plays {max_sessions} episodes"))
            await socket.close()
            return socket
        playing.add(socket)
        episode = _Episode(LocalSession(spec))
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    continue
                answer = await episode.answer(message.data)
                if answer is None:
                    break
                await socket.send_json(answer)
        finally:
            playing.discard(socket)
            await episode.session.close()
            await socket.close()
        return socket

    app.router.add_get("/schema", schema)
    app.router.add_get("/health", health)
    app.router.add_get("/ws", play)


class _Episode:
    """One connection's."""

    def __init__(self, session: LocalSession) -> None:
        self.session, self._task, self._steps, self._reward = session, "", 0, 0.0

    async def answer(self, text: str) -> dict[str, Any] | None:
        """The answer to a message; None to the last."""
        try:
            message = json.loads(text)
            kind, data = message["type"], message.get("data") or {}
            if kind == "close":
                return None
            if kind == "reset":
                return await self._reset(int(data.get("seed") or 0))
            if kind == "step":
                return await self._step(Action.model_validate(data))
            if kind == "state":
                return {"type": "state", "data": {"episode_id": self._task, "step_count": self._steps}}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return _error("VALIDATION_ERROR", str(error))
        except AtlasError as error:
            return _error("EXECUTION_ERROR", error.what)
        return _error("UNKNOWN_TYPE", f"Unknown message type: {kind}")

    async def _reset(self, number: int) -> dict[str, Any]:
        name = self.session.spec.name
        task = Task(name, f"{name}_{number}")
        opening = await self.session.reset(task)
        self._task, self._steps, self._reward = task.id, 0, 0.0
        return _observation(Observation(text=opening.observation, instruction=opening.instruction), None, False)

    async def _step(self, action: Action) -> dict[str, Any]:
        if not self._task:
            raise UserError("there was no reset", "send one first")
        result = await self.session.step(action.message)
        added, self._reward = result.reward - self._reward, result.reward
        self._steps += 1
        reward = added * self.session.spec.reward_scale
        return _observation(Observation(text=result.observation), reward, result.done)


def _observation(told: Observation, reward: float | None, done: bool) -> dict[str, Any]:
    return {"type": "observation", "data": {"observation": told.model_dump(), "reward": reward, "done": done}}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"type": "error", "data": {"message": message, "code": code}}
