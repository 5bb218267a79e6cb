"""What the paper prints, as data: Tables 1 to 7 cell by cell, and its environments (package data; figures only).

Flows in: `printed.json`; flows out: `PrintedTable`s. Figures are per cent, as printed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

TABLES = tuple(f"table{n}" for n in range(1, 8))
AVERAGES = {"held_in_avg": "in", "held_out_avg": "out"}


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """One row of a table.

    Attributes:
        key: Names it in recipes, e.g. `atlas`, `random-30`, `mistral/all`.
        section: The heading above it, or "".
        figures: By column, in per cent; a column that the paper leaves empty is not there.
        quoted: Columns whose figures the paper takes from elsewhere.
        behind: By environment, what the averages are of where the table prints these alone (Table 3, from 1 and 7).
        against: Key of the row that the paper's text (sections 4.2 to 4.6) holds it against, or None.
    """

    key: str
    label: str
    section: str
    figures: Mapping[str, float]
    quoted: frozenset[str] = frozenset()
    against: str | None = None
    behind: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PrintedTable:
    """A table as printed. Columns are environments, and `held_in_avg` and `held_out_avg` behind each group's."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[PrintedRow, ...]
    notes: tuple[str, ...]


@cache
def _results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(resources.files(__package__).joinpath("printed.json").read_text())
    return found


def eval_tasks(env: str) -> int:
    """Test tasks of an environment in the paper's evaluation (AgentEval's; AgentBoard's for Jericho and PDDL).

    Raises:
        KeyError: If the paper does not have it.
    """
    return int(_results()["environments"][env]["eval_tasks"])


@cache
def printed(table: str) -> PrintedTable:
    """A table, by `table1` to `table7`."""
    given = _results()["tables"][table]
    rows = tuple(_row(row, given["columns"]) for row in given["rows"])
    return PrintedTable(table, given["title"], tuple(given["columns"]), rows, tuple(given["notes"]))


def _row(given: Mapping[str, Any], columns: list[str]) -> PrintedRow:
    figures = {column: value for column, value in zip(columns, given["figures"], strict=True) if value is not None}
    other, _, key = given.get("behind", "").partition("/")
    behind = next(row.figures for row in printed(other).rows if row.key == key) if other else {}
    quoted = frozenset(given.get("quoted", ()))
    return PrintedRow(
        given["key"], given["label"], given.get("section", ""), figures, quoted, given.get("against"), behind
    )
