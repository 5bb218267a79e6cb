"""Collection: scripted episodes become trajectories with gold, the same however they are spread over workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_ray.config import DataConfig
from atlas_ray.environments import registry
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.collect import FAILURES, collect, episodes_of
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.settings import CollectConfig

pytestmark = pytest.mark.usefixtures("ray_cluster")


def config(run: Path, **fields: object) -> CollectConfig:
    return CollectConfig.model_validate({"run": str(run), "envs": ["maze", "wordle"], "tasks": 12} | fields)


def test_experts_solve_their_tasks_and_mark_their_decisive_steps(tmp_path: Path) -> None:
    folder = collect(config(tmp_path / "run"))
    found = folder.read(TRAJECTORIES)
    assert len(found) == 24
    assert all(t.reward == 1.0 and t.gold is not None for t in found)
    assert sum(len(t.gold or ()) for t in found) > 24
    assert {t.task for t in found} == {task for task, _ in episodes_of(config(tmp_path))}
    # what was written in AgentTraj-L's form reads back as the same trajectories
    assert read_trajectories(DataConfig(path=str(tmp_path / "run" / "agenttraj.json"))) == found


def test_train_and_test_tasks_do_not_overlap() -> None:
    for name in ("maze", "textcraft", "wordle", "blocksworld"):
        spec = registry.get(name)
        assert not set(spec.tasks("train")) & set(spec.tasks("test"))


def test_a_collection_resumes(tmp_path: Path) -> None:
    whole = collect(config(tmp_path / "whole")).read(TRAJECTORIES)
    folder = RunFolder(str(tmp_path / "half"))
    folder.begin(config(tmp_path / "half"), stage="collect")
    folder.write_shard(TRAJECTORIES, whole[:10])
    before = sorted((tmp_path / "half" / "trajectories").iterdir())
    collect(config(tmp_path / "half"))
    assert folder.read(TRAJECTORIES) == whole
    assert set(before) <= set((tmp_path / "half" / "trajectories").iterdir())
    assert sum(len(TRAJECTORIES.from_table(t)) for t in folder.tables(TRAJECTORIES)) == len(whole)


def test_failures_are_kept_apart_unless_asked_for(tmp_path: Path) -> None:
    apart = collect(config(tmp_path / "apart", role="novice"))
    together = collect(config(tmp_path / "together", role="novice", keep_failures=True))
    assert len(apart.read(FAILURES)) > 0
    assert len(apart.read(TRAJECTORIES)) + len(apart.read(FAILURES)) == len(together.read(TRAJECTORIES)) == 24


def test_tasks_and_samples_can_be_set_by_environment(tmp_path: Path) -> None:
    units = episodes_of(config(tmp_path, tasks={"maze": 2, "wordle": 3}, samples={"maze": 4, "wordle": 1}))
    assert sum(task.env == "maze" for task, _ in units) == 8
    assert sum(task.env == "wordle" for task, _ in units) == 3
