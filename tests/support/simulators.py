"""The built-in environments, episodes of their scripted agents, and actions to try on any of them."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

from atlas_ray.environments.builtin.tools import academia, movie, sheet, todo, weather
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import Simulator
from atlas_ray.environments.registry import get
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.types import Category, Task

LAPTOP = ("maze", "textcraft", "wordle", "blocksworld")  # small language, thousands of episodes a second
TOOLS = ("weather", "movie", "todo", "academia", "sheet")
BUILT_IN = (*LAPTOP, "babyai", "alfworld", "sciworld", "pddl", "webshop", "jericho", *TOOLS)
ALL = ("webshop", "alfworld", "sciworld", "wordle", "babyai", "textcraft", "weather", "maze", "movie", "todo")
ALL += ("academia", "sheet", "jericho", "pddl")
# test tasks that the fast set plays; all tasks of the others
PLAYED = {"alfworld": 6, "sciworld": 10, "babyai": 10, "pddl": 60, "webshop": 100, "jericho": 40} | dict.fromkeys(
    TOOLS, 100
)


@dataclass
class Played:
    """One scripted episode: the replies and observations in turn, and each step's (category, weight)."""

    task: str
    replies: list[str]
    observations: list[str]
    marks: list[tuple[Category | None, float]]
    success: bool


async def play(task: Task, role: str, seed: int = 0) -> Played:
    session = LocalSession(get(task.env))
    opening = await session.reset(task)
    conversation = ScriptedPolicy(role, seed).open(task, opening.messages(), Sampling())  # type: ignore[arg-type]
    played = Played(task.id, [], [opening.observation], [], False)
    for _ in range(session.spec.max_rounds):
        reply = await conversation.generate(0)
        result = await session.step(reply.text)
        played.replies.append(reply.text)
        played.observations.append(result.observation)
        played.marks.append((reply.category, reply.weight))
        if result.done:
            break
    played.success = session.spec.scale(result.reward) >= session.spec.success_at
    return played


@functools.cache
def all_played(env: str, role: str) -> list[Played]:
    few = PLAYED.get(env)
    tasks = get(env).tasks("test", few) if few else get(env).tasks("test") + get(env).tasks("train")

    async def play_all() -> list[Played]:
        return [await play(task, role) for task in tasks]

    return asyncio.run(play_all())


def make_simulator(env: str) -> Simulator:
    made = get(env).simulator
    assert made is not None
    return made()


BOXES = {box.name: box for box in (weather.TOOLBOX, movie.TOOLBOX, todo.TOOLBOX, academia.TOOLBOX, sheet.TOOLBOX)}
REAL_ACTIONS = (
    *("", "move up", "MOVE left ", "get 1 log", "get 99 moon", "craft 2 plank using 1 log", "inventory", "l i g h t"),
    *("sound", "pickup red", "stack red on blue", "putdown red", "unstack red from blue", "__import__('os')", "١"),
    *("go to red ball 1", "pick up red ball 1", "toggle", "check available actions", "move roomA roomB", "look around"),
    *("Action: get_projects with Action Input: {}", 'Action: finish with Action Input: {"answer": "yes"}'),
    *("search[red shirts]", "click[buy now]", "click[next >]", "search[", "search[text:*]"),
    *("focus on agent", "pick up cup", "0", "open door to kitchen", "go to kitchen", "connect air to air", "wait"),
    *("pick ball1 rooma left", "grasp left shot1", "open boot", "fetch wrench boot", "check valid actions"),
)
HUGE_ACTIONS = ["x" * 2**20, "get " * 2**18, "\ud800\x00", " " * 2**20, "craft 1 a using " + "1 a, " * 2**18]
