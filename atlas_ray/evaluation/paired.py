"""How far two sets of episodes of the same tasks differ, task by task.

Flows in: episodes of both; flows out: per environment one difference in what the paper's tables print, with limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from atlas_ray.environments import registry
from atlas_ray.evaluation.intervals import Interval, paired_difference
from atlas_ray.evaluation.metrics import by_task
from atlas_ray.types import Episode


@dataclass(frozen=True, slots=True)
class Comparison:
    """`ours` minus `theirs` in one environment, averaged over the tasks that count for both.

    Attributes:
        ci95: Limits for matched pairs (adjusted Wald, Agresti and Min 2005).
        outcome: "none" where the limits hold 0.
    """

    ours: str
    theirs: str
    env: str
    metric: Literal["success", "reward", "progress"]
    tasks: int
    difference: float
    ci95: tuple[float, float]
    outcome: Literal["better", "worse", "none"]


def difference(
    ours: Sequence[Episode], theirs: Sequence[Episode], env: str, metric: Literal["success", "reward", "progress"]
) -> tuple[Interval, int] | None:
    """`ours` minus `theirs` in one environment, and over how many tasks; None where no task counts for both."""
    left, right = (by_task([e for e in side if e.env == env], metric) for side in (ours, theirs))
    common = sorted(left.keys() & right.keys())
    return (paired_difference([left[task] - right[task] for task in common]), len(common)) if common else None


def compare(ours: str, theirs: str, left: Sequence[Episode], right: Sequence[Episode]) -> Iterator[Comparison]:
    """Environment by environment, where both have tasks that count."""
    for env in dict.fromkeys(e.env for e in left):
        metric = registry.get(env).metric
        if (made := difference(left, right, env, metric)) is not None:
            found, tasks = made
            yield Comparison(ours, theirs, env, metric, tasks, found.value, (found.low, found.high), found.outcome)


def compare_all(episodes: Mapping[str, Sequence[Episode]]) -> list[Comparison]:
    """Every later arm against every earlier one."""
    return [
        comparison
        for theirs, ours in combinations(episodes, 2)
        for comparison in compare(ours, theirs, episodes[ours], episodes[theirs])
    ]
