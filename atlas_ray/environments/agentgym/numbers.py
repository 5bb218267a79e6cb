"""Which number a task has at the environment that plays it: most item ids carry it, ALFWorld's own are looked up.

Flows in: tasks, and where their environments are served; flows out: the tasks with their numbers, or sentences on those
that have none. Nothing is asked of a server.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.alfworld_mappings import REMEDY, game_of, numbers
from atlas_ray.errors import UserError
from atlas_ray.types import Task


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
