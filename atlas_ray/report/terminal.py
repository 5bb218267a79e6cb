"""Tables of evaluation and verification for the terminal. Flows in: rows; flows out: rich tables."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table

from atlas_ray.evaluation.metrics import EnvironmentResult
from atlas_ray.evaluation.paired import Comparison
from atlas_ray.evaluation.table6 import Row
from atlas_ray.report.intervals import limits, percent, points


def paired_table(comparisons: Iterable[Comparison]) -> Table:
    """Every later model against every earlier one, task by task."""
    table = Table("model", "against", "environment", "metric", "difference", "95 %", "tasks", "", box=box.SIMPLE)
    for c in comparisons:
        table.add_row(
            c.ours, c.theirs, c.env, c.metric, points(c.difference), _span(c.ci95), str(c.tasks), _word(c.outcome)
        )
    return table


def verification_table(rows: Iterable[Row]) -> Table:
    """Table 6: by environment and kind of start, with the control."""
    columns = ("environment", "start", "metric", "%", "95 %", "over scratch", "95 %")
    table = Table(*columns, "by start, %", "tasks", "starts", "position", "put in, %", "excluded", box=box.SIMPLE)
    for row in rows:
        value, span = row.result.figure
        gain = row.gain
        table.add_row(
            row.env,
            row.start,
            row.result.metric,
            percent(value),
            limits(span) if span else "-",
            points(gain.difference) if gain else "-",
            _span(gain.ci95) if gain else "-",
            percent(row.by_start),
            str(row.result.distinct_tasks),
            str(row.starts),
            f"{row.position:.2f}",
            "-" if row.put_in is None else percent(row.put_in, 0),
            excluded(row.result),
        )
    return table


def excluded(result: EnvironmentResult) -> str:
    """Infrastructure failures by cause."""
    return ", ".join(f"{cause} {n}" for cause, n in result.excluded.items()) or "-"


def _span(pair: tuple[float, float]) -> str:
    return f"{points(pair[0])} to {points(pair[1])}"


def _word(outcome: str) -> str:
    return "no difference shown" if outcome == "none" else outcome
