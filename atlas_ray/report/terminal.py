"""Tables of evaluation and verification for the terminal. Flows in: rows; flows out: rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from atlas_ray.environments.replay import replay_words
from atlas_ray.evaluation.metrics import EnvironmentResult
from atlas_ray.evaluation.paired import Comparison
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import comparisons, failures, played
from atlas_ray.evaluation.table6 import Row
from atlas_ray.report.intervals import limits, percent, points
from atlas_ray.report.tables import evaluation_table


def print_evaluation(config: EvaluateConfig) -> None:
    """Prints what models reached, why others could not be loaded, and how far the models differ."""
    console, others = Console(), other_tasks(config.tasks, config.environments)
    console.print(evaluation_table(played(config), others, failures(config)))
    if found := comparisons(config):
        console.print(paired_table(found))


def paired_table(comparisons: Iterable[Comparison]) -> Table:
    """Every later model against every earlier one, task by task."""
    table = Table("model", "against", "environment", "metric", "difference", "95 %", "tasks", "", box=box.SIMPLE)
    for c in comparisons:
        table.add_row(
            c.ours, c.theirs, c.env, c.metric, points(c.difference), _span(c.ci95), str(c.tasks), _word(c.outcome)
        )
    return table


def verification_table(rows: Sequence[Row]) -> Table:
    """Table 6: by environment and kind of start, with the control; narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE, padding=0)
    for title in ("", "start", "% (95 %)", "over scratch", "by start", "n", "at"):
        table.add_column(title, no_wrap=True)
    for row in rows:
        value, span = row.result.figure
        table.add_row(
            row.env,
            row.start.removeprefix("from "),
            percent(value) + (f" ({limits(span)})" if span else ""),
            "-" if row.gain is None else _difference(row.gain),
            percent(row.by_start),
            f"{row.result.distinct_tasks}, {row.starts}",
            f"{row.position:.2f}",
        )
    metrics = dict.fromkeys((row.env, row.result.metric) for row in rows)
    said = [
        "%: "
        + ", ".join(f"{metric} in {env}" for env, metric in metrics)
        + "; n: tasks, starts; at: mean start / steps"
    ]
    said += [
        f"{row.env}: {percent(row.put_in, 0)} % of critical steps put in" for row in rows if row.put_in is not None
    ]
    said += [f"{row.env}, {row.start}: excluded {excluded(row.result)}" for row in rows if row.result.excluded]
    said += [f"{row.env}, {row.start}: {replay_words(row.replays)}" for row in rows if row.replays]
    said += [
        f"{row.env}: critical step over other step near by {_difference(row.over_control)}"
        for row in rows
        if row.over_control is not None
    ]
    table.caption = "\n".join(said)
    table.caption_justify = "left"
    return table


def excluded(result: EnvironmentResult) -> str:
    """Infrastructure failures by cause."""
    return ", ".join(f"{cause} {n}" for cause, n in result.excluded.items()) or "-"


def _difference(found: Comparison) -> str:
    return f"{points(found.difference)} ({_span(found.ci95)})"


def _span(pair: tuple[float, float]) -> str:
    low, high = (f"{100 * limit:+.0f}".replace("-", "−") for limit in pair)
    return f"{low} to {high}"


def _word(outcome: str) -> str:
    return "no difference shown" if outcome == "none" else outcome
