"""Tables of evaluation and verification for the terminal. Flows in: rows; flows out: rich tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from atlas_ray.environments.replay import replay_words
from atlas_ray.evaluation.intervals import OUTCOME_WORDS, limits, percent, points
from atlas_ray.evaluation.metrics import EnvironmentResult, many_overflowed
from atlas_ray.evaluation.paired import Comparison
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import comparisons, failures, played
from atlas_ray.evaluation.table6 import Row
from atlas_ray.models.pretrained import weights_note
from atlas_ray.report.tables import FLAG, OVERFLOW, marked, overflow_notes, task_notes, weights_notes
from atlas_ray.runs.progress import output


def print_evaluation(config: EvaluateConfig) -> None:
    """Prints what models reached, why others could not be made, loaded or played, and how far the models differ."""
    others = other_tasks(config.tasks, config.environments)
    weights = {name: weights_note(model) for name, model in config.played.items()}
    output.print(evaluation_table(played(config), others, failures(config), weights))
    if found := comparisons(config):
        output.print(paired_table(found))


def evaluation_table(
    results: Mapping[str, Sequence[EnvironmentResult]],
    other_tasks: Mapping[str, str] | None = None,
    failures: Mapping[str, str] | None = None,
    weights: Mapping[str, str | None] | None = None,
) -> Table:
    """Success, reward and progress of several models by environment, for the terminal.

    Args:
        results: By model.
        other_tasks: Environments whose tasks are not the paper's, and whose they are.
        failures: Why models could not be made, loaded or played: they stand there without figures.
        weights: What the weights are that models start from, where they are not those of their names.
    """
    others = other_tasks or {}
    columns = ("model", "environment", "success, %", "95 %", "reward, %", "progress, %", "n", "excluded")
    table, flags = Table(*columns, box=box.SIMPLE, padding=0), list[str]()
    for model, cells in results.items():
        for cell in cells:
            lost, mark = sum(cell.excluded.values()), f" {FLAG}" if cell.flagged else ""
            table.add_row(
                model,
                marked(cell.env, others),
                percent(cell.success) + mark + (f" {OVERFLOW}" if many_overflowed(cell.overflowed) else ""),
                limits(cell.ci95) if cell.ci95 else "-",
                percent(cell.reward) + (f" ({limits(cell.reward_ci95)})" if cell.reward_ci95 else ""),
                percent(cell.progress) + (f" ({limits(cell.progress_ci95)})" if cell.progress_ci95 else ""),
                f"{cell.n} of {cell.n + lost}" if lost else str(cell.n),
                excluded(cell),
            )
            if cell.flagged:
                flags.append(f"{FLAG} {model}, {cell.env}: the figures are of {cell.n} episodes alone{_why(cell)}")
    for model in failures or {}:
        table.add_row(model, *["–"] * (len(columns) - 2), "failed")
    overflows = ((model, cell.env, cell.overflowed) for model, cells in results.items() for cell in cells)
    said = [*task_notes(others), *flags, *overflow_notes(overflows)]
    said += [f"{model} could not be made, loaded or played: {why}" for model, why in (failures or {}).items()]
    said += weights_notes(weights or {})
    table.caption, table.caption_justify = Text("\n".join(said)) if said else None, "left"
    return table


def _why(cell: EnvironmentResult) -> str:
    lost = sum(cell.excluded.values())
    return f"; {lost} failed for reasons of infrastructure and are left out" if lost else "; others were not played"


def paired_table(comparisons: Iterable[Comparison]) -> Table:
    """Every later model against every earlier one, task by task."""
    table = Table("model", "against", "environment", "metric", "difference", "95 %", "tasks", "", box=box.SIMPLE)
    for c in comparisons:
        figures = points(c.difference), _span(c.ci95), str(c.tasks), OUTCOME_WORDS[c.outcome]
        table.add_row(c.ours, c.theirs, c.env, c.metric, *figures)
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
    shown = ", ".join(f"{metric} in {env}" for env, metric in metrics)
    said = [f"%: {shown}; n: tasks, starts; at: mean start / steps"]
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
