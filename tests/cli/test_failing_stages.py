"""Every stage where all units fail, or one of ten, or there is nothing to do, or Ctrl-C is pressed.

Each time the exit code, the last lines on screen, what `atlas status` says, and the same command once more.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_ray.cli.main import main
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from tests.selection.test_selection import data_in, expert
from tests.support.failing import CAUSE, STAGES, UNITS, Stage, a_stage, faults

ALL, ONE = set(range(UNITS)), {3}


@pytest.fixture(params=list(STAGES))
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    faults.failing, faults.interrupted, faults.asked = set(), None, []
    handler = signal.getsignal(signal.SIGINT)
    yield a_stage(request.param, tmp_path, monkeypatch)
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def atlas(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Atlas:
    monkeypatch.setenv("COLUMNS", "500")  # no line of a table is broken
    return Atlas(capsys)


class Atlas:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """A verb's exit code, and all that it says."""
        code = 0
        faults.asked.clear()
        try:
            main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return code, said.out + said.err

    def status(self, stage: Stage) -> str:
        """The row of a stage, in one line."""
        code, said = self("status", stage.run)
        assert code == 0
        return " ".join(said.split())


def recorded(stage: Stage) -> list[str]:
    """Units on disk that are well, each as often as it was written."""
    folder = RunFolder(stage.run)
    tables = [t for t in (SELECTIONS, EPISODES, TRAJECTORIES) for t in folder.tables(t)]
    wrong = [["error"] if "error" in t.column_names else [] for t in tables]
    return [
        row["id"]
        for table, error in zip(tables, wrong, strict=True)
        for row in table.select(["id", *error]).to_pylist()
        if not row.get("error")
    ]


def test_all_fail(stage: Stage, atlas: Atlas) -> None:
    faults.failing = ALL
    code, said = atlas(*stage.arguments)
    assert code == 1
    assert f"atlas: {UNITS} of {UNITS} " in said.replace("arm: ", "")
    assert "failed; the first: " in said
    assert CAUSE in said.splitlines()[-2]
    status = atlas.status(stage)
    assert "failed" in status
    assert CAUSE in status
    assert "finished" not in status

    faults.failing = set()
    code, said = atlas(*stage.arguments)
    assert code == 0, said
    assert len(set(recorded(stage))) == UNITS
    assert "finished" in atlas.status(stage)


def test_one_of_ten_fails(stage: Stage, atlas: Atlas) -> None:
    faults.failing = ONE
    code, said = atlas(*stage.arguments)
    assert code == 0, said
    status = atlas.status(stage)
    assert "finished" in status
    assert " 1" in status
    assert len(recorded(stage)) == UNITS - 1

    faults.failing = set()
    code, said = atlas(*stage.arguments)
    assert code == 0, said
    assert set(faults.asked) == (ONE if stage.retries else set())
    assert len(recorded(stage)) == UNITS - 1 + stage.retries


def test_more_fail_than_may(stage: Stage, atlas: Atlas) -> None:
    faults.failing = ONE
    code, said = atlas(*stage.arguments, "--set", "max_failed=0.05")
    assert code == 1
    assert f"1 of {UNITS}" in said
    assert "more than max_failed=0.05 allows; the first:" in said
    assert CAUSE in said.splitlines()[-2]
    assert CAUSE in atlas.status(stage)
    assert len(recorded(stage)) == UNITS - 1

    code, said = atlas(*stage.arguments)  # the setting may differ: what there is is taken
    assert code == 0, said
    assert set(faults.asked) == ONE


def test_nothing_to_do(stage: Stage, atlas: Atlas) -> None:
    assert atlas(*stage.arguments)[0] == 0
    before = atlas.status(stage)
    code, said = atlas(*stage.arguments)
    assert code == 0, said
    assert faults.asked == []
    assert len(recorded(stage)) == UNITS
    assert atlas.status(stage).rpartition("seconds")[0] == before.rpartition("seconds")[0]


def test_interrupted(stage: Stage, atlas: Atlas) -> None:
    faults.interrupted = 5
    code, said = atlas(*stage.arguments)
    assert code == 130
    assert said.splitlines()[-1] == "atlas: stopped; the same command goes on from here"
    assert "unfinished" in atlas.status(stage)

    faults.interrupted = None
    code, said = atlas(*stage.arguments)
    assert code == 0, said
    assert sorted(recorded(stage)) == sorted(set(recorded(stage)))
    assert len(recorded(stage)) == UNITS
    assert "unfinished" not in atlas.status(stage)


# --- what fails without a call, and what reads a selection that has failed ---


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    data_in(tmp_path / "data", [expert(10, i) for i in range(UNITS)])  # without gold
    return ["--data", str(tmp_path / "data")]


@pytest.fixture
def failed(tmp_path: Path, data: list[str], atlas: Atlas) -> str:
    """A selection of which nothing came."""
    run = str(tmp_path / "failed")
    code, said = atlas("select", *data, "--run", run, "--set", "selector.name=gold")
    assert code == 1
    assert "10 of 10 selections failed; the first: no gold" in said
    return run


