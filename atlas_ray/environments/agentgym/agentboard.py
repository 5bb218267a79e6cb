"""AgentBoard's own tasks of PDDL and Jericho, which the paper's held-out columns are about (App. A).

Flows in: AgentBoard's checkout or data set as the user has it; flows out: the rows of its `test.jsonl`, and rows of the
table of environments that play them. AgentBoard plays in its own process and has no server.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.errors import UserError

NAMES = ("jericho", "pddl")
_MOST_BYTES = 2**24
_MARKED = re.compile(r"\s*Subgoal \d+:\s*")  # the data set tells the subgoals of a row in one text, too


@dataclass(frozen=True, slots=True)
class Row:
    """One task.

    Attributes:
        where: File and line, for messages.
        goal: What the player is told to reach.
        subgoals: Texts; progress is the share of them that was reached.
        names: What the row's additional information says: of the domain or the game.
    """

    where: str
    goal: str
    subgoals: tuple[str, ...]
    names: tuple[str, ...]


def find_rows(name: str, given: str) -> list[Row] | None:
    """The rows of an environment's `test.jsonl`; None where there is no such file.

    Args:
        name: `jericho` or `pddl`.
        given: AgentBoard's checkout or data set, the environment's folder in it, or the file itself.

    Raises:
        UserError: If a row is not of AgentBoard's form.
    """
    root = Path(given).expanduser()
    places = (root / "data" / name / "test.jsonl", root / name / "test.jsonl", root / "test.jsonl", root)
    file = next((place for place in places if place.is_file()), None)
    if file is None or file.suffix != ".jsonl":
        return None
    if file.stat().st_size > _MOST_BYTES:
        raise UserError(f"{file}: too large for AgentBoard's tasks", "name the folder that holds data/*/test.jsonl")
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {error}", "fetch it again") from None
    rows = [_row(f"{file}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise UserError(f"{file} holds no task", "fetch it again")
    return rows


def _row(where: str, line: str) -> Row:
    wrong = UserError(f"{where}: no task of AgentBoard's", "a row has `goal`, `subgoals` and `additional_info`")
    try:
        told: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(told, dict):
        raise wrong
    goal, subgoals, more = told.get("goal"), told.get("subgoals"), told.get("additional_info") or {}
    if isinstance(subgoals, str):
        subgoals = [part for part in _MARKED.split(subgoals) if part]
    if not isinstance(goal, str) or not isinstance(subgoals, list) or not isinstance(more, dict):
        raise wrong
    if not subgoals or not all(isinstance(text, str) and text.strip() for text in subgoals):
        raise wrong
    return Row(where, goal.strip(), tuple(subgoals), tuple(v for v in more.values() if isinstance(v, str)))


def folder_with(given: str, below: Iterable[str], wanted: str) -> Path | None:
    """The first folder of some that holds a file of such a name.

    Args:
        given: AgentBoard's checkout or data set.
        below: Where in it.
        wanted: A pattern.
    """
    root = Path(given).expanduser()
    root = root.parent if root.is_file() else root
    return next((root / place for place in below if any((root / place).glob(wanted))), None)


@functools.cache
def material(name: str, given: str) -> CustomData:
    """AgentBoard's tasks of an environment, read and checked.

    Raises:
        UserError: If the environment is none of AgentBoard's two, or its tasks are not there or cannot be played.
    """
    if name not in NAMES:
        raise UserError(f"environments.agentboard: {name} is not taken from AgentBoard", f"it has {', '.join(NAMES)}")
    if find_rows(name, given) is None:
        raise UserError(
            f"environments.agentboard.{name}: there is no test.jsonl of {name} in {given}",
            f"name AgentBoard's checkout or data set, which holds data/{name}/test.jsonl",
        )
    found: CustomData = import_module(str(registry.get(name).custom_data)).load(given)
    return found


def with_agentboard(spec: EnvironmentSpec, config: EnvironmentsConfig) -> EnvironmentSpec:
    """An environment's row, with AgentBoard's tasks in place of the built-in ones where the user has them.

    Raises:
        UserError: As `material`.
    """
    given = config.agentboard.get(spec.name)
    if given is None:
        return spec
    custom = material(spec.name, given)
    return replace(spec, simulator=custom.simulator, n_train=0, n_test=sum(custom.parts.values()))


def absolute(config: EnvironmentsConfig) -> EnvironmentsConfig:
    """The same with whole paths, for processes that work elsewhere."""
    places = {name: str(Path(given).expanduser().absolute()) for name, given in config.agentboard.items()}
    return config.model_copy(update={"agentboard": places})
