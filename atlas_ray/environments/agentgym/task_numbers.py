"""Which number a task has at the environment that plays it: most item ids carry it, ALFWorld's games are looked up.

Data calls a game by task and trial (`look_at_obj_in_light-Book-None-DeskLamp-303_trial_T20190909_085406_916808`), a
server by its number. Flows in: tasks, and AgentGym's `mappings_train.json` and `mappings_test.json` (lists of
`item_id`, `task_type`, `task_id`) or the folder that `atlas serve alfworld --data` serves; flows out: the tasks with
their numbers, or sentences on those that have none. Nothing is asked of a server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.errors import UserError
from atlas_ray.types import Task

_TASK = "(?:look_at_obj|pick_and_place|pick_clean|pick_cool|pick_heat|pick_two_obj)[a-z_]{0,40}-[^/]{1,120}?"
_GAME = re.compile(rf"(?:^|[/_])({_TASK})[/_]+(trial_T\d{{8}}_\d{{6}}_\d{{6}})(?=[/_.]|$)")
_FILES = ("mappings_train.json", "mappings_test.json")
_PLACES = (".", "configs", "agentenv-alfworld/configs")  # of the files, in a folder that is given
REMEDY = "environments.alfworld_mappings takes AgentGym's checkout, or its mappings_train.json and mappings_test.json"


def game_of(item_id: str) -> str | None:
    """The game that an item id names, as TASK/TRIAL; None where it names none, e.g. `alfworld_17`."""
    found = _GAME.search(item_id)
    return f"{found[1]}/{found[2]}" if found else None


def numbers(paths: str | Sequence[str]) -> dict[str, int]:
    """The number of each game, by TASK/TRIAL.

    Args:
        paths: Mapping files, or folders that hold them; or the folder of games that our own server serves.

    Raises:
        UserError: If there is no such file, one is no mapping, or two games have one number.
    """
    return _numbers((paths,) if isinstance(paths, str) else tuple(paths))


@cache
def _numbers(paths: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    games: dict[int, str] = {}
    for given in paths:
        path = Path(given).expanduser()
        if (path / "json_2.1.1").is_dir():
            return _served(str(path))
        for file in _mapping_files(path):
            for game, number in _read(file):
                if games.setdefault(number, game) != game:
                    raise UserError(f"{file}: {game} has number {number}, as {games[number]} does", REMEDY)
                found.setdefault(game, number)
    return found


def _served(folder: str) -> dict[str, int]:
    """The games of a folder as our own server numbers them."""
    from atlas_ray.environments.builtin.alfworld.custom_data import games_in

    _, games = games_in(folder)
    return {f"{file.parent.parent.name}/{file.parent.name}": number for number, file in enumerate(games)}


def _mapping_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for place in _PLACES for name in _FILES if (file := path / place / name).is_file()]
    if not found:
        what = f"holds no {' or '.join(_FILES)}" if path.is_dir() else "does not exist"
        raise UserError(f"environments.alfworld_mappings: {path} {what}", REMEDY)
    return found


def _read(file: Path) -> list[tuple[str, int]]:
    try:
        rows = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", REMEDY) from None
    except (ValueError, RecursionError):
        raise UserError(f"{file} is no JSON", REMEDY) from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file} holds no list of games", REMEDY)
    return [_entry(file, place, row) for place, row in enumerate(rows, 1)]


def _entry(file: Path, place: int, row: Any) -> tuple[str, int]:
    given = row if isinstance(row, dict) else {}
    number, game = given.get("item_id"), game_of(f"{given.get('task_type')}/{given.get('task_id')}")
    if game is None or not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise UserError(f"{file}, entry {place}: no item_id with task_type and task_id of a game", REMEDY)
    return game, number


def numbered(task: Task, config: EnvironmentsConfig) -> Task:
    """The task with its number, where its id does not carry it.

    Raises:
        UserError: If the environment is unknown, or nothing tells the number.
    """
    spec, game = registry.get(task.env), game_of(task.item_id)
    if task.index is not None:
        return task
    if spec.name != "alfworld" or game is None:
        spec.index(task.item_id)
        return task
    where = f"alfworld: item id {task.item_id[:200]!r}"
    if spec.name not in config.servers:
        raise UserError(
            f"{where} names a game of ALFWorld's, and the built-in simulator has others",
            "name the server that has it in environments.servers.alfworld",
        )
    if config.alfworld_mappings is None:
        raise UserError(f"{where} names a game, and nothing tells its number at the server", REMEDY)
    number = numbers(config.alfworld_mappings).get(game)
    if number is None:
        raise UserError(f"{where} names a game that environments.alfworld_mappings does not tell of", REMEDY)
    return replace(task, index=number)


def unplayable(tasks: Iterable[Task], config: EnvironmentsConfig) -> list[UserError]:
    """What keeps tasks from being played, each reason once with how many tasks it is true of."""
    mappings: list[UserError] = []
    if config.alfworld_mappings is not None:
        try:
            numbers(config.alfworld_mappings)
        except UserError as error:
            mappings.append(error)
    found: dict[tuple[str, str], list[UserError]] = {}
    for task in tasks:
        if mappings and game_of(task.item_id):
            continue
        try:
            numbered(task, config)
        except UserError as error:
            found.setdefault((task.env, error.remedy), []).append(error)
    return mappings + [_of_all(errors) for errors in found.values()]


def _of_all(errors: list[UserError]) -> UserError:
    more = f"; {len(errors) - 1} more are like it" if len(errors) > 1 else ""
    return UserError(errors[0].what + more, errors[0].remedy)
