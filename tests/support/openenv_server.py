"""A server made with OpenEnv's own library, in a process of its own: guess the number that the seed draws."""

from __future__ import annotations

import random
import socket
import sys
from typing import Any

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Guess(Action):
    message: str


class Told(Observation):
    text: str = ""


class Guessing(Environment):  # type: ignore[misc]
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.number, self.tries = 0, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Told:
        self.number, self.tries = random.Random(seed).randint(1, 7), 0
        return Told(text="A number from 1 to 7?", done=False)

    def step(self, action: Guess, **_: Any) -> Told:
        self.tries += 1
        if action.message == "break":
            raise RuntimeError("it broke")
        given = int(action.message) if action.message.isdecimal() else 0
        if given == self.number:
            return Told(text="That is it.", done=True, reward=1.0)
        return Told(text="Higher." if given < self.number else "Lower.", done=False, reward=0.0)

    @property
    def state(self) -> State:
        return State(step_count=self.tries)


app = create_fastapi_app(Guessing, Guess, Told, max_concurrent_envs=64)

if __name__ == "__main__":
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    config = uvicorn.Config(app, log_level="error")
    uvicorn.Server(config).run(sockets=[listening])
    sys.exit(0)
