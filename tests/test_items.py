"""Which test tasks are played, and models behind an endpoint: asked, counted and paid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.items import test_tasks as tasks_of
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.scripted import ScriptedPolicy
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from tests.fake_endpoint import FakeEndpoint


def config(run: Path, **given: Any) -> EvaluateConfig:
    return validate(EvaluateConfig, {"run": str(run), "models": {"a": "x"}, "tasks": {"maze": 2}} | given)


def items(folder: Path, *ids: str) -> dict[str, Any]:
    """A data set in AgentEval's form: item ids without conversations."""
    (folder / "items.json").write_text(json.dumps([{"item_id": i, "conversations": []} for i in ids]))
    return {"path": str(folder / "items.json")}


def test_a_data_set_names_the_tasks_and_built_in_ones_fill_up(tmp_path: Path) -> None:
    named = items(tmp_path, "webshop_7", "webshop_3", "webshop_7", "weather_5")
    servers = {"weather": ["http://127.0.0.1:1"], "webshop": ["http://127.0.0.1:2"]}
    tasks = {"weather": None, "webshop": 2, "maze": 1}
    found = tasks_of(config(tmp_path, items=named, tasks=tasks, environments={"servers": servers}))
    assert {env: [task.item_id for task in tasks] for env, tasks in found.items()} == {
        "weather": ["weather_5"],
        "webshop": ["webshop_7", "webshop_3"],
        "maze": ["maze_0"],
    }


@pytest.mark.parametrize(
    ("tasks", "ids", "complaint"),
    [
        ({"sciworld": None}, ["webshop_7"], "which test tasks sciworld has is not known here"),
        ({"webshop": 2}, ["webshop_7"], "webshop has 1 test tasks, 2 were asked for"),
        ({"maze": 1}, ["maze_7"], "names tasks of maze, for which no server is named"),
    ],
)
@pytest.mark.usefixtures("elsewhere")
def test_tasks_that_are_not_there_are_asked_for(
    tmp_path: Path, tasks: dict[str, Any], ids: list[str], complaint: str
) -> None:
    servers = {"webshop": ["http://127.0.0.1:1"]}
    given = config(tmp_path, items=items(tmp_path, *ids), tasks=tasks, environments={"servers": servers})
    with pytest.raises(UserError, match=complaint):
        tasks_of(given)


@pytest.mark.usefixtures("ray_cluster")
def test_a_model_behind_an_endpoint_plays_and_is_paid(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.seconds = 0.01
    endpoint.answer = lambda body, call: "Thought: on\nAction: move up"
    asked = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY", "concurrency": 2}
    models = {"closed": {"path": "gpt-4o-2024-08-06", "endpoint": asked}}
    settings = config(tmp_path / "run", models=models, tasks={"maze": 6})
    assert "gpt-4o-2024-08-06 by endpoints, which are paid" in stage.plan_lines(settings)[2]
    found = stage.evaluate(settings)["closed"]
    assert [(r.env, r.n) for r in found] == [("maze", 6)]
    assert endpoint.peak == 2
    folder = RunFolder(str(tmp_path / "run" / "closed"))
    calls = sum(e.usage.calls for e in folder.read(EPISODES))
    assert calls == len(endpoint.calls)
    # each call 1,000 tokens at $2.50 and 100 at $10.00 a million
    assert folder.finished is not None
    assert folder.finished["dollars"] == pytest.approx(calls * (1000 * 2.5 + 100 * 10) / 1e6)
    stage.evaluate(settings)
    assert len(endpoint.calls) == calls


@pytest.mark.usefixtures("ray_cluster")
def test_an_endpoint_and_an_engine_take_turns_in_pools_of_their_own(
    tmp_path: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "EngineSpec", lambda *_: FixedSpec(ScriptedPolicy("expert")))
    endpoint.answer = lambda body, call: "Thought: on\nAction: move up"
    asked = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY"}
    models = {"closed": {"path": "gpt-4o", "endpoint": asked}, "open": "m", "again": {"path": "o", "endpoint": asked}}
    found = stage.evaluate(config(tmp_path / "run", models=models))
    assert [results[0].success for results in found.values()] == [0.0, 1.0, 0.0]
    played = RunFolder(str(tmp_path / "run" / "open")).read(EPISODES)
    assert {episode.usage.calls for episode in played} == {0}
