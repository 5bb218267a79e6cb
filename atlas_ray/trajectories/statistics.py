"""What a data set holds, environment by environment: for `atlas trajectories stats` and the report.

Flows in: trajectories; flows out: one `Statistics` per environment, and a table of them for the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.table import Table

from atlas_ray.types import Category, Trajectory


@dataclass(slots=True)
class Statistics:
    """Counts over the trajectories of one environment.

    Attributes:
        lengths: How many trajectories have so many steps.
        thought_words, action_words, observation_words: Words in all steps together.
        gold_trajectories: Trajectories that carry the expert's annotation.
        gold_steps: Steps that it marks; `annotated_steps` counts all steps of those trajectories.
        duplicates: Trajectories whose conversation repeats an earlier one's.
        repeated_tasks: Trajectories beyond the first of their task.
    """

    env: str
    trajectories: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    thought_words: int = 0
    action_words: int = 0
    observation_words: int = 0
    gold_trajectories: int = 0
    gold_steps: int = 0
    annotated_steps: int = 0
    categories: Counter[Category] = field(default_factory=Counter)
    duplicates: int = 0
    repeated_tasks: int = 0

    @property
    def steps(self) -> int:
        """All steps of all trajectories."""
        return sum(n * count for n, count in self.lengths.items())

    @property
    def mean_steps(self) -> float:
        """Steps a trajectory."""
        return self.steps / self.trajectories if self.trajectories else 0.0

    @property
    def gold_fraction(self) -> float | None:
        """Share of annotated trajectories' steps that are marked, or None without annotations."""
        return self.gold_steps / self.annotated_steps if self.annotated_steps else None

    def per_step(self, words: int) -> float:
        """A sum of words as a mean over steps."""
        return words / self.steps if self.steps else 0.0


def statistics(trajectories: Iterable[Trajectory]) -> dict[str, Statistics]:
    """Statistics by environment, in alphabetic order."""
    found: dict[str, Statistics] = {}
    conversations: set[tuple[str, int]] = set()
    tasks: set[str] = set()
    for trajectory in trajectories:
        at = found.setdefault(trajectory.env, Statistics(trajectory.env))
        steps = trajectory.steps
        at.trajectories += 1
        at.lengths[len(steps)] += 1
        for step in steps:
            at.thought_words += len(step.thought.split())
            at.action_words += len(step.action.split())
            at.observation_words += len(step.observation.split())
        if trajectory.gold is not None:
            at.gold_trajectories += 1
            at.gold_steps += len(trajectory.gold)
            at.annotated_steps += len(steps)
            at.categories.update(g.category for g in trajectory.gold)
        key = (trajectory.env, hash(trajectory.messages))
        at.duplicates += key in conversations
        conversations.add(key)
        at.repeated_tasks += trajectory.task.id in tasks
        tasks.add(trajectory.task.id)
    return {env: found[env] for env in sorted(found)}


def statistics_table(trajectories: Iterable[Trajectory]) -> Table:
    """One row an environment; words are means over steps."""
    table = Table(title="Trajectories")
    table.add_column("environment")
    for heading in (
        "trajectories",
        "steps",
        "a trajectory (min-max)",
        "words: thought",
        "action",
        "observation",
        "gold steps",
        "duplicates",
        "same task",
    ):
        table.add_column(heading, justify="right")
    table.add_column("gold categories")
    for at in statistics(trajectories).values():
        table.add_row(
            at.env,
            str(at.trajectories),
            str(at.steps),
            f"{at.mean_steps:.1f} ({min(at.lengths)}-{max(at.lengths)})",
            f"{at.per_step(at.thought_words):.1f}",
            f"{at.per_step(at.action_words):.1f}",
            f"{at.per_step(at.observation_words):.1f}",
            "-" if at.gold_fraction is None else f"{at.gold_fraction:.0%}",
            str(at.duplicates),
            str(at.repeated_tasks),
            ", ".join(f"{c.value} {at.categories[c]}" for c in Category if at.categories[c]) or "-",
        )
    return table
