"""A study's page: announced comparisons, seed by seed, in every cell; what is missing is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.report.inputs import Arm
from atlas_ray.report.study.page import CellInput, Question, StudyInput, study_results, write_study
from atlas_ray.runs.folder import RunFolder
from tests.support.report_records import SCRIPT, arm, episode, report_input

TASKS = 40


def seeded(name: str, *wins: int, **training: Any) -> Arm:
    """An arm that succeeds in maze and wordle, under each seed, on the first so many tasks."""
    one = arm(name, {}, **training)
    episodes = [
        replace(episode(name, env, task, task < won), sample=seed)
        for seed, won in enumerate(wins)
        for env in ("maze", "wordle")
        for task in range(TASKS)
    ]
    return replace(one, episodes=episodes, runs=len(wins))


def a_study(*questions: Question, **arms: Arm) -> StudyInput:
    given = report_input(*arms.values(), seeds=[0, 1])
    cells = [CellInput("none", "nothing is wasted", 0.0, 1, given), CellInput("half", SCRIPT, 0.5, 1, given)]
    return StudyInput("mine", "When?", "share of wasted steps", {"equal epochs": list(arms)}, cells, questions)


def asked(ours: str, theirs: str, *cells: str) -> Question:
    return Question(f"Is {ours} better than {theirs}?", "yes", ours, theirs, cells or ("none",))


def test_a_difference_is_taken_task_by_task_over_the_seeds_means() -> None:
    study = a_study(asked("gold", "random"), gold=seeded("gold", 30, 20), random=seeded("random", 10, 10))
    (row,) = study_results(study)["comparisons"]
    assert (row["held"], row["cell"], row["difference"]) == ("in", "none", 0.375)  # (30 + 20) / 2 - 10 of 40
    assert row["by_seed"] == [0.5, 0.25]
    assert row["ci95"][0] < 0.375 < row["ci95"][1]
    assert row["outcome"] == "better"


def test_nothing_is_shown_where_the_seeds_do_not_agree() -> None:
    study = a_study(asked("gold", "random"), gold=seeded("gold", 38, 9), random=seeded("random", 10, 10))
    (row,) = study_results(study)["comparisons"]
    assert row["ci95"][0] > 0
    assert (row["by_seed"][0] > 0 > row["by_seed"][1], row["outcome"]) == (True, "none")


def test_a_model_that_was_not_trained_is_the_same_under_every_seed() -> None:
    study = a_study(asked("gold", "base"), gold=seeded("gold", 30, 20), base=seeded("base", 10))
    (row,) = study_results(study)["comparisons"]
    assert row["by_seed"] == [0.5, 0.25]


def test_every_announced_comparison_has_its_row_also_where_it_was_not_run() -> None:
    study = a_study(asked("gold", "random", "none", "half"), asked("gold", "value"), gold=seeded("gold", 1, 1))
    rows = study_results(study)["comparisons"]
    assert [(row["against"], row["cell"], row["outcome"]) for row in rows] == [
        *(("random", "none", "missing"), ("random", "half", "missing"), ("value", "none", "missing")),
    ]


def test_cells_that_are_replicates_are_answered_together_by_what_differs_between_them(tmp_path: Path) -> None:
    won = {"b1": (30, 10), "b2": (20, 10), "b3": (14, 10), "b4": (26, 10), "b5": (10, 10)}
    cells = [
        CellInput(
            name, "a base", float(name[1:]), 1, report_input(seeded("gold", ours), seeded("random", theirs), seeds=[0])
        )
        for name, (ours, theirs) in won.items()
    ]
    question = asked("gold", "random", *won)
    panels = {"equal epochs": ["gold", "random"]}
    study = StudyInput("mine", "When?", "base", panels, cells, [question], replicates=True)
    *own, together = study_results(study)["comparisons"]
    assert [row["difference"] for row in own] == together["by_seed"] == [0.5, 0.25, 0.1, 0.4, 0.0]
    assert (together["cell"], together["difference"], together["outcome"]) == ("all 5 cells", 0.25, "none")
    # mean 0.25, standard deviation 0.2062, Student's quantile 2.776 at 4 degrees of freedom
    assert together["ci95"] == pytest.approx([0.25 - 2.776 * 0.2062 / 5**0.5, 0.25 + 2.776 * 0.2062 / 5**0.5], abs=2e-3)
    assert together["environments"]["maze"]["difference"] == 0.25
    assert "all 5 cells" in Path(write_study(RunFolder(str(tmp_path)), study)).read_text()
    svg = (tmp_path / "figure.svg").read_text()
    assert all(mean in svg for mean in ("50.0", "25.0"))  # 100 wins of 200, 50 of 200
    four = study_results(replace(study, cells=cells[:4]))["comparisons"][-1]
    assert (four["cell"], four["ci95"], four["outcome"]) == ("all 4 cells", [-1.0, 1.0], "none")


def test_the_page_holds_every_figure_and_escapes_what_it_is_given(tmp_path: Path) -> None:
    study = a_study(
        asked("gold", "random", "none", "half"), gold=seeded("gold", 30, 20), random=seeded("random", 10, 10)
    )
    folder = RunFolder(str(tmp_path))
    page = Path(write_study(folder, study)).read_text()
    results = json.loads((tmp_path / "study.json").read_text())
    assert [cell["name"] for cell in results["cells"]] == ["none", "half"]
    gold = results["cells"][0]["arms"][0]
    assert gold["in"] == {"success": 0.625, "by_seed": [0.75, 0.5], "rounds": 2.0}
    assert gold["out"] is None
    assert page.count("+37.5") == 2 * 3  # over both environments, and in each
    assert "+50.0, +25.0" in page
    assert "<script" not in page
    assert "not run" not in page
    svg = (tmp_path / "figure.svg").read_text()
    assert svg.startswith("<svg xmlns=")
    assert "share of wasted steps" in svg
    first = [(tmp_path / name).read_bytes() for name in ("index.html", "study.json", "figure.svg")]
    write_study(folder, study)
    assert [(tmp_path / name).read_bytes() for name in ("index.html", "study.json", "figure.svg")] == first


@pytest.mark.parametrize("held", ["in", "out"])
def test_an_arm_without_episodes_has_no_score(held: str) -> None:
    study = a_study(gold=arm("gold", {}))
    assert study_results(study)["cells"][0]["arms"][0][held] is None
