"""The figure of docs/scaling.md is what its script draws from today's recipe, and the page says the same hours."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.makespan import FIGURE, ROOT, Point, draw, points


@pytest.fixture(scope="module")
def found() -> list[Point]:
    return points()


def test_the_committed_figure_is_what_the_script_draws(found: list[Point]) -> None:
    assert FIGURE.read_text() == draw(found), "python -m bench.makespan draws it anew"
    assert draw([*found[:-1], replace(found[-1], hours=found[-1].hours * 1.5)]) != draw(found)


def test_the_page_says_the_hours_of_the_figure(found: list[Point]) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    told = {f"{hours:.1f} h" for p in found for hours in (p.hours, p.alone, p.chain)}
    assert {hours for hours in told if hours not in page} == set()


def test_more_gpus_are_never_slower_and_no_faster_than_the_longest_chain(found: list[Point]) -> None:
    hours = [p.hours for p in found]
    assert hours == sorted(hours, reverse=True)
    assert all(p.hours > p.chain for p in found)
    assert len({p.alone for p in found}) == 1
