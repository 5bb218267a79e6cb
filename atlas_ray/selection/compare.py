"""How far selections agree with the expert's uncut annotation and with each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlas_ray.types import Selection, Trajectory

if TYPE_CHECKING:
    from rich.table import Table

_Steps = set[tuple[str, int]]


def agreement(chosen: _Steps, gold: _Steps) -> dict[str, float | None]:
    """Precision, recall, F1 and Jaccard index of two sets of (trajectory id, step): micro averages over steps.

    A figure whose denominator is zero is None.
    """
    both = len(chosen & gold)
    return {
        "precision": _share(both, len(chosen)),
        "recall": _share(both, len(gold)),
        "f1": _share(2 * both, len(chosen) + len(gold)),
        "jaccard": _share(both, len(chosen | gold)),
    }


def compare_selections(
    selections: Sequence[tuple[str, Sequence[Selection]]], trajectories: Iterable[Trajectory]
) -> list[dict[str, Any]]:
    """One row per selection, in the order given.

    Trajectories without a selection (an error) count in `errors` alone; those without gold are left out of precision,
    recall, F1 and jaccard.

    Args:
        selections: (name, records) pairs.
        trajectories: The data that was selected in; carries gold.

    Returns:
        Rows of name, trajectories, errors, requested (ratio m), actual (share of all steps that was chosen), precision,
        recall, f1, jaccard (against gold) and `overlap` (Jaccard index with each other selection, by name, over the
        trajectories that both have).
    """
    gold = {t.id: {(t.id, g.step) for g in t.gold} for t in trajectories if t.gold is not None}
    good = {name: {s.id: s for s in records if s.error is None} for name, records in selections}
    rows = []
    for name, records in selections:
        mine = good[name]
        marked: _Steps = set().union(*(gold[i] for i in mine if i in gold))
        chosen_where_marked = _steps(mine, gold)
        rows.append(
            {
                "name": name,
                "trajectories": len(mine),
                "errors": len(records) - len(mine),
                "requested": next((s.ratio for s in records), None),
                "actual": _share(sum(len(s.chosen) for s in mine.values()), sum(s.n_steps for s in mine.values())),
                **agreement(chosen_where_marked, marked),
                "overlap": {
                    other: agreement(_steps(mine, theirs), _steps(theirs, mine))["jaccard"]
                    for other, theirs in good.items()
                    if other != name
                },
            }
        )
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    from rich.table import Table

    table = Table(title="Selections against the expert's annotation")
    for heading in ("selection", "trajectories", "errors", "m", "chosen", "precision", "recall", "F1", "Jaccard"):
        table.add_column(heading, justify="left" if heading == "selection" else "right")
    for row in rows:
        figures = (_text(row[k]) for k in ("requested", "actual", "precision", "recall", "f1", "jaccard"))
        table.add_row(str(row["name"]), str(row["trajectories"]), str(row["errors"]), *figures)
    return table


def _steps(selections: Mapping[str, Selection], within: Mapping[str, Any]) -> _Steps:
    return {(i, step) for i, s in selections.items() if i in within for step in s.chosen}


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.3f}"
