"""A study's figure: success against what its cells differ in, a line an arm, a panel for each group of arms.

Flows in: lines of points; flows out: a drawing whose names do not stand on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from atlas_ray.report.drawing import ACCENT, INK, MUTED, STYLE, bare, to_svg
from atlas_ray.report.scatter import spread

# By an arm's place: two rivals, then pairs of a selector and its control; the dashes tell them apart without colours.
_LOOKS = ((MUTED, "-"), (INK, "-"), (ACCENT, "-"), (ACCENT, ":"), (INK, "--"), (INK, ":"), (MUTED, "--"), (MUTED, ":"))


@dataclass(frozen=True, slots=True)
class Line:
    """An arm: where each cell stands, its success, and the least and most of its seeds; shares."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


def draw(panels: Mapping[str, Sequence[Line]], dial: str) -> str:
    """Our own SVG."""
    with style.context(["default", STYLE]):
        figure = Drawing(figsize=(6.4 * len(panels), 3.6))
        for number, (title, lines) in enumerate(panels.items()):
            axes = figure.add_axes(((number + 0.08) / len(panels), 0.14, 0.68 / len(panels), 0.76))
            _panel(axes, title, [line for line in lines if line.points], dial)
        label = f"Success against {dial}: {'; '.join(panels)}"
        return to_svg(figure, "study", label)


def draw_replicates(panels: Mapping[str, Sequence[Line]]) -> str:
    """Our own SVG of cells that are one world over again: an arm's success in each, and their mean."""
    with style.context(["default", STYLE]):
        figure = Drawing(figsize=(6.4 * len(panels), 3.6))
        for number, (title, lines) in enumerate(panels.items()):
            axes = figure.add_axes(((number + 0.08) / len(panels), 0.14, 0.88 / len(panels), 0.76))
            _replicates(axes, title, [line for line in lines if line.points])
        return to_svg(figure, "study", f"Success in every cell: {'; '.join(panels)}")


def _replicates(axes: Axes, title: str, lines: Sequence[Line]) -> None:
    top = _scale(axes, title, lines)
    for cell in sorted({x for line in lines for x, *_ in line.points}):
        found = [(i, 100 * y) for i, line in enumerate(lines) for x, y, *_ in line.points if x == cell]
        axes.plot(*zip(*found, strict=True), color=MUTED, linewidth=0.6, alpha=0.5)
    for i, line in enumerate(lines):
        colour, _ = _LOOKS[i % len(_LOOKS)]
        successes = [100 * y for _, y, *_ in line.points]
        mean = fmean(successes)
        axes.plot([i] * len(successes), successes, "o", color=colour, markersize=3.5)
        axes.hlines(mean, i - 0.16, i + 0.16, color=colour, linewidth=2)
        axes.text(i + 0.19, min(mean, top), f"{mean:.1f}", va="center", ha="left", color=colour)
    axes.set_xticks(range(len(lines)), [line.name for line in lines])
    axes.set_xlim(-0.4, max(len(lines), 1) - 0.4)


def _scale(axes: Axes, title: str, lines: Sequence[Line]) -> int:
    """The axis of success, as far as it is needed; returns its end."""
    bare(axes)
    axes.grid(axis="y")
    axes.set_title(title, fontsize=9.5, loc="left", color=INK)
    top = 20 * math.ceil(max((p[3] for line in lines for p in line.points), default=1.0) * 5 + 0.2)
    axes.set(ylim=(0, min(top, 104)), yticks=range(0, min(top, 100) + 1, 20 if top > 40 else 10))
    axes.set_ylabel("success, %")
    return min(top, 104)


def _panel(axes: Axes, title: str, lines: Sequence[Line], dial: str) -> None:
    top = _scale(axes, title, lines)
    axes.set_xlabel(dial)
    places = sorted({x for line in lines for x, *_ in line.points})
    axes.set_xticks(places, [f"{x:g}" for x in places])
    width = (places[-1] - places[0]) or 1.0 if places else 1.0
    ends = spread([100 * line.points[-1][1] for line in lines], top) if lines else []
    for number, (line, height) in enumerate(zip(lines, ends, strict=True)):
        colour, dashes = _LOOKS[number % len(_LOOKS)]
        shift = (number - (len(lines) - 1) / 2) * 0.012 * width  # so that the seeds' ranges do not cover each other
        xs = [x + shift for x, *_ in line.points]
        axes.plot(xs, [100 * y for _, y, *_ in line.points], dashes, color=colour, marker="o", markersize=3.5)
        axes.vlines(xs, [100 * p[2] for p in line.points], [100 * p[3] for p in line.points], color=colour, alpha=0.35)
        right = places[-1] + 0.06 * width
        pointer = axes.plot([xs[-1], right], [100 * line.points[-1][1], height], color=MUTED, linewidth=0.6, alpha=0.5)
        pointer[0].set_clip_on(False)
        axes.text(right + 0.02 * width, height, line.name, va="center", ha="left", color=colour)
    if places:
        axes.set_xlim(places[0] - 0.06 * width, places[-1] + 0.06 * width)
