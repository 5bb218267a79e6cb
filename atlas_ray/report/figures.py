"""Figures as inline SVG whose colours are the page's, so that one drawing serves light and dark.

Flows in: `results.json` as a dict; flows out: SVG by name, byte for byte the same for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib import style

from atlas_ray.evaluation.intervals import percent
from atlas_ray.report.drawing import ACCENT, INK, LINE, PAPER, STYLE, Figure, block, named_rows, panel
from atlas_ray.report.scatter import Dot, scatter
from atlas_ray.report.tables import HELD


def draw(results: Mapping[str, Any]) -> dict[str, list[Figure]]:
    """Draws everything that there are numbers for.

    Returns:
        Panels by subject: `success` (one an environment), `cost` (held in, held out), `selectors`, `positions`,
        `losses` (one an arm that was trained).
    """
    with style.context(["default", STYLE]):
        return {
            "success": _success(results),
            "cost": _cost(results),
            "selectors": _selectors(results),
            "positions": _positions(results),
            "losses": _losses(results),
        }


def _success(results: Mapping[str, Any]) -> list[Figure]:
    """Every arm's success as a dot with its interval."""
    arms, critical = results["arms"], results["verdict"]["critical"]
    panels = []
    for place, cell in sorted(enumerate(arms[0]["environments"] if arms else []), key=lambda pair: pair[1]["held"]):
        figure, axes = named_rows([arm["name"] for arm in arms], critical)
        for y, arm in enumerate(arms):
            shown, colour = arm["environments"][place], ACCENT if arm["name"] == critical else INK
            if shown["success"] is not None:
                axes.plot([100 * x for x in shown["ci95"]], [y, y], color=colour, linewidth=1.4, alpha=0.55)
                axes.plot([100 * shown["success"]], [y], "o", color=colour, markersize=5.5)
        axes.set_xlabel("success, %")
        label, group = f"Success of the arms on {cell['env']}", HELD[cell["held"]]
        panels.append(Figure.of(figure, f"success-{place}", label, cell["env"], group=group))
    return panels


def _cost(results: Mapping[str, Any]) -> list[Figure]:
    """Success against the share of tokens that carried loss."""
    panels = []
    for held, name in HELD.items():
        scores = [(arm, _group_score(arm, held)) for arm in results["arms"]]
        dots = [
            Dot(arm["name"], 100 * (arm["loss_token_fraction"] or 0.0), *_percents(score["success"], *score["ci95"]))
            for arm, score in scores
            if score is not None and score["success"] is not None
        ]
        if dots:
            figure = scatter(dots, results["verdict"]["critical"], "tokens with loss, %", "success, %")
            label = f"Success {name} against tokens trained on"
            panels.append(Figure.of(figure, f"cost-{held}", label, "", group=name))
    return panels


def _percents(*shares: float) -> list[float]:
    return [100 * share for share in shares]


def _selectors(results: Mapping[str, Any]) -> list[Figure]:
    """Precision and recall against gold."""
    critical = results["verdict"]["critical"]
    rows = [row for row in results["selectors"] if row["precision"] is not None or row["recall"] is not None]
    if not rows:
        return []
    figure, axes = named_rows([row["name"] for row in rows], critical)
    for y, row in enumerate(rows):
        colour = ACCENT if row["name"] == critical else INK
        known = [100 * row[key] for key in ("precision", "recall") if row[key] is not None]
        axes.plot(known, [y] * len(known), color=LINE, linewidth=1.4, zorder=1)
        if row["recall"] is not None:
            axes.plot([100 * row["recall"]], [y], "o", color=colour, mfc=PAPER, markersize=6)
        if row["precision"] is not None:
            axes.plot([100 * row["precision"]], [y], "o", color=colour, markersize=4)
    axes.set_xlabel("● precision   ○ recall, %")
    return [Figure.of(figure, "selectors", "Precision and recall of the selectors", "")]


def _positions(results: Mapping[str, Any]) -> list[Figure]:
    """The share of steps chosen in each tenth of the trajectory."""
    rows = [row for row in results["selectors"] if any(share is not None for share in row["positions"])]
    if not rows:
        return []
    bins = len(rows[0]["positions"])
    figure, axes = named_rows([row["name"] for row in rows], results["verdict"]["critical"])
    axes.grid(visible=False)
    axes.set_xlim(0, bins)
    axes.set_xticks([0.5, bins / 2, bins - 0.5], ["start", "middle", "end"])
    for y, row in enumerate(rows):
        for x, share in enumerate(row["positions"]):
            if share is not None:
                block(axes, y, x + 0.03, (0.94, 0.86), round(0.06 + 0.94 * share, 3), percent(share, 0))
    axes.set_xlabel("place in the trajectory")
    return [Figure.of(figure, "positions", "Where in a trajectory each selector chooses, in per cent", "")]


def _losses(results: Mapping[str, Any]) -> list[Figure]:
    """Each arm's training loss, and its validation loss as dots, all on one scale."""
    arms = [arm for arm in results["arms"] if arm["losses"]]
    top = max((loss for arm in arms for _, loss in [*arm["losses"], *arm["validation"]]), default=1.0)
    panels = []
    for place, arm in enumerate(arms):
        colour = ACCENT if arm["name"] == results["verdict"]["critical"] else INK
        figure, axes = panel(1.7, 0.13, 0.27, 0.97, 0.95, grid="y")
        axes.plot(*zip(*arm["losses"], strict=True), color=colour, linewidth=1.2)
        if arm["validation"]:
            axes.plot(*zip(*arm["validation"], strict=True), "o", color=colour, mfc=PAPER, markersize=5)
        axes.set(ylim=(0, 1.05 * top), xlabel="optimizer step")
        axes.set_ylabel("loss, nats")
        panels.append(Figure.of(figure, f"loss-{place}", f"Training loss of {arm['name']}", arm["name"]))
    return panels


def _group_score(arm: Mapping[str, Any], held: str) -> Mapping[str, Any] | None:
    """The average of a group, or its only environment."""
    cells = [cell for cell in arm["environments"] if cell["held"] == held]
    return next((m for m in arm["averages"] if m["held"] == held), cells[0] if len(cells) == 1 else None)
