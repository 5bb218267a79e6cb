"""What a data set holds, environment by environment: the tables of `atlas trajectories stats`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from atlas_ray.types import Category, Trajectory

_COUNTS = ["trajectories", "steps", "steps each (min-max)", "duplicates", "same task"]
_WORDS = ["thought", "action", "observation"]


def statistics_tables(trajectories: Iterable[Trajectory]) -> Iterator[Table]:
    """Tables with one row an environment, in alphabetic order, each narrow enough for a terminal of 80 columns.

    Words are means over steps; gold steps are shares of the steps of annotated trajectories, and have a table where
    there are any.
    """
    by_env: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_env.setdefault(trajectory.env, []).append(trajectory)
    held = sorted(by_env.items())
    meaning = "duplicates repeat an earlier conversation, `same task` an earlier task"
    yield _table("Trajectories", _COUNTS, ((env, _counts(found)) for env, found in held), meaning)
    yield _table("Words a step", _WORDS, ((env, _words(found)) for env, found in held))
    if any(t.gold for _, found in held for t in found):
        gold = ["of all steps", *Category]
        yield _table("Gold steps: the annotation in the data", gold, ((env, _gold(found)) for env, found in held))


def _table(
    title: str, headings: Sequence[str], rows: Iterable[tuple[str, list[str]]], caption: str | None = None
) -> Table:
    table = Table("environment", title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for heading in headings:
        table.add_column(heading, justify="right")
    for env, cells in rows:
        table.add_row(env, *cells)
    return table


def _counts(held: Sequence[Trajectory]) -> list[str]:
    lengths = [len(t.steps) for t in held]
    return [
        *(str(len(held)), str(sum(lengths)), f"{sum(lengths) / len(held):.1f} ({min(lengths)}-{max(lengths)})"),
        *(str(len(held) - len({t.messages for t in held})), str(len(held) - len({t.task.id for t in held}))),
    ]


def _words(held: Sequence[Trajectory]) -> list[str]:
    steps = [step for t in held for step in t.steps]
    texts = zip(*((step.thought, step.action, step.observation) for step in steps), strict=True)
    return [f"{sum(len(text.split()) for text in kind) / len(steps):.1f}" for kind in texts]


def _gold(held: Sequence[Trajectory]) -> list[str]:
    marked = [t for t in held if t.gold is not None]
    gold = Counter(mark.category for t in marked for mark in t.gold or ())
    annotated = sum(len(t.steps) for t in marked)
    share = f"{gold.total() / annotated:.0%}" if annotated else "-"
    return [share, *(str(gold[category]) for category in Category)]