def test_a_table_whose_rows_are_refused_exits_1_with_the_first_reason(
    tmp_path: Path, data: list[str], atlas: Atlas
) -> None:
    rows = "".join(f"maze/maze_{i},{99 + i}\n" for i in range(UNITS))
    (tmp_path / "t.csv").write_text(f"trajectory_id,chosen\n{rows}")
    settings = ["--set", "selector.name=file", "--set", f"selector.path={tmp_path}/t.csv"]
    code, said = atlas("select", *data, "--run", str(tmp_path / "run"), *settings)
    assert code == 1
    first = "rejected row: line 2: step 99 does not exist: the steps are 1 to 10"
    assert f"10 of 10 selections failed; the first: {first}" in said


def test_data_without_a_usable_row_names_the_first_reason(tmp_path: Path, atlas: Atlas) -> None:
    (tmp_path / "rows.jsonl").write_text('{"item_id": "maze_1", "conversations": []}\nno JSON\n')
    run = str(tmp_path / "run")
    code, said = atlas("select", "--data", str(tmp_path / "rows.jsonl"), "--run", run, "--set", "selector.name=all")
    assert code == 2
    assert "holds no usable trajectory; the first reason: " in said
    assert "rows.jsonl, row 1: " in said
    assert "rows.jsonl, row 1: " in " ".join(atlas("status", run)[1].split())


def test_what_fails_by_kinds_and_what_it_cost_is_on_the_screen(tmp_path: Path, data: list[str], atlas: Atlas) -> None:
    rows = "".join(f"maze/maze_{i},{99 if i == 4 else 1}\n" for i in range(1, UNITS))
    (tmp_path / "t.csv").write_text(f"trajectory_id,chosen\n{rows}")
    settings = ["--set", "selector.name=file", "--set", f"selector.path={tmp_path}/t.csv"]
    code, said = atlas("select", *data, "--run", str(tmp_path / "run"), *settings)
    assert code == 0
    assert "errors (no row 1, rejected row 1), first_error no row: " in said


def test_a_python_function_is_not_called_after_as_many_failures_in_a_row_as_make_no_sense(
    tmp_path: Path, atlas: Atlas
) -> None:
    """What it chose before is kept, and the run goes on from there once it is mended."""
    faults.failing, faults.interrupted = set(range(10, 1000)), None
    data_in(tmp_path / "many", [expert(10, i) for i in range(200)])
    settings = ["--set", "selector.name=python", "--set", "selector.call=tests.support.failing:choose"]
    command = ["select", "--data", str(tmp_path / "many"), "--run", str(tmp_path / "run"), *settings]
    code, said = atlas(*command)
    assert code == 1
    assert (
        f"32 selections in a row failed; the first: failed call: tests.support.failing:choose: OSError: {CAUSE}" in said
    )
    assert len(faults.asked) == 10 + 32
    faults.failing = set()
    assert atlas(*command)[0] == 0
    assert len(faults.asked) == 190


def test_a_finished_selection_of_which_more_failed_than_may_is_no_longer_one(
    tmp_path: Path, data: list[str], atlas: Atlas
) -> None:
    """As versions left it that knew no such limit."""
    rows = "".join(f"maze/maze_{i},{i}\n" for i in range(UNITS))
    (tmp_path / "t.csv").write_text(f"trajectory_id,chosen\n{rows}")  # steps are counted from 1
    settings = ["--set", "selector.name=file", "--set", f"selector.path={tmp_path}/t.csv"]
    command = ["select", *data, "--run", str(tmp_path / "run"), *settings]
    assert atlas(*command)[0] == 0
    code, said = atlas(*command, "--set", "max_failed=0.05")
    assert code == 1
    assert "1 of 10 selections failed, more than max_failed=0.05 allows; the first: rejected row: line 2" in said
    assert "failed" in atlas("status", str(tmp_path / "run"))[1]
    assert atlas(*command)[0] == 0


def test_training_on_a_selection_that_failed_names_the_cause(
    tmp_path: Path, data: list[str], failed: str, atlas: Atlas
) -> None:
    run = str(tmp_path / "model")
    code, said = atlas("train", *data, "--run", run, "--set", f"selection={failed}", "--set", "model=m")
    assert code == 2
    assert f"the selection in {failed} has failed: 10 of 10 selections failed; the first: no gold" in said
    assert "has failed: 10 of 10 selections" in atlas("status", run)[1]


def test_what_else_reads_a_selection_that_failed_names_the_cause(
    tmp_path: Path, data: list[str], failed: str, atlas: Atlas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (
        ["view-mask", *data, "--model", "m", "--selection", failed],
        ["verify", *data, "--set", f"selection={failed}"],
        ["select", *data, "--set", "selector.name=complement", "--set", f"selector.reference={failed}"],
    ):
        code, said = atlas(*command)
        assert code == 2
        assert "no gold" in said
