"""The table of environments: one row each, with the paper's round caps and metrics and AgentGym's action rules.

A row with a simulator runs built in; any other needs its server's address.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from atlas_ray.environments.builtin import blocksworld, maze, textcraft, wordle
from atlas_ray.environments.builtin.alfworld import house
from atlas_ray.environments.builtin.alfworld import simulator as alfworld
from atlas_ray.environments.builtin.babyai import simulator as babyai
from atlas_ray.environments.builtin.jericho import simulator as jericho
from atlas_ray.environments.builtin.pddl import simulator as pddl
from atlas_ray.environments.builtin.sciworld import simulator as sciworld
from atlas_ray.environments.builtin.sciworld import tasks as sciworld_tasks
from atlas_ray.environments.builtin.tools import (
    academia,
    academia_tasks,
    movie,
    movie_tasks,
    sheet,
    sheet_tasks,
    todo,
    todo_tasks,
    weather,
    weather_tasks,
)
from atlas_ray.environments.builtin.webshop import simulator as webshop
from atlas_ray.environments.builtin.webshop.goals import N_TEST, N_TRAIN
from atlas_ray.environments.protocol import EnvironmentSpec, LocalSession
from atlas_ray.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

_N_TEST = 100

_ROWS = (
    EnvironmentSpec(
        *("webshop", "in", webshop.MAX_ROUNDS, "success", "last"),
        instruction=webshop.INSTRUCTION,
        simulator=webshop.WebShop,
        n_train=N_TRAIN,
        n_test=N_TEST,
        extra="webshop",
        names_task=r"Instruction: .*?(?=, and price lower than | \[SEP\] Search|$)",
        tolerance=0.05,  # AgentGym's server draws price limits anew for every id
    ),
    EnvironmentSpec(
        *("alfworld", "in", alfworld.MAX_ROUNDS, "success", "last"),
        instruction=alfworld.INSTRUCTION,
        simulator=alfworld.AlfWorld,
        n_train=house.N_TRAIN,
        n_test=house.N_TEST,
        extra="alfworld",
    ),
    EnvironmentSpec(
        *("sciworld", "in", sciworld.MAX_ROUNDS, "reward", "last"),
        reward_scale=0.01,
        instruction=sciworld.INSTRUCTION,
        simulator=sciworld.SciWorld,
        n_train=sciworld_tasks.N_TRAIN,
        n_test=sciworld_tasks.N_TEST,
        indices=sciworld_tasks.paths,
        extra="sciworld",
        tolerance=0.01,  # AgentGym's server swaps numbers in menus; the built-in one repeats itself
    ),
    EnvironmentSpec(
        *("wordle", "in", 8, "success", "first"),
        instruction=wordle.INSTRUCTION,
        simulator=wordle.Wordle,
        n_train=500,
        n_test=_N_TEST,
        # the hidden word stays hidden; AgentGym shows every task the same words
        names_task=r"Words: .*",
        plain=wordle.vocabulary_lines,
    ),
    EnvironmentSpec(
        *("babyai", "in", 20, "reward", "single"),
        # its goal pays 1 - 0.9 * moves / limit and nothing pays before it: whatever it paid, it was reached
        success_at=1e-6,
        instruction=babyai.INSTRUCTION,
        simulator=babyai.BabyAI,
        n_train=861,
        n_test=112,
        indices=babyai.indices,
        extra="babyai",
    ),
    EnvironmentSpec(
        *("textcraft", "in", 20, "success", "single"),
        instruction=textcraft.INSTRUCTION,
        simulator=textcraft.TextCraft,
        n_train=500,
        n_test=_N_TEST,
        names_task=r"Goal: .*",  # the recipes beside those that lead there are drawn anew by each server
    ),
    EnvironmentSpec(
        *("weather", "in", 10, "success", "whole"),
        instruction=weather.TOOLBOX.instruction,
        simulator=weather_tasks.Weather,
        n_train=weather_tasks.N_TRAIN,
        n_test=weather_tasks.N_TEST,
        tolerance=0.1,  # AgentGym's server asks a live service
    ),
    EnvironmentSpec(
        *("maze", "in", 15, "success", "first"),
        instruction=maze.INSTRUCTION,
        simulator=maze.Maze,
        n_train=len(maze.tasks()) - 70,
        n_test=70,
        names_task=r"(?:The goal is|Goal) at .*",  # AgentGym's data tells the rules before it
    ),
    EnvironmentSpec(
        *("movie", "in", 12, "success", "whole"),
        instruction=movie.TOOLBOX.instruction,
        simulator=movie_tasks.Movie,
        n_train=movie_tasks.N_TRAIN,
        n_test=movie_tasks.N_TEST,
        tolerance=0.1,  # AgentGym's server asks a live service
    ),
    EnvironmentSpec(
        *("todo", "in", 15, "success", "whole"),
        instruction=todo.TOOLBOX.instruction,
        simulator=todo_tasks.Todo,
        n_train=todo_tasks.N_TRAIN,
        n_test=todo_tasks.N_TEST,
    ),
    EnvironmentSpec(
        *("academia", "out", 12, "success", "whole"),
        instruction=academia.TOOLBOX.instruction,
        simulator=academia_tasks.Academia,
        n_train=academia_tasks.N_TRAIN,
        n_test=academia_tasks.N_TEST,
    ),
    EnvironmentSpec(
        *("sheet", "out", 15, "reward", "whole"),
        instruction=sheet.TOOLBOX.instruction,
        simulator=sheet_tasks.SheetSimulator,
        n_train=sheet_tasks.N_TRAIN,
        n_test=sheet_tasks.N_TEST,
    ),
    EnvironmentSpec(
        *("jericho", "out", jericho.MAX_ROUNDS, "progress", "last"),
        instruction=jericho.INSTRUCTION,
        simulator=jericho.Jericho,
        n_train=jericho.N_TRAIN,
        n_test=jericho.N_TEST,
        extra="jericho",
    ),
    EnvironmentSpec(
        *("pddl", "out", 30, "progress", "last"),
        instruction=pddl.texts.INSTRUCTION,
        simulator=pddl.Pddl,
        n_train=300,
        n_test=60,
    ),
    EnvironmentSpec(
        *("blocksworld", "out", 20, "progress", "last"),
        instruction=blocksworld.INSTRUCTION,
        simulator=blocksworld.BlocksWorld,
        n_train=284,
        n_test=100,
    ),
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


def overview() -> Table:
    """A table of all environments, for people."""
    from rich import box
    from rich.table import Table

    columns = ("environment", "held", "carried by", "extra", "train", "test", "rounds", "metric", "replay")
    shown = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.caption, shown.caption_justify = "train, test: tasks; rounds: at most", "left"
    for spec in ENVIRONMENTS.values():
        built_in = spec.simulator is not None
        counts = (str(spec.n_train), str(spec.n_test)) if built_in else ("-", "-")
        carrier = "built in" if built_in else "a server"
        row = (
            spec.name,
            spec.held,
            carrier,
            spec.extra or "-",
            *counts,
            str(spec.max_rounds),
            spec.metric,
            f"within {spec.tolerance:.0%}" if spec.tolerance else "exact",
        )
        shown.add_row(*row)
    return shown


def local_session(name: str) -> LocalSession:
    """A session with a built-in simulator in this process.

    Raises:
        UserError: If the name is unknown or its simulator is not built in.
    """
    return LocalSession(get(name))
