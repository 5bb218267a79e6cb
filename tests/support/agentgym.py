"""A stand-in for AgentGym's servers: one small game behind the wire forms and manners of each environment's server.

In task i (0..99) the steps "go 1", "go 2", "go 3" lead to the goal; any other action changes nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOOLS = ("weather", "movie", "todo", "academia", "sheet")
TASKS, GOAL = 100, 3


@dataclass
class Game:
    """One id's state, in the units of its environment's server."""

    env: str
    index: int | None = None
    steps: int = 0
    done: bool = False
    reward: float = 0.0
    score: float = 0.0
    told: str | None = None  # first observation

    @property
    def text(self) -> str:
        if self.told is not None and self.steps == 0:
            return self.told
        return f"task {self.index}, step {self.steps}"

    def play(self, action: str) -> str:
        """Plays an action; sets `reward`, `score` and `done` as the environment's server would."""
        answer = None
        if self.env in TOOLS:
            found = re.search(r"^Action: (.*) with Action Input: (\{.*\})$", action, re.M)
            if not found:
                self.reward = 0.0 if self.env == "weather" else self.reward
                return 'Format error, please response in the format of  "Action: [your action] with Action Input: [...]'
            action = found[1]
            answer = json.loads(found[2]).get("answer")
            self.done = "finish" in found[0]
        right = action == f"go {self.steps + 1}"
        self.steps += right
        reached = right and self.steps == GOAL
        match self.env:
            case "sciworld":  # an absolute score
                self.score, self.done = round(100 * self.steps / GOAL), reached
                self.reward = round(100 / GOAL) if right else 0
            case "babyai":  # a sum; the goal reached late does not end it
                self.reward = 1 - 0.9 * 0.2 if reached else 0
                self.score += self.reward
                self.done = reached
            case "weather":  # any reward is 1
                self.reward = 1.0 if self.steps == GOAL else 0.0
            case "movie" | "todo" | "academia" | "sheet":  # a running maximum
                self.reward = max(self.reward, self.steps / GOAL if self.env == "sheet" else float(self.steps == GOAL))
            case "webshop" | "textcraft":  # carries on after the end
                self.reward, self.done = float(reached), reached
            case _:
                self.reward, self.done = float(reached), reached
        return f"Observation: {answer or self.text}\nGive me one action." if self.env in TOOLS else self.text


