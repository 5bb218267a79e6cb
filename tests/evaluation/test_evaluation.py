"""The evaluation stage on real Ray, with scripted agents in place of models; once with the real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.errors import TooManyFailed, UserError
from atlas_ray.evaluation import stage
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode
from tests.support.evaluations import Scripted, config


@pytest.fixture
def scripted(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", Scripted)


def facts(run: Path, arm: str) -> list[Episode]:
    return [replace(e, seconds=0.0) for e in RunFolder(str(run)).child(arm).read(EPISODES)]


@pytest.mark.usefixtures("scripted")
def test_arms_are_evaluated_and_left_alone_afterwards(tmp_path: Path) -> None:
    found = stage.evaluate(config(tmp_path, {"good": "expert", "poor": "novice"}))
    assert [(r.env, r.held, r.n, r.success) for r in found["good"]] == [
        ("maze", "in", 8, 1.0),
        ("wordle", "in", 6, 1.0),
    ]
    assert found["poor"][0].success is not None
    assert found["poor"][0].success < 1.0
    figures = RunFolder(str(tmp_path)).child("good").finished
    assert figures is not None
    assert (figures["episodes"], figures["excluded"]) == (14, {})
    assert json.loads(json.dumps(figures["results"][0]))["success"] == 1.0
    before = sorted(tmp_path.rglob("*"))
    assert stage.evaluate(config(tmp_path, {"good": "expert", "poor": "novice"})) == found
    assert sorted(tmp_path.rglob("*")) == before
    more = stage.evaluate(config(tmp_path, {"good": "expert", "new": "novice"}))
    assert [r.success for r in more["new"]] == [r.success for r in found["poor"]]
    with pytest.raises(UserError, match="seed"):
        stage.evaluate(config(tmp_path, {"good": "expert"}, seed=1))


@pytest.mark.usefixtures("scripted")
def test_excluded_episodes_are_played_again(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.touch()
    settings = config(tmp_path / "run", {"arm": str(broken)})
    first = stage.evaluate(settings)["arm"]
    assert [(r.n, r.excluded, r.flagged) for r in first] == [
        (4, {"model_error": 4}, True),
        (3, {"model_error": 3}, True),
    ]
    broken.unlink()
    second = stage.evaluate(settings)["arm"]
    assert [(r.n, r.excluded, r.success, r.flagged) for r in second] == [(8, {}, 1.0, False), (6, {}, 1.0, False)]


@pytest.mark.usefixtures("scripted")
def test_hanging_episodes_end_in_time_and_are_counted(tmp_path: Path) -> None:
    silent, run = tmp_path / "silent", tmp_path / "run"
    silent.mkdir()
    found = stage.evaluate(config(run, {"arm": str(silent)}, limits={"turn_s": 0.2}, max_failed=0.6))["arm"]
    assert [(r.n, r.excluded) for r in found] == [(0, {"model_error": 8}), (6, {})]
    assert {e.error for e in facts(run, "arm") if e.env == "maze"} == {"no answer within 0.2 s"}
    silent.rmdir()
    # another limit changes no result that counts: the run goes on under it
    again = stage.evaluate(config(run, {"arm": str(silent)}, limits={"turn_s": 9.0, "episode_s": 60.0}))["arm"]
    assert [(r.n, r.excluded, r.success) for r in again] == [(8, {}, 1.0), (6, {}, 1.0)]


@pytest.mark.usefixtures("scripted")
@pytest.mark.parametrize(
    ("samples", "words"),
    [(40, "32 episodes in a row failed; the first: maze: no answer"), (5, "5 of 5 episodes failed")],
)
def test_nothing_but_failures_end_the_run(tmp_path: Path, samples: int, words: str) -> None:
    (tmp_path / "broken").touch()
    settings = config(tmp_path / "run", {"arm": str(tmp_path / "broken")}, samples=samples, tasks={"maze": 1})
    with pytest.raises(TooManyFailed, match=words):
        stage.evaluate(settings)
    assert words in stage.failures(settings)["arm"]


@pytest.mark.usefixtures("scripted")
def test_a_model_of_which_too_much_failed_has_no_figures_and_the_others_have(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    models = {"flaky": str(tmp_path / "broken"), "good": "expert"}
    settings = config(tmp_path / "run", models, max_failed=0.2)
    with pytest.raises(TooManyFailed, match=r"flaky: 7 of 14 episodes failed, more than max_failed=0\.2"):
        stage.evaluate(settings)
    assert set(stage.played(settings)) == {"good"}
    (tmp_path / "broken").unlink()
    assert set(stage.evaluate(settings)) == {"flaky", "good"}


@pytest.mark.usefixtures("scripted")
def test_the_share_of_cached_prompts_outlives_a_replica(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage.evaluate(config(tmp_path / "run", {"metered": str(tmp_path)}, engine={"episodes_in_flight": 2}))
    assert (tmp_path / "killed").exists()
    turns = sum(e.rounds for e in facts(tmp_path / "run", "metered"))
    figures = RunFolder(str(tmp_path / "run")).child("metered").finished
    assert figures is not None
    assert (figures["prefix_cache_hit_rate"], figures["usage"]["calls"]) == (0.75, turns)
    assert "success 100%, prefix cache 75%" in capsys.readouterr().err


def test_a_plan_in_words(tmp_path: Path) -> None:
    lines = stage.plan_lines(config(tmp_path, {"a": "x", "b": "y"}, samples=3))
    assert "2 models (a, b) x 14 tasks x 3 samples = 84 episodes" in lines[0]
    assert lines[1] == "tasks: maze 8, wordle 6"
    assert f"{2 * 3 * (8 * 15 + 6 * 8):,} replies" in lines[2]


def test_an_environment_without_a_server_is_refused(tmp_path: Path, elsewhere: str) -> None:
    with pytest.raises(UserError, match="not built in"):
        stage.evaluate(config(tmp_path, {"a": "x"}, tasks={elsewhere: 2}))


_DRIVER = """
import sys
from atlas_ray.config import validate
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate
models = {"one": sys.argv[2], "two": sys.argv[3]}
values = {"run": sys.argv[1], "models": models, "tasks": {"maze": 60}, "temperature": 1.0, "max_tokens": 24}
evaluate(validate(EvaluateConfig, values | {"engine": {"episodes_in_flight": 8}}))
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_ends_the_same(tmp_path: Path, tiny_models: tuple[str, str]) -> None:
    def start(run: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", _DRIVER, str(run), *tiny_models], start_new_session=True)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(300) == 0
    driver = start(killed)
    end = time.monotonic() + 200
    while not list(killed.glob("one/episodes/*.parquet")) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert 32 <= len(facts(killed, "one")) < 60
    assert start(killed).wait(300) == 0
    for arm in ("one", "two"):
        ours, theirs = facts(whole, arm), facts(killed, arm)
        assert len(ours) == 60
        assert [_uncached(e) for e in ours] == [_uncached(e) for e in theirs]


def _uncached(episode: Episode) -> Episode:
    return replace(episode, usage=replace(episode.usage, cached_tokens=0))
