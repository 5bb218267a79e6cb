"""Success against what training took: a dot an arm, with its interval and its name in a column of their own.

Flows in: dots; flows out: a drawing in which no name stands on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure as Drawing

from atlas_ray.report.drawing import ACCENT, INK, MUTED, panel, short

_GAP, _TOP = 6.4, 104.0  # between names, and the upper end of the axis; both in points of success


@dataclass(frozen=True, slots=True)
class Dot:
    """An arm: what it took, and what it reached with its limits, all in per cent."""

    name: str
    x: float
    value: float
    low: float
    high: float


def scatter(dots: Sequence[Dot], critical: str, xlabel: str, ylabel: str) -> Drawing:
    """Draws at least one dot."""
    figure, axes = panel(2.9, 0.13, 0.17, 0.68, 0.97, grid="both")
    axes.set(xlim=(-4, 104), ylim=(0, _TOP), xticks=[0, 25, 50, 75, 100], yticks=[0, 25, 50, 75, 100])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    for dot, height in zip(dots, spread([dot.value for dot in dots]), strict=True):
        colour = ACCENT if dot.name == critical else INK
        axes.plot([dot.x, dot.x], [dot.low, dot.high], color=colour, linewidth=1.2, alpha=0.3)
        axes.plot([dot.x], [dot.value], "o", color=colour, markersize=5.5, zorder=3 + (dot.name == critical))
        pointer = axes.plot([dot.x, 106], [dot.value, height], color=MUTED, linewidth=0.6, alpha=0.5)
        pointer[0].set_clip_on(False)
        axes.text(108, height, short(dot.name), va="center", ha="left", color=colour)
    return figure


def spread(heights: Sequence[float], top: float = _TOP) -> list[float]:
    """Heights of names on an axis that ends at `top`, moved apart as far as they need to be read and as little as order
    allows."""
    gap = min(_GAP * top / _TOP, top / len(heights))
    order = sorted(range(len(heights)), key=lambda i: (heights[i], i))
    runs: list[list[int]] = []
    for i in order:
        runs.append([i])
        while len(runs) > 1 and _foot(runs[-1], heights, gap, top) < _foot(runs[-2], heights, gap, top) + gap * len(
            runs[-2]
        ):
            runs[-2:] = [runs[-2] + runs[-1]]
    placed = {i: _foot(run, heights, gap, top) + gap * k for run in runs for k, i in enumerate(run)}
    return [placed[i] for i in range(len(heights))]


def _foot(run: Sequence[int], heights: Sequence[float], gap: float, top: float) -> float:
    """Where the lowest name of a run stands when the run is centred on its dots, within the axis."""
    length = gap * (len(run) - 1)
    centred = sum(heights[i] for i in run) / len(run) - length / 2
    return min(max(centred, gap / 2), top - gap / 2 - length)