@dataclass
class AgentGym:
    """One environment's server. `log` holds every request: (endpoint, body or query).

    `told` are first observations by task, where they are not the game's own; `vocabulary` is wordle's, `names` are of
    alfworld's games.
    """

    env: str
    games: dict[int, Game] = field(default_factory=dict)
    log: list[tuple[str, Any]] = field(default_factory=list)
    told: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    vocabulary: list[str] = field(default_factory=lambda: ["crane", "solar"])

    def __post_init__(self) -> None:
        self.tool, self.shop = self.env in TOOLS, self.env == "webshop"
        self.key = "env_idx" if self.tool or self.shop else "id"
        names = {"maze": "game", "alfworld": "game", "wordle": "seed", "webshop": "session_id"}
        self.index_key = "id" if self.tool else names.get(self.env, "data_idx")
        # webshop's ids are random, the tools' count from 1, the others' from 0
        self.ids = iter([712_433, 9, 55_001, *range(10**6, 10**7)]) if self.shop else itertools.count(int(self.tool))
        self.closes = self.env in ("textcraft", "babyai", "sciworld", "jericho", "pddl")

    def app(self) -> web.Application:
        app = web.Application()
        prefix = f"/{self.env}" if self.env in ("maze", "wordle") else ""
        app.router.add_get("/", self._hello)
        for name, handler in {"create": self._create, "reset": self._reset, "step": self._step}.items():
            app.router.add_post(f"{prefix}/{name}", self._logged(name, handler))
        if self.closes:
            app.router.add_post(f"{prefix}/close", self._logged("close", self._close))
        app.router.add_get(f"{prefix}/observation", self._logged("observation", self._observation))
        if self.env == "wordle":
            app.router.add_get(f"{prefix}/filtered_vocab", self._logged("filtered_vocab", self._vocabulary))
        return app

    def _logged(self, name: str, handler: Any) -> Any:
        async def logged(request: web.Request) -> web.StreamResponse:
            try:
                asked = await request.json() if request.can_read_body else None
            except ValueError:
                return self._malformed()
            asked = dict(request.query) if request.method == "GET" else asked
            self.log.append((name, asked))
            return handler(asked)

        return logged

    async def _hello(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(f"This is environment {self.env}.")

    def _create(self, body: Any) -> web.StreamResponse:
        if (self.tool and "id" not in (body or {})) or (self.env == "textcraft" and body is None):
            return self._malformed()
        number = next(self.ids)
        game = self.games[number] = Game(self.env)
        if self.tool or self.shop:
            game.index = 0
            return web.json_response(number)
        if self.env == "textcraft":
            game.index = 0
            return web.json_response({"id": number, "observation": game.text, "done": False, "reward": 0})
        return web.json_response({"id": number})

    def _reset(self, body: Any) -> web.StreamResponse:
        needed = {self.key, self.index_key} | ({"world_type"} if self.env == "alfworld" else set())
        if not needed <= set(body):
            return self._malformed()
        number, index = body[self.key], body[self.index_key]
        if number not in self.games:
            return self._unknown(number)
        if not 0 <= index < TASKS:
            return (
                self._crash() if self.tool or self.shop else self._error(f"The {self.index_key} {index} is not valid.")
            )
        game = self.games[number] = Game(self.env, index, told=self.told.get(index))
        plain = {"observation": game.text, "reward": 0, "done": False}
        match self.env:
            case "webshop":
                return web.json_response(["some page", None])
            case "wordle":
                return web.json_response({"id": number, "observation": "Let's start Wordle!"})
            case "maze":
                return web.json_response({"observation": game.text})
            case "textcraft":
                return web.json_response({"id": number, **plain})
            case "babyai":
                return web.json_response({**plain, "score": 0, "deleted": False})
            case "sciworld":
                about = {"task_name": "boil", "var_num": 0, "task_description": f"Task Description: {index}"}
                return web.json_response({**about, **plain, "score": 0, "deleted": False})
            case "alfworld":
                kept = {"id": number, "observation": game.text, "task_type": self.names.get(index, "look_at_obj")}
                return web.json_response({**kept, "available_actions": ["go 1", "look"]})
        return web.json_response(self._goal(game) if self.tool else plain)

    def _step(self, body: Any) -> web.StreamResponse:
        if not {self.key, "action"} <= set(body) or not isinstance(body["action"], str):
            return self._malformed()
        number = body[self.key]
        game = self.games.get(number)
        if game is None:
            return self._unknown(number)
        if game.index is None:
            return self._error(str(number))
        if game.done and self.env not in ("textcraft", "webshop", *TOOLS):
            return self._error(f"The task with environment {number} has finished.")
        text = game.play(body["action"])
        state = {"reward": game.reward, "done": game.done}
        match self.env:
            case "webshop":
                return web.json_response({"state": text, **state, "info": None})
            case "babyai" | "sciworld":
                return web.json_response({"observation": text, **state, "score": game.score})
            case "alfworld":
                return web.json_response({"observation": text, **state, "available_actions": ["look"]})
            case "pddl" | "jericho":
                return web.json_response({"observation": text, **state, "progress": game.steps / GOAL})
        return web.json_response({"observation": text, **state})

    def _close(self, body: Any) -> web.StreamResponse:
        if body["id"] not in self.games and self.env == "sciworld":
            return self._crash()
        return web.json_response(self.games.pop(body["id"], None) is not None)

    def _observation(self, query: Any) -> web.StreamResponse:
        number = int(query[self.key])
        game = self.games.get(number)
        if game is None:
            return self._unknown(number)
        if self.tool:  # always the first one
            return web.json_response(self._goal(game))
        if game.done and self.env not in ("textcraft", "webshop"):
            return self._error(f"The task with environment {number} has finished.")
        return web.json_response(game.text)

    def _vocabulary(self, query: Any) -> web.StreamResponse:
        # what is still consistent: once something was guessed it tells too much
        assert self.games[int(query["id"])].steps == 0
        return web.json_response(self.vocabulary)

    def _goal(self, game: Game) -> str:
        if game.told is not None:
            return game.told
        asked = f"You should perform actions to accomplish the goal: {game.index}"
        return f"Now new trial starts.\n{asked}\nGive me one action."

    def _unknown(self, number: int) -> web.StreamResponse:
        return self._crash() if self.tool or self.shop else self._error(f"The id {number} is not valid.")

    def _error(self, text: str) -> web.StreamResponse:
        return web.json_response({"error": text})

    def _crash(self) -> web.StreamResponse:
        return web.Response(text="Internal Server Error", status=500)

    def _malformed(self) -> web.StreamResponse:
        return web.json_response(
            {"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required"}]}, status=422
        )
