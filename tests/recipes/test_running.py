"""A recipe's stages in processes of their own: at once, failing, stopped; and what is written down of them."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from atlas_ray.config import validate
from atlas_ray.errors import AtlasError, ConfigurationChanged, Stopped, StorageTimeout
from atlas_ray.recipes import running
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.scheduling import Stage
from atlas_ray.recipes.settings import RecipeConfig
from atlas_ray.recipes.stages import stages
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.status import STAGES, StageRecord, status_table
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import StopReason
from tests.support import recipe_stages as does
from tests.support.evaluations import an_episode

pytestmark = pytest.mark.usefixtures("ray_cluster")
SMALL: dict[str, Any] = {
    "name": "small",
    "expert": {"envs": ["maze"], "tasks": 4},
    "base": "org/base",
    "arms": {"gold": {"name": "gold"}},
    "evaluate": {"tasks": {"maze": 3}},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return Recipe(validate(RecipeConfig, SMALL | {"runs": str(tmp_path)}))


def run(recipe: Recipe, planned: Sequence[Stage], monkeypatch: pytest.MonkeyPatch, jobs: int = 2) -> None:
    monkeypatch.setattr(running, "stages_for", lambda recipe, nodes, jobs, whole: (planned, jobs))
    running.run(recipe, jobs=jobs, skip_preflight=True)


def states(recipe: Recipe) -> dict[str, str]:
    record = RunFolder(recipe.root).read_json(STAGES)
    return {name: stage["state"] for name, stage in record["stages"].items()}


def shown(recipe: Recipe) -> list[str]:
    """The status table's rows, as text without lines."""
    console = Console(file=io.StringIO(), width=250)
    console.print(status_table([recipe.root]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]


def test_two_stages_run_at_the_same_time_and_the_last_one_here(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = [
        Stage("train/a", "words", partial(does.meet, tmp_path, "a", "b")),
        Stage("train/b", "words", partial(does.meet, tmp_path, "b", "a")),
    ]
    last = Stage("report", "words", partial(does.done, tmp_path, "report"), needs=frozenset(["train/a", "train/b"]))
    run(recipe, [*pair, last], monkeypatch)
    pids = {name: int((tmp_path / name).read_text()) for name in ("a", "b", "report")}
    assert pids["report"] == os.getpid()
    assert len(set(pids.values())) == 3
    said = capfd.readouterr().err
    assert "train/a | a waits for b" in said
    assert "1 waiting, running: train/a, train/b" in said
    assert set(states(recipe).values()) == {"finished"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_lines_of_stages_fit_80_columns_and_tell_the_time_left_once_a_stage_was_timed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    screen = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(running, "console", screen)
    monkeypatch.setattr(running, "_PASSED_OVER", 0.0)
    call = partial(does.done, tmp_path, "done")
    names = [f"train/{letter}" for letter in "abcd"]
    needs = [frozenset(names[:n]) for n in range(4)]
    planned = [Stage(n, "many words " * 20, call, 90.0, needs=all_) for n, all_ in zip(names, needs, strict=True)]
    run(recipe, planned, monkeypatch, jobs)
    lines = [line for line in screen.file.getvalue().splitlines() if line[:1].isdigit()]  # type: ignore[attr-defined]
    assert [line.split()[:2] for line in lines] == [[f"{n}/4", f"train/{c}"] for n, c in enumerate("abcd", 1)]
    assert all(len(line) <= 80 for line in lines)
    assert ["min left in all" in line for line in lines] == [False, True, True, True]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_stage_leaves_its_cell_empty_and_the_rest_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    def places(name: str) -> tuple[str, ...]:
        return (str(tmp_path / "evaluate" / name),)

    needs = {name: frozenset([f"select/{name}"]) for name in "ab"}
    planned = [
        Stage("select/a", "words", partial(does.refuse, "no key")),
        Stage("select/b", "words", partial(does.done, tmp_path, "b")),
        Stage("train/a", "words", partial(does.done, tmp_path, "never"), needs=needs["a"], folders=places("a")),
        Stage("train/b", "words", partial(does.done, tmp_path, "trained"), needs=needs["b"], folders=places("b")),
        Stage("train/c", "words", does.break_down, folders=places("c")),
        Stage(
            "evaluate",
            "words",
            partial(does.record_left_out, tmp_path, "evaluated"),
            parts={"train/a": "a", "train/b": "b", "train/c": "c"},
        ),
    ]
    with pytest.raises(AtlasError, match="2 stages failed") as caught:
        run(recipe, planned, monkeypatch, jobs)
    assert caught.value.exit_code == 1
    said = str(caught.value)
    assert "select/a: no key (do otherwise)" in said
    assert "train/c: RuntimeError: a bug" in said
    assert "skipped, for they need these: train/a" in said
    assert not (tmp_path / "never").exists()
    assert (tmp_path / "trained").exists()
    left_out = {"a": "select/a failed: no key", "c": "train/c failed: RuntimeError: a bug"}
    assert (tmp_path / "evaluated").read_text() == str(left_out)
    reasons = {name: failure_of(RunFolder(places(name)[0])) for name in "abc"}
    assert reasons == {"a": "select/a failed: no key", "b": None, "c": "RuntimeError: a bug"}
    assert states(recipe)["train/a"] == "skipped"
    rows = shown(recipe)
    assert any("select/a failed no key" in row for row in rows)
    assert any("train/a skipped select/a failed: no key" in row for row in rows)


def test_a_process_that_is_killed_is_a_stage_that_failed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [Stage("train/a", "words", does.vanish), Stage("train/b", "words", partial(does.done, tmp_path, "b"))]
    with pytest.raises(AtlasError, match="train/a: its process ended with signal SIGKILL"):
        run(recipe, planned, monkeypatch)
    assert (tmp_path / "b").exists()


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])
def test_a_signal_stops_all_stages_and_waits_for_them(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException]
) -> None:
    names = ("a", "b")

    def interrupt() -> None:
        for name in names:
            does.wait_for(tmp_path / name)
        rows.extend(shown(recipe))
        os.kill(os.getpid(), number)

    # Ray, once it is started here, takes SIGTERM for itself
    monkeypatch.setattr(running, "connect", lambda _: signal.signal(signal.SIGTERM, lambda *_: sys.exit(15)))
    rows: list[str] = []
    thread = threading.Thread(target=interrupt)
    thread.start()
    planned = [Stage(f"train/{name}", "words", partial(does.hold_on, tmp_path, name)) for name in names]
    planned.append(Stage("report", "words", print, needs=frozenset(["train/a", "train/b"])))
    with pytest.raises(error):
        run(recipe, planned, monkeypatch)
    thread.join()
    assert any("train/a running" in row for row in rows)
    assert any("report waiting for train/a, train/b" in row for row in rows)
    if number == signal.SIGINT:
        assert all((tmp_path / f"{name} ended").exists() for name in names)
    for name in names:
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / name).read_text()), 0)
    with pytest.raises(AtlasError, match="no run lies below"):  # nothing runs, waits or failed
        status_table([recipe.root])


