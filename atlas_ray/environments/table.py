"""The table of environments: one row each, with the paper's round caps and metrics and AgentGym's action rules.

A row with a world runs built in; any other needs its server's address.
"""

from __future__ import annotations

import difflib

from atlas_ray.environments import maze
from atlas_ray.environments.blocksworld import BlocksWorld
from atlas_ray.environments.maze import Maze
from atlas_ray.environments.protocol import EnvironmentSpec, LocalSession
from atlas_ray.environments.textcraft import TextCraft
from atlas_ray.environments.wordle import Wordle
from atlas_ray.errors import UserError

_N_TEST = 100

_ROWS = (
    EnvironmentSpec("webshop", "in", 10, "success", "last"),
    EnvironmentSpec("alfworld", "in", 30, "success", "last"),
    EnvironmentSpec("sciworld", "in", 30, "reward", "last", reward_scale=0.01),
    EnvironmentSpec("wordle", "in", 8, "success", "first", world=Wordle, n_train=500, n_test=_N_TEST),
    # Its goal pays 1 - 0.9 * steps / limit and nothing pays before it: 0.1 or more means that it was reached.
    EnvironmentSpec("babyai", "in", 20, "reward", "single", success_at=0.1),
    EnvironmentSpec("textcraft", "in", 20, "success", "single", world=TextCraft, n_train=500, n_test=_N_TEST),
    EnvironmentSpec("weather", "in", 10, "success", "whole"),
    EnvironmentSpec("maze", "in", 15, "success", "first", world=Maze, n_train=len(maze.tasks()) - 70, n_test=70),
    EnvironmentSpec("movie", "in", 12, "success", "whole"),
    EnvironmentSpec("todo", "in", 15, "success", "whole"),
    EnvironmentSpec("academia", "out", 12, "success", "whole"),
    EnvironmentSpec("sheet", "out", 15, "reward", "whole"),
    EnvironmentSpec("jericho", "out", 15, "progress", "last"),
    EnvironmentSpec("pddl", "out", 30, "progress", "last"),
    EnvironmentSpec("blocksworld", "out", 20, "progress", "last", world=BlocksWorld, n_train=284, n_test=100),
)

ENVIRONMENTS: dict[str, EnvironmentSpec] = {row.name: row for row in _ROWS}


def get(name: str) -> EnvironmentSpec:
    """The row of an environment.

    Raises:
        UserError: If there is none, naming the closest names.
    """
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    close = difflib.get_close_matches(name, ENVIRONMENTS) or list(ENVIRONMENTS)
    raise UserError(f"no environment is called {name!r}", f"did you mean {', '.join(close)}?")


def local_session(name: str) -> LocalSession:
    """A session with a built-in world in this process.

    Raises:
        UserError: If the name is unknown or its world is not built in.
    """
    return LocalSession(get(name))
