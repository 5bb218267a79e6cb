"""Drawings of selections: categories, scores, agreement, values along trajectories.

Flows in: the report's results and the selections; flows out: figures for the page, each with its n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log10
from statistics import fmean
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure as Drawing

from atlas_ray.report.drawing import ACCENT, INK, LINE, STYLE, Figure, bare, block, named_rows, panel, short
from atlas_ray.types import Category, Selection

_BINS = 24
_POINTS = 10
_SHADES = (0.95, 0.65, 0.4, 0.18)


def selection_figures(results: Mapping[str, Any], selections: Mapping[str, Sequence[Selection]]) -> list[Figure]:
    """Everything that there are numbers for."""
    critical = results["verdict"]["critical"]
    with style.context(["default", STYLE]):
        return [
            *_categories(results["selectors"], critical),
            *_agreement(results["selectors"]),
            *_scores(selections, critical),
            *_values(selections),
        ]


def _categories(rows: Sequence[Mapping[str, Any]], critical: str) -> list[Figure]:
    """Shares of the four categories among each selector's steps that have one."""
    known = [row for row in rows if sum(row["categories"].values())]
    if not known:
        return []
    figure, axes = named_rows([row["name"] for row in known], critical)
    for y, row in enumerate(known):
        total, left = sum(row["categories"].values()), 0.0
        for category, shade in zip(Category, _SHADES, strict=True):
            share = 100 * row["categories"].get(str(category), 0) / total
            block(axes, y, left, (share, 0.7), shade, f"{share:.0f}" if share >= 8 else "")
            left += share
    axes.set_xlabel("steps with a category, %")
    order = ", ".join(str(category) for category in Category)
    counts = ", ".join(f"{row['name']} {sum(row['categories'].values())}" for row in known)
    label, caption = "Categories of the chosen steps by selector", f"From the left: {order}. Steps: {counts}."
    return [Figure.of(figure, "categories", label, "Categories of chosen steps", caption)]


def _agreement(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Jaccard index of every two selections."""
    if len(rows) < 2:
        return []
    names = [row["name"] for row in rows]
    side = min(0.34, 2.6 / len(names)) * len(names)
    left, top, margin = 1.12, 0.95, 0.5
    width, height = left + side + margin, top + side + 0.06
    figure = Drawing(figsize=(width, height))
    axes = figure.add_axes((left / width, 0.06 / height, side / width, side / height))
    for y, row in enumerate(rows):
        for x, other in enumerate(names):
            share = 1.0 if x == y else row["overlap"].get(other)
            if share is None:
                continue
            text = f"{100 * share:.0f}" if len(names) <= 14 else ""
            block(axes, y, x + 0.03, (0.94, 0.94), round(0.05 + 0.9 * share, 3), text, 6.5)
    axes.set(xlim=(0, len(names)), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), [short(name) for name in names], size=7.5)
    axes.set_xticks(
        [x + 0.5 for x in range(len(names))], [short(name) for name in names], rotation=60, ha="left", size=7.5
    )
    axes.xaxis.tick_top()
    bare(axes)
    n = max(row["trajectories"] for row in rows)
    caption = f"Jaccard index of the steps that two selections chose, %, over {n} trajectories."
    return [Figure.of(figure, "agreement", caption, "Agreement between selectors", caption)]


def _scores(selections: Mapping[str, Sequence[Selection]], critical: str) -> list[Figure]:
    """How each selector's scores are spread, chosen steps above and the others below the line."""
    found = []
    for place, (name, made) in enumerate(selections.items()):
        chosen: list[float] = []
        others: list[float] = []
        for selection in made:
            for step, score in enumerate(selection.scores or (), 1):
                if isfinite(score):
                    (chosen if step in selection.chosen else others).append(float(score))
        scores = sorted(chosen + others)
        if len(set(scores)) < 3:
            continue
        # perplexities span powers of ten
        wide = scores[0] > 0 and scores[-1] > 20 * scores[0]
        if wide:
            scores, chosen, others = ([log10(x) for x in given] for given in (scores, chosen, others))
        low, high = _fences(scores)
        outside = sum(not low <= score <= high for score in scores)
        figure, axes = panel(1.7, 0.04, 0.27, 0.96, 0.95)
        for values, sign, colour in ((chosen, 1, ACCENT), (others, -1, INK)):
            within = [min(max(value, low), high) for value in values]
            weights = [sign] * len(within)
            axes.hist(
                within, _BINS, range=(low, high), weights=weights, rwidth=0.9, color=colour, alpha=0.75, linewidth=0
            )
        axes.axhline(0, color=LINE, linewidth=0.8)
        axes.set_yticks([])
        axes.set_xlabel("score, power of ten" if wide else "score")
        edges = f"; {outside} outside of the range stand at its edges" if outside else ""
        caption = f"{len(chosen)} chosen steps above, {len(others)} others below{edges}."
        found.append(Figure.of(figure, f"scores-{place}", f"Scores of {name}", f"Scores of {name}", caption))
    return found


def _fences(scores: Sequence[float]) -> tuple[float, float]:
    """The range without far outliers, which would flatten all else: Tukey's outer fences; of sorted scores."""
    first, third = scores[len(scores) // 4], scores[-1 - len(scores) // 4]
    low, high = first - 3 * (third - first), third + 3 * (third - first)
    within = [score for score in scores if low <= score <= high]
    return (within[0], within[-1]) if within[0] < within[-1] else (scores[0], scores[-1])


def _values(selections: Mapping[str, Sequence[Selection]]) -> list[Figure]:
    """How the value of the state grows along trajectories: the sum of the steps' gains, q_t - q_0 (section 4.5.4)."""
    found = []
    for place, (name, made) in enumerate(selections.items()):
        known = [s for s in made if s.selector == "value" and s.scores and all(map(isfinite, s.scores))]
        if not known:
            continue
        figure, axes = panel(2.1, 0.13, 0.22, 0.97, 0.96, grid="y")
        curves = [_along(s.scores or ()) for s in known]
        for curve in curves[:60]:
            axes.plot(range(_POINTS + 1), curve, color=INK, linewidth=0.6, alpha=0.12)
        mean = [fmean(column) for column in zip(*curves, strict=True)]
        axes.plot(range(_POINTS + 1), mean, color=ACCENT, linewidth=2)
        axes.set_xticks([0, _POINTS / 2, _POINTS], ["start", "middle", "end"])
        axes.set(xlabel="place in the trajectory", ylabel="value gained")
        caption = f"Mean of {len(curves)} trajectories, and up to 60 of them one by one."
        title = f"Values along trajectories, {name}"
        found.append(Figure.of(figure, f"values-{place}", title, title, caption))
    return found


def _along(gains: Sequence[float]) -> list[float]:
    """The running sum at tenths of the way."""
    sums = [0.0]
    for gain in gains:
        sums.append(sums[-1] + gain)
    return [sums[round(len(gains) * i / _POINTS)] for i in range(_POINTS + 1)]
