"""What the built-in simulators share: a task by its index, a novice's misconceptions, an expert's wasteful habits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from atlas_ray.errors import UserError
from atlas_ray.types import Category

T = TypeVar("T")


def task_at(tasks: Sequence[T], index: int, env: str) -> T:
    """Task `index` of a built-in simulator, from 0.

    Raises:
        UserError: If there is no such task.
    """
    if not 0 <= index < len(tasks):
        raise UserError(f"{env} has no task {index}", f"its tasks are {env}_0 to {env}_{len(tasks) - 1}")
    return tasks[index]


def errs(rng: random.Random, share: float, *situation: object) -> bool:
    """Whether a novice errs in a decisive situation.

    A novice holds misconceptions: it nearly always errs in a fixed share of situations and nearly never in the rest.
    Errors spread evenly would leave the right action the likeliest one, and a model trained on them nearly an expert.

    Args:
        share: Share of situations that the novice misjudges.
        *situation: What the novice goes by.
    """
    misjudged = random.Random(f"novice/{situation}").random() < share
    return rng.random() < (0.95 if misjudged else 0.03)


def habitual(rng: random.Random, share: float, cost: float, *situation: object) -> bool:
    """Whether an expert of wasteful habits makes a detour in a situation.

    Habits hang on the situation, as a novice's misconceptions do: what is done now and then is no habit, and a model
    that takes the likeliest action would not copy it.

    Args:
        share: Of all steps, how many the detours take, recovery included.
        cost: Steps that a detour takes.
        *situation: What the habit goes by.
    """
    return errs(rng, min(1.0, share / (1 - share) / cost), "detour", *situation)


def any_category(rng: random.Random, category: Category | None) -> Category | None:
    """Whose phrases a novice uses in a situation: half of the time any kind's.

    A base whose moves hang on the phrase before them loses its routine as soon as it is taught to speak as at
    decisions alone.
    """
    return rng.choice((None, *Category)) if rng.random() < 0.5 else category
