"""A model whose context is full before its episodes end is not taken for one that fails: its figures are marked."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from atlas_ray.evaluation.metrics import EnvironmentResult, summarise
from atlas_ray.recipes.paper_runs import _overflowed
from atlas_ray.report.paper.ours import PaperRuns, figure, mean_figure
from atlas_ray.report.paper.render import markdown
from atlas_ray.report.results import build_results
from atlas_ray.report.tables import detail_table, print_table, success_table
from atlas_ray.report.terminal import evaluation_table
from atlas_ray.types import StopReason
from tests.support.paper_runs import arm as paper_arm
from tests.support.paper_runs import table
from tests.support.report_records import arm, page_of, report_input
from tests.support.results import SPEC, episode

FULL = StopReason.CONTEXT_OVERFLOW


def result(full: int, of: int = 10, spoilt: int = 0) -> EnvironmentResult:
    played = [episode(i, 0.0, stop=FULL if i < full else StopReason.MAX_ROUNDS) for i in range(of)]
    played += [episode(of + i, 0.0, stop=StopReason.ENV_ERROR) for i in range(spoilt)]
    return summarise(played, SPEC, of + spoilt)


def printed(**results: EnvironmentResult) -> str:
    out = io.StringIO()
    found = evaluation_table({name: [one] for name, one in results.items()})
    Console(file=out, width=200).print(found)
    return out.getvalue()


def test_the_share_is_of_the_episodes_that_count() -> None:
    assert result(5, of=10, spoilt=10).overflowed == 0.5
    assert summarise([], SPEC, 0).overflowed is None


def test_the_terminal_marks_it_from_a_tenth_on() -> None:
    shown = printed(whole=result(10), some=result(1), few=result(1, of=11), none=result(0))
    lines = [line.split() for line in shown.splitlines()]
    marks = {line[0]: "¶" in line for line in lines if line[1:2] == ["maze"]}
    assert marks == {"whole": True, "some": True, "few": False, "none": False}
    assert "no longer fitted the model's context: whole in maze 100 %, some in maze 10 %." in " ".join(shown.split())
    assert "¶" not in printed(few=result(1, of=11))


def test_the_report_marks_and_names_it(tmp_path: Path) -> None:
    full = arm("small", {"maze": 0, "wordle": 20, "blocksworld": 12})
    played = [replace(e, stop_reason=FULL) if e.env == "maze" else e for e in full.episodes]
    given = report_input(replace(full, episodes=played), arm("large", {"maze": 30, "wordle": 20, "blocksworld": 12}))
    results = build_results(given)
    cells = {cell["env"]: cell["overflowed"] for cell in results["arms"][0]["environments"]}
    assert cells == {"maze": 1.0, "wordle": 0.0, "blocksworld": 0.0}
    shown = success_table(results)
    assert [[cell.overflowed for cell in row].count(True) for row in shown.rows] == [1, 0]
    assert any("small in maze 100 %" in note for note in shown.notes)
    out = io.StringIO()
    print_table(shown, console=Console(file=out, width=200))
    assert "0.0¶" in out.getvalue()
    assert [row[7].text for row in detail_table(results).rows][:3] == ["100", "0", "0"]
    page = page_of(given, tmp_path)
    assert 'title="many episodes ended with a full context">¶' in page


def test_the_papers_tables_mark_it() -> None:
    played = [episode(i, 0.0, stop=FULL) for i in range(4)]
    share = _overflowed(played)
    assert share == 1.0
    small = paper_arm("small", {"maze": [0] * 4, "wordle": [1] * 4}, overflowed={"maze": share, "wordle": 0.0})
    found = [figure(small, env) for env in ("maze", "wordle")]
    assert [one.overflowed for one in found if one] == [True, False]
    mean = mean_figure(small, ["maze", "wordle"])
    assert mean is not None
    assert mean.overflowed
    row = next(row.key for row in table("table1").rows)
    text = markdown(table("table1", PaperRuns({"small": small}, {"table1": {row: "small"}})))
    assert "0.0¶ [" in text
    assert "¶: at least 10% of the episodes ended" in text
    other = paper_arm("small", {"maze": [0] * 4}, overflowed={"maze": 0.0})
    assert "¶" not in markdown(table("table1", PaperRuns({"small": other}, {"table1": {row: "small"}})))


@pytest.mark.parametrize("share", [0.0, None])
def test_results_written_before_have_no_mark(share: float | None) -> None:
    assert replace(result(0), overflowed=share).flagged is False
    assert "¶" not in printed(old=replace(result(0), overflowed=share))
