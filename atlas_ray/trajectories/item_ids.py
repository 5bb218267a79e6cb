"""Item ids: the environment that one names, and ids of trajectories that are unique in a data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any

from atlas_ray.environments.agentgym.task_numbers import game_of
from atlas_ray.environments.registry import ENVIRONMENTS
from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_text

NOT_PLAYED = ("sqlgym", "webarena", "searchqa")  # AgentGym's others: its data names them, and nothing here plays them
_NUMBER = re.compile(r"#[1-9][0-9]*$")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COUNTED = re.compile(r"[_-]?\d.*$", re.DOTALL)  # what tells the tasks of an environment apart
_LONGEST = 60  # characters of an unknown name


class UnknownEnvironment(DataError):
    """A row of an environment that is not known here; `name` is what its id calls it."""

    def __init__(self, item_id: str) -> None:
        remedy = "rows of an environment of your own carry a key `env`"
        super().__init__(f"item id {item_id!r} names no known environment", remedy)
        self.name = (_COUNTED.sub("", item_id) or item_id)[:_LONGEST]


def environment_of(item_id: str) -> str:
    """The environment that an item id names, e.g. `maze` for `lmrlgym_maze_3`.

    Raises:
        UnknownEnvironment: If its prefix is unknown.
    """
    names = tuple(ENVIRONMENTS)
    if found := _beginning(names).match(item_id):
        return found[1]
    others = _other_prefixes(names)
    if found := _beginning(tuple(others)).match(item_id):
        return others[found[1]]
    if game_of(item_id):  # in a folder, as ALFWorld's own files are
        return "alfworld"
    raise UnknownEnvironment(item_id)


@cache
def _beginning(prefixes: tuple[str, ...]) -> re.Pattern[str]:
    """The longest of some prefixes; AgentGym puts the collection before some names."""
    return re.compile(rf"(?:lmrlgym_|tool_)?({'|'.join(sorted(prefixes, key=len, reverse=True))})(?![A-Za-z0-9])")


@cache
def _other_prefixes(names: tuple[str, ...]) -> dict[str, str]:
    return {prefix: name for name in names for prefix in ENVIRONMENTS[name].item_prefixes}


def task_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Environment and item id of a row: of its keys `env`, else as the item id says, and `item_id`, else `id`.

    Raises:
        UnknownEnvironment: If the id names an environment that is not known here, and no `env` says otherwise.
        DataError: If it has no item id.
    """
    item_id = row.get("id") if row.get("item_id") is None else row["item_id"]
    if item_id is None:
        raise DataError("the row has no item_id", "name its task, e.g. maze_17")
    if isinstance(item_id, int):
        raise DataError(f"the item_id is a bare number, {item_id}", "name the task with its environment, e.g. maze_17")
    if not check_text(item_id, "item_id").strip():
        raise DataError("the item_id is empty")
    env = row.get("env")
    if env is None:
        return environment_of(item_id), item_id
    if not isinstance(env, str) or not _NAME.fullmatch(env):
        raise DataError(f"env {env!r} is not a lower-case name")
    return env, item_id


def own_id(row: Mapping[str, Any], env: str, item_id: str) -> str:
    """The row's own id where it is one of ours for this task (ShareGPT's `id` is the item's), else the task's."""
    task, given = f"{env}/{item_id}", row.get("id")
    ours = isinstance(given, str) and given.startswith(f"{task}#") and _NUMBER.sub("", given) == task
    return str(given) if ours else task


class UniqueIds:
    """The ids in use in one data set; a task's further trajectories get `#2`, `#3`, ... in the order of asking.

    Args:
        limit: Trajectories of each environment that get an id; None: all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._taken = Counter[str]()
        self._used: set[str] = set()
        self._number: dict[str, int] = {}

    def take(self, env: str, wanted: str) -> str | None:
        """An id that is in use from now on: `wanted`, or the first of its task's that is free; None over the limit."""
        if self._limit is not None and self._taken[env] >= self._limit:
            return None
        self._taken[env] += 1
        found = self.free(wanted)
        self._used.add(found)
        return found

    def free(self, wanted: str) -> str:
        """The id that `take` would give."""
        if wanted not in self._used:
            return wanted
        task = _NUMBER.sub("", wanted)
        number = self._number.get(task, 2)
        while f"{task}#{number}" in self._used:
            number += 1
        self._number[task] = number
        return f"{task}#{number}"
