"""Looking a built-in task up by its index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from atlas_ray.errors import UserError

T = TypeVar("T")


def pick(tasks: Sequence[T], index: int, env: str) -> T:
    """Task `index` of a built-in world, from 0.

    Raises:
        UserError: If there is no such task.
    """
    if not 0 <= index < len(tasks):
        raise UserError(f"{env} has no task {index}", f"its tasks are {env}_0 to {env}_{len(tasks) - 1}")
    return tasks[index]
