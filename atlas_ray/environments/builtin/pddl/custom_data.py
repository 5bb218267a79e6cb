"""AgentBoard's own planning problems, from its files: domains and problems in PDDL, and what `test.jsonl` tells.

Flows in: AgentBoard's checkout, or a folder with `test.jsonl`, DOMAIN.pddl and DOMAIN/*.pddl; flows out: a task a row.
The n-th row of a domain is the n-th of its problem files by name, as AgentBoard counts them.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from atlas_ray.environments.agentgym.agentboard import Row, find_rows, folder_with
from atlas_ray.environments.builtin.pddl import texts
from atlas_ray.environments.builtin.pddl.play import PlanningSimulator
from atlas_ray.environments.builtin.pddl.problem import Problem
from atlas_ray.environments.builtin.pddl.strips import Domain, parse_domain, parse_problem
from atlas_ray.environments.builtin.scripted import task_at
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.protocol import Opening, Unscripted
from atlas_ray.errors import UserError

_PLACES = ("agentboard/environment/pddl_env/pddlgym/pddl", "pddl", "data/pddl", ".")
_WORDED = {"blockworld": "blocksworld"}  # whose rules and facts this project tells under another name
_MOST_BYTES = 2**20
_REMEDY = "name AgentBoard's checkout, or a folder with test.jsonl, DOMAIN.pddl and DOMAIN/*.pddl"

T = TypeVar("T")
Task = tuple[Domain, Problem, str]  # and the goal in AgentBoard's words


def load(folder: str) -> CustomData:
    """The problems that AgentBoard's rows name.

    Raises:
        UserError: If rows or files are missing, cannot be read, or do not belong together.
    """
    rows = find_rows("pddl", folder)
    if rows is None:
        raise UserError(f"there is no test.jsonl of pddl in {folder}", _REMEDY)
    place = folder_with(folder, _PLACES, "gripper.pddl") or folder_with(folder, _PLACES, "*.pddl")
    if place is None:
        raise UserError(f"the problems of AgentBoard's pddl are not in {folder}", _REMEDY)
    counted: Counter[str] = Counter()
    tasks = []
    for row in rows:
        name = _domain_of(row)
        tasks.append(_task(place, row, name, counted[name]))
        counted[name] += 1
    return CustomData(functools.partial(OwnPddl, tuple(tasks)), _parts(rows))


class OwnPddl(Unscripted, PlanningSimulator):
    """The simulator, on AgentBoard's problems."""

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self._tasks = tasks

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        domain, problem, goal = task_at(self._tasks, index, "pddl")
        self._begin(domain, problem)
        return Opening(texts.INSTRUCTION, texts.opening_text(problem.domain, goal, problem.initial))


def _parts(rows: list[Row]) -> dict[str, int]:
    """How many tasks of a domain follow each other, by its name and what distinguishes it where it comes again."""
    found: dict[str, int] = {}
    last, name = "", ""
    for row in rows:
        domain = _domain_of(row)
        if domain != last:
            last, name = domain, domain if domain not in found else f"{domain} ({len(found)})"
        found[name] = found.get(name, 0) + 1
    return found


def _domain_of(row: Row) -> str:
    known = [name for name in dict.fromkeys(row.names) if _WORDED.get(name, name) in texts.RULES]
    if len(known) != 1:
        told = ", ".join(texts.RULES)
        raise UserError(f"{row.where}: it is not plain of which domain it is", f"one of {told} in `additional_info`")
    return known[0]


def _task(place: Path, row: Row, name: str, number: int) -> Task:
    """The problem that is a domain's n-th, held against what the row tells of its goal."""
    domain = _domain(place / f"{name}.pddl")
    files = sorted((place / name).glob("*.pddl"))
    if number >= len(files):
        raise UserError(f"{row.where}: {place / name} holds {len(files)} problems, this is one more", _REMEDY)
    file = files[number]
    objects, initial, goal = _read(file, parse_problem)
    problem = Problem(_WORDED.get(name, name), {**domain.constants, **objects}, initial, goal)
    words = [set(re.findall(r"[a-z0-9_-]+", text.lower())) for text in row.subgoals]
    told = all(any(set(fact[1:]) <= said for said in words) for fact in goal)
    if len(words) != len(goal) or not told:
        raise UserError(f"{row.where}: its subgoals are not those of {file}", "take both from the same AgentBoard")
    try:
        texts.state_text(problem.domain, (*initial, *goal))
    except (KeyError, IndexError):
        raise UserError(f"{file}: facts that AgentBoard's {name} does not have", _REMEDY) from None
    return domain, problem, row.goal


@functools.cache
def _domain(file: Path) -> Domain:
    return _read(file, parse_domain)


def _read(file: Path, parse: Callable[[str], T]) -> T:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        return parse(file.read_text("utf-8"))
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} cannot be read as PDDL: {why}", _REMEDY) from None
