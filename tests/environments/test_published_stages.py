"""A published environment through the stages, on Ray: episodes of an expert, values by a real engine, training on the
chosen steps, evaluation of what was trained.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from atlas_ray.environments.foreign import openenv_servers
from atlas_ray.models.tiny import build_model
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import StopReason
from tests.support import textcraft
from tests.support.command_line import atlas
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.foreign import OURS, forget
from tests.support.tool_formats import tool_tokenizer

pytestmark = pytest.mark.slow
TASKS, WON = 5, 3
ENGINE = {"max_model_len": 16384, "episodes_in_flight": 8}


@pytest.fixture
def server(openenv_python: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    forget(monkeypatch, OURS)
    yield asyncio.run(textcraft.started(f"{openenv_python}:{textcraft.SERVER}"))
    openenv_servers.end_all()


class Expert:
    """Answers as an endpoint whose model knows the way to each task; every third it leaves unfinished."""

    def __init__(self, url: str) -> None:
        tasks = asyncio.run(textcraft.tasks(url, TASKS))
        self.ways = {task["goal"]: textcraft.way_to(task, wrong=index % 3 == 0) for index, task in enumerate(tasks)}

    def __call__(self, body: dict[str, Any], call: int) -> web.Response | str:
        if "tools" not in body:
            return "OK"
        _, asked, *turns = body["messages"]
        done = sum(turn["role"] == "assistant" for turn in turns)
        name, given = self.ways[asked["content"]][done]
        made = {"id": f"c{done}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
        message = {"role": "assistant", "content": None, "tool_calls": [made]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}})


def stage(verb: str, run: Path, **config: Any) -> RunFolder:
    """The run folder of a command that has a Ray of its own, which knows the environments named in its settings."""
    file = run.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"run": str(run)} | config))
    done = atlas(verb, "--config", str(file), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(str(run))


def test_textcraft_is_valued_trained_and_evaluated_by_a_model_in_an_engine(
    tmp_path: Path, server: str, endpoint: FakeEndpoint
) -> None:
    common = {"environments": {"register": {"craft": f"openenv:{server}"}}}
    playing = common | {"tasks": {"craft": TASKS}, "protocol": "tools", "engine": ENGINE}
    endpoint.answer = expert = Expert(server)
    told = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "FAKE_KEY"}
    experts = stage("evaluate", tmp_path / "expert", models={"m": {"path": "m", "endpoint": told}}, **playing)
    played = experts.child("m").read(EPISODES)
    assert [(e.stop_reason, e.success) for e in played].count((StopReason.DONE, True)) == WON
    assert sorted(e.rounds for e in played) == sorted(map(len, expert.ways.values()))
    won = [to_trajectory(e) for e in played if e.success]
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, won)

    tokenizer, tiny = tool_tokenizer("qwen3"), tmp_path / "tiny"
    build_model(tokenizer, hidden_size=96, layers=2, heads=3, context=16384, seed=0).save_pretrained(tiny)
    tokenizer.save_pretrained(tiny)
    data, economy = {"path": str(tmp_path / "data")}, {"mode": "economical", "rollouts": 1, "max_tokens": 8}
    selector = {"name": "value", "model": str(tiny), "engine": ENGINE} | economy
    selected = stage("select", tmp_path / "values", data=data, selector=selector, **common)
    values = {s.item_id: s for s in selected.read(SELECTIONS)}
    assert [(s.error, s.excluded) for s in values.values()] == [(None, {})] * WON
    assert {item: s.n_steps for item, s in values.items()} == {t.item_id: len(t.steps) for t in won}
    for found in values.values():  # the model makes nothing by itself: the reward comes with the last step
        assert [set(rewards) for rewards in found.rewards] == [{0.0}] * found.n_steps + [{1.0}]
        assert found.n_steps in found.chosen
        assert max(found.scores) == found.scores[-1]
    assert selected.read_json("replays.json")["craft"]["counts"] == {"exact": WON, "near": 0, "differs": 0}

    training = {"model": str(tiny), "data": data, "selection": str(tmp_path / "values"), "epochs": 1}
    trained = stage("train", tmp_path / "train", **training, global_batch_size=2, use_gpu=False)
    assert (trained.finished or {})["loss_tokens"] > 0

    models = {"tiny": str(tmp_path / "train" / "model")}
    scores = stage("evaluate", tmp_path / "scores", models=models, max_tokens=8, **playing)
    episodes = scores.child("tiny").read(EPISODES)
    assert len(episodes) == TASKS
    assert {e.stop_reason for e in episodes} <= {StopReason.DONE, StopReason.MAX_ROUNDS, StopReason.CONTEXT_OVERFLOW}
    assert all(e.rounds for e in episodes)
