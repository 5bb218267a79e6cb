"""Drawings of results, selections and the paper's figures: there where there are numbers, with their n, and escaped."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.report.figures import draw
from atlas_ray.report.paper.figures import cost_figures, figure2
from atlas_ray.report.paper.ours import PaperRuns, TrainingCost
from atlas_ray.report.results import build_results
from atlas_ray.report.scatter import spread
from atlas_ray.report.selection_figures import _along, _fences, selection_figures
from atlas_ray.selection.compare.agreement import compare_selections
from atlas_ray.types import Category, GoldStep, Selection
from tests.support.paper_runs import arm
from tests.support.report_records import arm as played_arm
from tests.support.report_records import page_of, realistic, report_input, trajectory

GOLD = (GoldStep(2, 1, Category.CRITICAL_ACTION), GoldStep(4, 2, Category.PLAN_CREATION))
EVIL = "<script>&x"


def selection(name: str, number: int, chosen: tuple[int, ...], scores: tuple[float, ...] | None = None) -> Selection:
    categories = dict.fromkeys(chosen, Category.CRITICAL_ACTION)
    key = f"maze/maze_{number}"
    return Selection(key, "maze", f"maze_{number}", name, 0.5, 4, chosen, scores=scores, categories=categories)


def drawn(selections: dict[str, list[Selection]]) -> dict[str, Any]:
    rows = compare_selections(list(selections.items()), [trajectory("maze", i, gold=GOLD) for i in range(60)])
    return {
        found.slug: found
        for found in selection_figures({"selectors": rows, "verdict": {"critical": "gold"}}, selections)
    }


def test_selections_are_drawn_with_their_n() -> None:
    value = [selection("value", i, (2,), (0.1, 0.5, 0.0, 0.2 * i)) for i in range(3)]
    found = drawn({"gold": [selection("gold", i, (2, 4)) for i in range(3)], EVIL: value})
    assert set(found) == {"categories", "agreement", "scores-1", "values-1"}
    assert "Steps: gold 6" in found["categories"].caption
    assert "over 3 trajectories" in found["agreement"].caption
    assert found["scores-1"].caption.startswith("3 chosen steps above, 9 others below")
    assert found["values-1"].caption.startswith("Mean of 3 trajectories")
    for figure in found.values():
        assert "<script" not in figure.svg
        ElementTree.fromstring(figure.svg)
        # colours are the page's, so that it can be light or dark
        assert not re.search(r"#0a000\d", figure.svg)
        assert "var(--accent)" in figure.svg


def test_few_scores_of_zero_or_less_are_no_powers_of_ten() -> None:
    spread = [selection("value", i, (2,), (0.001 + i / 1000, 0.5, 0.2, 0.9)) for i in range(60)]
    assert "power of ten" in drawn({"value": spread})["scores-0"].svg
    spread[0] = selection("value", 0, (2,), (-0.1, 0.5, 0.2, 0.9))
    assert "power of ten" not in drawn({"value": spread})["scores-0"].svg


def test_nothing_is_drawn_of_nothing() -> None:
    assert drawn({"gold": [selection("gold", i, ()) for i in range(3)]}) == {}
    assert figure2(PaperRuns({}, {"figure2": {"llama/all": "all"}})) == []
    assert cost_figures(PaperRuns({}, {})) == []


def test_values_add_up_along_the_way() -> None:
    assert _along([0.5, 0.0, 0.25, 0.25]) == pytest.approx([0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0])


def test_figure_2_shows_ours_beside_the_papers() -> None:
    runs = PaperRuns(
        {"all": arm("all", {"maze": [1, 0]}), "atlas": arm("atlas", {"maze": [1, 1], "pddl": [0.5, 0.5]})},
        {"figure2": {"llama/all": "all", "llama/atlas": "atlas"}},
    )
    inside, outside = figure2(runs)
    assert (inside.slug, outside.slug) == ("figure2-held-in-avg", "figure2-held-out-avg")
    assert "Ours: maze (4 episodes)" in inside.caption
    assert "Ours: pddl (2 episodes)" in outside.caption
    assert "Qwen2.5-7B" in inside.svg


def test_cost_is_held_against_success_where_arms_played_the_same() -> None:
    cost = {0: TrainingCost(flops=6e12, device_seconds=60.0)}
    arms = {name: arm(name, {"maze": [1, 0]}, training=cost) for name in ("all", "atlas")}
    arms["untimed"] = arm("untimed", {"maze": [1, 0]}, training={0: TrainingCost(device_seconds=60.0)})
    arms["one"] = arm("one", {"maze": [1, 0], "wordle": [1, 0]}, training=cost)
    (found,) = cost_figures(PaperRuns(arms | {"base": arm("base", {"maze": [1]})}, {}))
    assert found.caption == "maze; 4 episodes of 2 arms."
    assert "operations of training, % of 6e+12" in found.svg


@given(st.lists(st.floats(0, 100), min_size=1, max_size=16))
def test_no_name_stands_on_another_nor_outside_of_the_axis(heights: list[float]) -> None:
    placed = spread(heights)
    ordered = sorted(placed)
    assert all(above - below >= min(6.4, 104 / len(heights)) - 1e-9 for below, above in pairwise(ordered))
    assert ordered[0] > 0
    assert ordered[-1] < 104
    assert [placed[i] for i in sorted(range(len(heights)), key=lambda i: (heights[i], i))] == ordered


def test_far_outliers_do_not_flatten_a_histogram() -> None:
    scores = [1.0 + i / 100 for i in range(100)]
    assert _fences(scores) == (1.0, 1.99)
    assert _fences([*scores, 1e6, 1e7, 1e8]) == (1.0, 1.99)
    assert _fences([0.0] * 90 + [1.0] * 10) == (0.0, 1.0)


def test_training_curves_are_thinned_and_drawn_per_arm(tmp_path: Path) -> None:
    falling = [4.0 / (1 + step) for step in range(360)]
    trained = played_arm("gold", {"maze": 30}, selector="gold", losses=falling, validation=[(180, 0.5), (360, 0.25)])
    results = build_results(report_input(played_arm("base", {"maze": 4}), trained))
    base, gold = results["arms"]
    assert (base["losses"], base["validation"]) == ([], [])
    assert [len(gold["losses"]), gold["losses"][0], gold["losses"][-1][0]] == [120, [3, 2.444444], 360]
    assert gold["validation"] == [[180, 0.5], [360, 0.25]]
    [panel] = draw(results)["losses"]
    assert panel.title == "gold"
    assert "Training loss of gold" in panel.svg
    assert "held-back tasks" in page_of(report_input(trained), tmp_path)


def test_figures_carry_the_page_s_colours_and_no_names_of_their_own() -> None:
    panels = draw(build_results(realistic()))
    assert [p.title for p in panels["success"]] == ["maze", "wordle", "blocksworld"]
    assert [p.group for p in panels["cost"]] == ["held in", "held out"]
    assert len(panels["selectors"]) == len(panels["positions"]) == 1
    for panel in (p for group in panels.values() for p in group):
        assert panel.svg.startswith("<svg ")
        assert "var(--ink)" in panel.svg
        assert "#0a00" not in panel.svg
        assert "xmlns" not in panel.svg
