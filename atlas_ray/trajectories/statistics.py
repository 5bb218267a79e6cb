"""What a data set holds, environment by environment: the table of `atlas trajectories stats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.table import Table

from atlas_ray.types import Category, Trajectory

_FIGURES = ["trajectories", "steps", "a trajectory (min-max)", "words: thought", "action", "observation"]
_FIGURES += ["gold steps", "duplicates", "same task"]


def statistics_table(trajectories: Iterable[Trajectory]) -> Table:
    """One row an environment, in alphabetic order.

    Words are means over steps; gold steps are shares of the steps of annotated trajectories; duplicates repeat an
    earlier conversation, and `same task` counts trajectories beyond the first of their task.
    """
    table = Table("environment", title="Trajectories")
    for heading in _FIGURES:
        table.add_column(heading, justify="right")
    table.add_column("gold categories")
    by_env: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_env.setdefault(trajectory.env, []).append(trajectory)
    for env in sorted(by_env):
        table.add_row(env, *_row(by_env[env]))
    return table


def _row(held: Sequence[Trajectory]) -> list[str]:
    steps, lengths = [step for t in held for step in t.steps], [len(t.steps) for t in held]
    texts = zip(*((step.thought, step.action, step.observation) for step in steps), strict=True)
    words = [f"{sum(len(text.split()) for text in kind) / len(steps):.1f}" for kind in texts]
    marked = [t for t in held if t.gold is not None]
    gold = Counter(mark.category for t in marked for mark in t.gold or ())
    annotated = sum(len(t.steps) for t in marked)
    return [
        *(str(len(held)), str(len(steps)), f"{len(steps) / len(held):.1f} ({min(lengths)}-{max(lengths)})", *words),
        f"{gold.total() / annotated:.0%}" if annotated else "-",
        *(str(len(held) - len({t.messages for t in held})), str(len(held) - len({t.task.id for t in held}))),
        ", ".join(f"{category} {gold[category]}" for category in Category if gold[category]) or "-",
    ]
