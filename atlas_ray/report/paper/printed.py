"""What the paper prints, as data: Tables 1 to 7 cell by cell, and its environments (package data; figures only).

Flows in: `paper_results.json`; flows out: `PrintedTable`s. Figures are per cent, as printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

TABLES = tuple(f"table{n}" for n in range(1, 8))
AVERAGES = {"held_in_avg": "in", "held_out_avg": "out"}
_NOTES = {
    "table1": (
        "The paper quotes the closed models' held-in figures from AgentGym.",
        "The paper prints 6.00 for Phi-3.5 in Wordle, which is no share of 25 tasks.",
        "ATLAS in SciWorld is 42.02 here and 42.01 in Tables 2 and 7, as printed.",
    ),
    "table2": ("ATLAS in SciWorld is 42.01 here and 42.02 in Table 1, as printed.",),
    "table6": ("The paper's figures from scratch are of 100 tasks, and not Table 1's of the same model.",),
    "table7": (
        "The paper prints the headings of Sheet and Academia the other way round; here each figure stands under its "
        "own environment, as in Table 1.",
        "Critical steps at 30 % are Table 1's row of ATLAS, but for SciWorld: 42.01 here, 42.02 there, as printed.",
    ),
}
_ROUNDING = "The paper's averages are as printed; recomputed from its cells they differ by at most 0.02."
_TITLES = {
    "table1": "Table 1: ATLAS, models as they are, and other fine-tuned agents",
    "table2": "Table 2: critical steps, non-critical steps, all steps",
    "table3": "Table 3: ratios of critical and of random steps",
    "table4": "Table 4: ATLAS against Monte-Carlo values, one model a task",
    "table5": "Table 5: the selector, one model a task",
    "table6": "Table 6: the base model from scratch, and from right after critical steps",
    "table7": "Table 7: other backbones, random and critical steps at other ratios",
}
_SHORT = {  # rows whose names are not their labels
    "AgentTraj-L (100% steps)": "all",
    "Complete Trajectories (100%) by AgentTraj-L": "all",
    "Perplexity Selection": "perplexity",
    "ATLAS (30% steps)": "atlas",
    "Critical Steps (30%) by ATLAS": "atlas",
    "Non-critical Steps (30%)": "non-critical",
}
_SECTIONS = {
    "Mistral-7B-Instruct-v0.3": "mistral",
    "Qwen2.5-7B-Instruct": "qwen",
    "Random Selection": "random",
    "Critical Selection Ratio": "critical",
}
_METHODS = {"atlas": "ATLAS", "value_function": "value function", "gpt-4o": "GPT-4o"} | {
    "llama-3.1-70b-instruct": "Llama-3.1-70B-Instruct",
    "from_scratch": "from scratch",
    "from_critical_step": "from critical step",
}


@dataclass(frozen=True, slots=True)
class PrintedRow:
    """One row of a table.

    Attributes:
        key: Names it in recipes, e.g. `atlas`, `random-30`, `mistral/all`.
        section: The heading above it, or "".
        figures: By column, in per cent; a column that the paper leaves empty is not there.
        quoted: Columns whose figures the paper takes from elsewhere.
        behind: By environment, what the averages are of where the table prints these alone (Table 3, from 1 and 7).
        against: Key of the row that the paper holds it against, or None.
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
    text = resources.files(__package__).joinpath("paper_results.json").read_text()
    found: dict[str, Any] = json.loads(text)
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
    given = _results()[table]
    if table == "table3":
        columns, rows = tuple(AVERAGES), tuple(_ratio_row(row) for row in given)
    elif table in ("table4", "table5", "table6"):
        columns = tuple(row["env"] for row in given)
        rows = tuple(_by_method(table, given))
    else:
        columns = _columns(given[0])
        rows = tuple(_full_row(table, row) for row in given)
    notes = _NOTES.get(table, ()) + ((_ROUNDING,) if set(AVERAGES) & set(columns) else ())
    return PrintedTable(table, _TITLES[table], columns, rows, notes)


def _columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (*row["held_in"], "held_in_avg", *_results()["table1"][-1]["held_out"], "held_out_avg")


def _full_row(table: str, row: Mapping[str, Any]) -> PrintedRow:
    figures = {**row["held_in"], **(row["held_out"] or {})}
    figures |= {name: row[name] for name in AVERAGES if row.get(name) is not None}
    section, label = row["section"] or "", row["model"]
    key = _SHORT.get(label) or re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-")
    if table == "table7":
        key = _key_of_table7(section, label)
    closed = section == "Closed-Source Model"
    quoted = frozenset((*row["held_in"], "held_in_avg")) if closed else frozenset()
    return PrintedRow(
        key, label, section, {k: v for k, v in figures.items() if v is not None}, quoted, _against(table, key)
    )


def _key_of_table7(section: str, label: str) -> str:
    name = _SECTIONS[section]
    if label.endswith("%"):
        return f"{name}-{label[:-1]}"
    return f"{name}/{'atlas' if label == 'Ours' else 'all'}"


def _ratio_row(row: Mapping[str, Any]) -> PrintedRow:
    kind, ratio = row["selection"], round(100 * row["ratio"])
    label = {"all": "complete", "random": "random", "critical": "critical"}[kind]
    figures = {name: row[name] for name in AVERAGES}
    key = f"{kind}-{ratio}"
    elsewhere = printed("table1" if kind == "all" else "table7").rows
    behind = next(other.figures for other in elsewhere if other.key == ("all" if kind == "all" else key))
    return PrintedRow(key, f"{label}, {ratio} %", "", figures, against=_against("table3", key), behind=behind)


def _by_method(table: str, given: list[dict[str, Any]]) -> Iterator[PrintedRow]:
    for method in [name for name in given[0] if name not in ("env", "tasks")]:
        key = {"value_function": "value"}.get(method, method)
        figures = {row["env"]: row[method] for row in given}
        yield PrintedRow(key, _METHODS[method], "", figures, against=_against(table, key))


def _against(table: str, key: str) -> str | None:
    """The row that the paper's text holds a row against (sections 4.2 to 4.6)."""
    if table in ("table1", "table2"):
        return "all" if key in ("atlas", "perplexity", "non-critical") else None
    if table == "table7" and key.endswith("/atlas"):
        return key.replace("/atlas", "/all")
    fixed = {"table4": {"atlas": "value"}, "table5": {"gpt-4o": "llama-3.1-70b-instruct"}}
    fixed["table6"] = {"from_critical_step": "from_scratch"}
    if table in fixed:
        return fixed[table].get(key)
    return key.replace("critical", "random") if key.startswith("critical-") else None
