"""Tools alone: add up to the number that the seed draws. It plays one episode at a time, as most packages do."""

import random
from typing import Any

from fastmcp import FastMCP
from openenv.core.env_server import Action, Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation


class Counting(MCPEnvironment):
    def __init__(self) -> None:
        server = FastMCP("counting")
        self.total, self.wanted = 0, 0

        @server.tool
        def add(number: int) -> str:
            """Adds a number."""
            self.total += number
            return f"The total is {self.total} of {self.wanted}."

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **_: Any) -> Observation:
        self.total, self.wanted = 0, random.Random(seed).randint(3, 9)
        return Observation(done=False)

    async def step_async(self, action: Action, timeout_s: float | None = None, **others: Any) -> Observation:
        told = await super().step_async(action, timeout_s=timeout_s, **others)
        if isinstance(action, CallToolAction) and self.total >= self.wanted:
            told.done, told.reward = True, float(self.total == self.wanted)
        return told

    def _step_impl(self, action: Action, timeout_s: float | None = None, **_: Any) -> Observation:
        return Observation(done=False)

    @property
    def state(self) -> State:
        return State(step_count=self.total)


app = create_fastapi_app(Counting, CallToolAction, CallToolObservation)
