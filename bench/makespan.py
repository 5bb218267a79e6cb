"""The figure of docs/scaling.md: how long `make paper` takes on how many GPUs. Nothing is run.

    python -m bench.makespan [--out docs/results/makespan.svg]

Flows in: the recipe, and the hours that its dry run reckons with; flows out: one drawing, the same every time. Stages
side by side are scheduled as a run schedules them; one after another is `--jobs 1`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure as Drawing

from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.plan import assumed_nodes, timed
from atlas_ray.recipes.scheduling import makespan, urgency
from atlas_ray.recipes.stages import opened, stages
from atlas_ray.report.drawing import ACCENT, INK, MUTED, STYLE, bare, standalone, to_svg

ROOT = Path(__file__).parents[1]
FIGURE = ROOT / "docs" / "results" / "makespan.svg"
GPUS = (4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Point:
    """The paper's recipe on so many GPUs.

    Attributes:
        hours: As many stages at once as have room.
        alone: One stage after another.
        chain: Of the longest way through the recipe, each stage behind the one that it needs: no cluster is faster.
    """

    gpus: int
    hours: float
    alone: float
    chain: float


def point(recipe: Recipe, gpus: int) -> Point:
    """What the dry run says of a cluster of so many."""
    side, one_by_one = (timed(recipe, stages(recipe, gpus=gpus, at_once=several)) for several in (True, False))
    return Point(
        gpus,
        makespan(side, assumed_nodes(gpus), sys.maxsize) / 3600,
        sum(stage.seconds for stage in one_by_one) / 3600,
        max(urgency(side).values()) / 3600,
    )


def points(gpus: Sequence[int] = GPUS) -> list[Point]:
    """The figure's."""
    recipe, _, _ = opened(str(ROOT / "jobs" / "paper.yaml"))
    return [point(recipe, number) for number in gpus]


def draw(found: Sequence[Point]) -> str:
    """An SVG file: both axes double from line to line."""
    first, last = found[0], found[-1]
    xs = [p.gpus for p in found]
    lines = (
        ("one after another (--jobs 1)", [p.alone for p in found], INK, "-"),
        ("side by side", [p.hours for p in found], ACCENT, "-"),
        ("the same hours shared evenly", [first.alone * first.gpus / x for x in xs], MUTED, ":"),
        ("longest chain of stages", [last.chain] * len(xs), MUTED, "--"),
    )
    with style.context(["default", STYLE]):
        figure = Drawing(figsize=(6.4, 3.4))
        axes = figure.add_axes((0.09, 0.14, 0.58, 0.82))
        bare(axes)
        axes.grid(axis="y")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(xs, [str(x) for x in xs])
        ticks = [1, 2, 4, 8, 16, 32, 64, 128]
        axes.set_yticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set(xlim=(xs[0] * 0.9, xs[-1] * 1.1), ylim=(1.4, 128), xlabel="GPUs", ylabel="hours")
        for name, hours, colour, dashes in lines:
            mark = "o" if colour == ACCENT else None
            axes.plot(xs, hours, dashes, color=colour, marker=mark, markersize=4, zorder=3 if mark else 2)
            axes.text(xs[-1] * 1.2, hours[-1], name, va="top" if dashes == ":" else "center", ha="left", color=colour)
        for p in found:
            axes.text(p.gpus, p.hours * 1.14, f"{p.hours:.1f}", ha="left", va="bottom", color=ACCENT, fontsize=8)
        axes.text(xs[-1], last.alone * 1.1, f"{last.alone:.1f}", ha="right", va="bottom", color=INK, fontsize=8)
        axes.text(xs[0], last.chain * 1.1, f"{last.chain:.1f}", ha="left", va="bottom", color=MUTED, fontsize=8)
        return standalone(to_svg(figure, "makespan", "Hours of make paper against GPUs"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws, and prints what it draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FIGURE)
    out, found = parser.parse_args(arguments).out, points()
    for p in found:
        share = found[0].alone * found[0].gpus / p.gpus / p.hours
        print(f"{p.gpus:3} GPUs {p.hours:6.1f} h side by side ({share:.0%} of even), {p.alone:.1f} h one after another")
    print(f"longest chain: {found[-1].chain:.1f} h")
    out.write_text(draw(found))


if __name__ == "__main__":
    main()
