"""Weather and sheet by native calls of tools, behind a real server and in a real engine."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.environments import registry
from atlas_ray.environments.protocol import Simulator
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate
from atlas_ray.models.protocol import STOP
from atlas_ray.models.tiny import build_model
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.trajectories.collect import collect
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import StopReason, ToolCall
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.tool_formats import tool_tokenizer

pytestmark = pytest.mark.usefixtures("ray_cluster")
ENVS = ("weather", "sheet")
TASKS = 20


def address(endpoint: FakeEndpoint) -> dict[str, Any]:
    return {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY"}


class Expert:
    """Answers as an endpoint whose model knows the tools: it plays the calls so far, and makes the next one."""

    def __init__(self) -> None:
        self._tasks: dict[str, tuple[str, int]] = {}
        for env in ENVS:
            spec = registry.get(env)
            for task in spec.tasks("test", TASKS):
                assert spec.simulator is not None
                assert spec.tools is not None
                told = spec.simulator().reset(spec.number(task)).observation
                self._tasks[spec.tools.result(told)] = env, spec.number(task)

    def __call__(self, body: dict[str, Any], call: int) -> web.Response | str:
        if "tools" not in body:
            return "OK"
        env, number = self._tasks[body["messages"][1]["content"]]
        spec = registry.get(env)
        assert spec.tools is not None
        assert spec.simulator is not None
        assert body["tools"] == json.loads(spec.tools.schemas)
        simulator: Simulator = spec.simulator()
        simulator.reset(number)
        asked: list[str] = []
        for message in body["messages"][2:]:
            if message["role"] == "tool":
                assert message["tool_call_id"] in asked
                continue
            asked = [call["id"] for call in message["tool_calls"]]
            for made in message["tool_calls"]:
                given = made["function"]
                simulator.step(spec.tools.action(ToolCall(given["name"], given["arguments"])))
        decision = simulator.expert(random.Random(f"{number}/{len(body['messages'])}"))
        due = spec.tools.call(decision.action)
        made = {"id": f"id{len(body['messages'])}", "type": "function"}
        made |= {"function": {"name": due.name, "arguments": due.arguments}}
        message = {"role": "assistant", "content": None, "reasoning_content": decision.thought, "tool_calls": [made]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 2}})


def test_an_expert_behind_a_server_solves_all_by_calls(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = Expert()
    config = EvaluateConfig.model_validate(
        {
            "run": str(tmp_path),
            "models": {"m": {"path": "m", "endpoint": address(endpoint)}},
            "tasks": dict.fromkeys(ENVS, TASKS),
            "protocol": "tools",
        }
    )
    found = evaluate(config)["m"]
    assert [(r.env, r.n, r.success, r.excluded) for r in found] == [(env, TASKS, 1.0, {}) for env in ENVS]
    episodes = RunFolder(config.run).child("m").read(EPISODES)
    assert {e.stop_reason for e in episodes} == {StopReason.DONE}
    assert all(m.calls and m.thought for e in episodes for m in e.messages if m.role == "assistant")
    assert len(endpoint.calls) == 1 + sum(e.rounds for e in episodes)
    asked = [body for body in endpoint.calls if "tools" in body]
    assert all(STOP not in body.get("stop", []) for body in asked)
    opening = RunFolder(config.run).child("m").read_json("manifest.json")["openings"]["weather"]
    assert opening["source"] == "the environment's own, by its tools"


def test_environments_without_tools_are_named_before_anything_is_played(tmp_path: Path) -> None:
    given = {"run": str(tmp_path), "models": {"m": "nowhere"}, "tasks": {"weather": 1, "maze": 1, "wordle": 1}}
    with pytest.raises(UserError, match="maze, wordle: no tools to call"):
        evaluate(EvaluateConfig.model_validate(given | {"protocol": "tools"}))
    with pytest.raises(UserError, match="maze offers no tools to call"):
        collect(CollectConfig(run=str(tmp_path / "c"), envs=["maze"], protocol="tools", tasks=1))


def test_evaluation_acts_as_its_training_data_does(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    """The data's tools are shown, by its opening; `protocol` says otherwise where that is wanted."""
    endpoint.answer = Expert()
    data = collect(CollectConfig(run=str(tmp_path / "data"), envs=["weather"], protocol="tools", tasks=4))
    given = {
        "models": {"m": {"path": "m", "endpoint": address(endpoint)}},
        "tasks": {"weather": 2},
        "openings": {"data": {"path": data.uri}},
    }
    config = EvaluateConfig.model_validate(given | {"run": str(tmp_path / "calls")})
    (result,) = evaluate(config)["m"]
    assert (result.n, result.success) == (2, 1.0)
    assert RunFolder(config.run).child("m").read_json("manifest.json")["openings"]["weather"]["tools"]
    endpoint.answer = lambda *_: 'Action: finish with Action Input: {"answer": "no"}'
    text = EvaluateConfig.model_validate(given | {"run": str(tmp_path / "text"), "protocol": "react"})
    (result,) = evaluate(text)["m"]
    assert (result.n, result.success) == (2, 0.0)
    assert "tools" not in endpoint.calls[-1]


@pytest.mark.slow
def test_a_tiny_model_in_an_engine_ends_in_counted_outcomes(tmp_path: Path) -> None:
    tokenizer = tool_tokenizer("qwen3")
    build_model(tokenizer, hidden_size=96, layers=2, heads=3, context=16384, seed=0).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    config = EvaluateConfig.model_validate(
        {
            "run": str(tmp_path / "run"),
            "models": {"tiny": str(tmp_path / "model")},
            "tasks": dict.fromkeys(ENVS, TASKS),
            "protocol": "tools",
            "max_tokens": 24,
            "engine": {"max_model_len": 16384},
        }
    )
    found = evaluate(config)["tiny"]
    assert [(r.env, r.n, r.excluded) for r in found] == [(env, TASKS, {}) for env in ENVS]
    episodes = RunFolder(config.run).child("tiny").read(EPISODES)
    assert {e.stop_reason for e in episodes} <= {StopReason.DONE, StopReason.MAX_ROUNDS, StopReason.CONTEXT_OVERFLOW}
    assert all(e.rounds for e in episodes)
