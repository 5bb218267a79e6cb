"""A comparison of selections for the eye. Flows in: what `compare_runs` found; flows out: tables and a figure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from atlas_ray.errors import UserError
from atlas_ray.types import Category

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
_AGAINST_GOLD = ("requested", "actual", "precision", "recall", "f1", "kappa")


def comparison_tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """All figures, then pairs, environments and categories."""
    rows: Rows = found["selections"]
    yield comparison_table(rows, found["unit"])
    if len(rows) > 1:
        yield _pairs(rows)
    if len(rows[0]["environments"]) > 1:
        yield _environments(rows)
    if any(row["categories"] for row in rows):
        yield _categories(rows)


def comparison_table(rows: Rows, unit: str = "words") -> Table:
    """One line a selection: against the expert's annotation, where it chooses, and what it cost."""
    table = _table(
        "Selections against the expert's annotation",
        ("selection", "n", "failed", "m", "chosen", "precision", "recall", "F1", "kappa"),
        (f"of the {unit}", "position", "tokens", "cost"),
    )
    for row in rows:
        usage = row["usage"]
        table.add_row(
            str(row["name"]),
            *(str(row[k]) for k in ("trajectories", "errors")),
            *(_text(row[k]) for k in (*_AGAINST_GOLD, "loss_fraction", "position")),
            str(usage["tokens"]),
            f"${usage['dollars']:.2f}",
        )
    return table


def _pairs(rows: Rows) -> Table:
    title = "Between selections: Jaccard index above the diagonal, Cohen's kappa below"
    table = _table(title, ("", *(str(i) for i in range(1, len(rows) + 1))))
    for i, row in enumerate(rows):
        others = [str(other["name"]) for other in rows]
        cells = [_text(row["overlap" if j > i else "kappas"][o]) if j != i else "" for j, o in enumerate(others)]
        table.add_row(f"{i + 1} {row['name']}", *cells)
    return table


def _environments(rows: Rows) -> Table:
    headings = ("environment", "selection", "n", "failed", "m", "chosen", "precision", "recall", "F1", "kappa")
    table = _table("By environment", headings, text=2)
    for env in rows[0]["environments"]:
        for row in rows:
            at = row["environments"][env]
            counts = (str(at[k]) for k in ("trajectories", "errors"))
            table.add_row(env, str(row["name"]), *counts, *(_text(at[k]) for k in _AGAINST_GOLD))
        table.add_section()
    return table


def _categories(rows: Rows) -> Table:
    table = _table("Categories of the chosen steps", ("selection", *(c.value for c in Category), "as the expert's"))
    for row in rows:
        counts = (str(row["categories"].get(c.value, 0)) for c in Category)
        table.add_row(str(row["name"]), *counts, _text(row["same_category"]))
    return table


def _table(title: str, headings: Sequence[str], more: Sequence[str] = (), text: int = 1) -> Table:
    table = Table(title=title)
    for i, heading in enumerate((*headings, *more)):
        table.add_column(heading, justify="left" if i < text else "right")
    return table


def write_json(path: str | Path, found: Mapping[str, Any]) -> None:
    """Writes all figures.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None


def write_figure(path: str | Path, found: Mapping[str, Any]) -> None:
    """Draws agreement with the expert, positions, and overlap between selections.

    Args:
        path: .png, .svg or .pdf.
        found: What `compare_runs` found.

    Raises:
        UserError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    rows: Rows = found["selections"]
    figure = Figure(figsize=(15, 1.8 + 0.4 * max(6, len(rows))), layout="constrained")
    gold, position, overlap = figure.subplots(1, 3)
    _draw_gold(gold, rows)
    _draw_positions(position, rows)
    _draw_overlap(overlap, rows)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {path}: {error}", "name a .png, .svg or .pdf where there is space") from None


def _draw_gold(axes: Axes, rows: Rows) -> None:
    for shift, key in ((-0.27, "precision"), (0.0, "recall"), (0.27, "f1")):
        values = [row[key] or 0.0 for row in rows]
        axes.barh([i + shift for i in range(len(rows))], values, height=0.25, label="F1" if key == "f1" else key)
    axes.set_yticks(range(len(rows)), [str(row["name"]) for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("Against the expert's annotation")
    axes.legend(loc="lower right", fontsize="small")


def _draw_positions(axes: Axes, rows: Rows) -> None:
    for i, row in enumerate(rows):
        tenths = [(x, share) for x, share in enumerate(row["positions"]) if share is not None]
        centres = [(x + 0.5) / len(row["positions"]) for x, _ in tenths]
        style = ("-", "--", ":")[i // 10 % 3]
        axes.plot(centres, [share for _, share in tenths], style, marker=".", label=str(row["name"]))
    axes.set_xlabel("place in the trajectory")
    axes.set_ylabel("share of steps chosen")
    axes.set_ylim(0, 1.02)
    axes.set_title("Position of the chosen steps")
    axes.legend(fontsize="x-small")


def _draw_overlap(axes: Axes, rows: Rows) -> None:
    names = [str(row["name"]) for row in rows]
    shares = [[1.0 if name == row["name"] else row["overlap"][name] or 0.0 for name in names] for row in rows]
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for i, line in enumerate(shares):
        for j, share in enumerate(line):
            axes.text(
                j, i, f"{share:.2f}", ha="center", va="center", fontsize=7, color="white" if share > 0.6 else "black"
            )
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_title("Overlap (Jaccard index)")


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