def test_a_signal_ends_a_stage_that_has_just_begun(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = running.StageProcess.begin

    def begin_and_stop(process: running.StageProcess, call: Any) -> None:
        begin(process, call)
        does.wait_for(tmp_path / "a")
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(running.StageProcess, "begin", begin_and_stop)
    with pytest.raises(Stopped):
        run(recipe, [Stage(name, "words", partial(does.hold_on, tmp_path, name)) for name in "ab"], monkeypatch)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a").read_text()), 0)


def test_another_configuration_stops_the_whole_recipe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [
        Stage("train/a", "words", does.refuse_changed),
        Stage("train/b", "words", partial(does.hold_on, tmp_path, "b")),
        Stage("report", "words", partial(does.done, tmp_path, "report"), parts={"train/a": "", "train/b": ""}),
    ]
    with pytest.raises(ConfigurationChanged):
        run(recipe, planned, monkeypatch)
    assert not (tmp_path / "report").exists()


def test_a_store_that_is_silent_is_not_waited_for(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()
    planned = [Stage("train/a", "words", does.meet_silence), Stage("b", "words", partial(does.done, tmp_path, "b"))]
    with pytest.raises(StorageTimeout):
        run(recipe, planned, monkeypatch)
    assert time.monotonic() - begun < does.SECONDS


def test_ctrl_c_ends_the_recipe_though_cleaning_up_fails(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = [Stage("a", "words", does.fail_to_clean_up), Stage("b", "words", partial(does.done, tmp_path, "b"))]
    with pytest.raises(AtlasError, match="no connection"):
        run(recipe, planned, monkeypatch, jobs=1)
    assert not (tmp_path / "b").exists()


def test_a_cluster_that_does_not_answer_is_left_to_the_stages_that_need_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "nodes_at_hand", lambda _: does.refuse("no answer"))
    run(recipe, [Stage("report", "words", partial(does.done, tmp_path, "report"))], monkeypatch, jobs=1)
    assert (tmp_path / "report").exists()


def test_models_that_were_played_one_by_one_are_compared_as_they_are(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_ray.evaluation.stage.connect", lambda _: pytest.fail("it plays once more"))
    played = [an_episode(0, 0, True), an_episode(1, 0, False, StopReason.ENV_ERROR)]
    for name in ("base", "gold"):
        RunFolder(recipe.at("evaluate", name)).write_shard(EPISODES, played)
    (compare,) = (stage for stage in stages(recipe, at_once=True) if stage.name == "compare")
    compare.run()
    (found,) = RunFolder(recipe.at("evaluate")).read_json("comparisons.json")
    assert (found["ours"], found["theirs"]) == ("gold", "base")


def test_a_recipe_whose_process_is_gone_neither_runs_nor_waits(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(recipe.root)
    told = {"train/a": {"state": "running"}, "train/b": {"state": "failed", "why": "no room"}}
    StageRecord(folder, lambda: told).write()
    assert any("train/a running" in row for row in shown(recipe))
    record = json.loads(folder.read_bytes(STAGES))
    folder.write_json(STAGES, record | {"seen": record["seen"] - 3600})
    rows = shown(recipe)
    assert not any("running" in row for row in rows)
    assert any("train/b failed no room" in row for row in rows)
