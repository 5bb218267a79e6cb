"""The preflight of a recipe: every fault at once, each with a remedy, before a stage runs; what is well is left alone.

Servers, an endpoint and models are real; nothing of Ray or vLLM is needed to look.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.config import validate
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.recipes import running, stages
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.preflight import hub, machine
from atlas_ray.recipes.preflight.findings import RECORD, Finding, failure_lines, failures
from atlas_ray.recipes.preflight.pending import Pending
from atlas_ray.recipes.preflight.run import preflight
from atlas_ray.recipes.scheduling import Stage
from atlas_ray.recipes.settings import RecipeConfig
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Task, Trajectory
from tests.support.agentgym import AgentGym
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.forms import TRIALS, write_eval, write_mappings
from tests.support.openings import TEXTS, checkout
from tests.support.rows import write_agenttraj
from tests.support.serving import served
from tests.support.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with served(create_app(["maze", "textcraft"])) as url:
        yield url


@pytest.fixture(scope="module")
def dead() -> str:
    """An address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with weights and a tokenizer; its context is 2,048 tokens."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def experts() -> list[Trajectory]:
    """A trajectory of each environment that the server has."""

    async def play(env: str) -> Trajectory:
        task, spec = Task(env, f"{env}_9"), get(env)
        asked = EpisodeRequest(task, Sampling(), seed=0)
        episode = await run_episode(ScriptedPolicy("expert"), LocalSession(spec), asked)
        return Trajectory(task.id, env, task.item_id, episode.messages, episode.reward)

    return [asyncio.run(play(env)) for env in ("maze", "textcraft")]


@pytest.fixture
def recipe(tmp_path: Path, server: str, model: str, experts: list[Trajectory]) -> dict[str, Any]:
    """A recipe with nothing wrong."""
    write_agenttraj(tmp_path / "data.json", experts)
    items = [{"item_id": f"{env}_{i}", "conversations": None} for env in ("maze", "textcraft") for i in range(3)]
    (tmp_path / "items.json").write_text(json.dumps(items))
    return {
        "name": "checked",
        "runs": str(tmp_path / "runs"),
        "expert": {"path": str(tmp_path / "data.json")},
        "base": model,
        "arms": {"random": {"name": "random"}},
        "critical": "random",
        "train": {"max_length": 1024, "use_gpu": False},
        "evaluate": {
            "tasks": {"maze": 2, "textcraft": 2},
            "items": {"path": str(tmp_path / "items.json")},
            "engine": {"max_model_len": 1024},
        },
        "environments": {"servers": {"maze": [server], "textcraft": [server]}},
    }


def written(tmp_path: Path, recipe: dict[str, Any]) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return str(file)


def found_in(tmp_path: Path, recipe: dict[str, Any]) -> list[Finding]:
    return preflight(stages.opened(written(tmp_path, recipe))[0])


def wrong_in(tmp_path: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """What failed by kind and subject."""
    return {f"{f.check} {f.subject}": f"{f.detail} | {f.remedy}" for f in failures(found_in(tmp_path, recipe))}


def test_a_sound_recipe_passes_and_each_environment_replays_its_shortest_trajectory(
    tmp_path: Path, recipe: Any
) -> None:
    found = found_in(tmp_path, recipe)
    assert failure_lines(found) == []
    replayed = {f.subject.split("/")[0]: f.detail for f in found if f.check == "replay"}
    assert set(replayed) == {"maze", "textcraft"}
    assert all("as recorded, reward 1 (as recorded)" in words for words in replayed.values())
    assert {f.check for f in found} >= {"data", "items", "server", "replay", "prompts", "model"}


def test_three_planted_faults_are_named_at_once(tmp_path: Path, recipe: Any, dead: str, model: str) -> None:
    bare = tmp_path / "bare"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tiny_llama(len(tokenizer)).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    recipe["environments"]["servers"]["textcraft"] = [dead]
    recipe["models"] = {"rival": str(bare)}
    (tmp_path / "items.json").write_text(json.dumps([{"item_id": "narnia_0"}, {"item_id": "textcraft_1"}]))
    recipe["evaluate"]["tasks"] = {"maze": 2, "textcraft": 1}
    file = written(tmp_path, recipe)

    result = CliRunner().invoke(app, ["doctor", file])
    assert result.exit_code == 1
    words = " ".join(result.output.split())
    assert f"server, textcraft at {dead}" in words
    assert "no chat template" in words
    assert "narnia" in words
    lines = failure_lines(found_in(tmp_path, recipe))
    assert len([line for line in lines if line[0].isdigit()]) == 3
    assert not (tmp_path / "runs").exists()

    with pytest.raises(UserError, match="3 faults, and nothing was started"):
        running.run(stages.opened(file)[0])
    assert sorted(p.name for p in (tmp_path / "runs" / "checked").iterdir()) == [RECORD]


def test_agentevals_items_are_named_and_counted_before_any_stage(tmp_path: Path, recipe: Any) -> None:
    recipe["evaluate"]["items"] = write_eval(tmp_path / "eval", alfworld=["_".join(TRIALS[0]), "/".join(TRIALS[1])])
    recipe["evaluate"]["tasks"] = {"maze": 3, "alfworld": 4}
    with served(AgentGym("alfworld").app()) as url:
        recipe["environments"]["servers"]["alfworld"] = [url]
        file = written(tmp_path, recipe)
        with pytest.raises(UserError, match="1 fault, "):
            running.run(stages.opened(file)[0])
        assert sorted(p.name for p in (tmp_path / "runs" / "checked").iterdir()) == [RECORD]
        [said] = [words for key, words in wrong_in(tmp_path, recipe).items() if key.startswith("items")]
        assert "names a game, and nothing tells its number at the server; 1 more are like it" in said
        assert "| environments.alfworld_mappings takes AgentGym's checkout" in said
        recipe["environments"]["alfworld_mappings"] = write_mappings(tmp_path / "AgentGym")
        found = found_in(tmp_path, recipe)
    assert failure_lines(found) == []
    assert [f.detail for f in found if f.check == "items"] == [
        "alfworld 4, maze 3",
        "items: 5 rows of environments that are not known here are skipped: sqlgym 3, webarena 2",
        "items: not asked for in evaluate.tasks: babyai 2, movie 2, sciworld 2, textcraft 2, todo 2, academia 2, "
        "sheet 2, weather 2, webshop 2, wordle 2",
    ]


def test_trajectories_without_numbers_are_a_fault_where_episodes_start_from_them(
    tmp_path: Path, recipe: Any, experts: list[Trajectory], dead: str
) -> None:
    game = replace(experts[0], id="x", env="alfworld", item_id="/".join(TRIALS[0]))
    write_agenttraj(tmp_path / "data.json", [*experts, game])
    recipe["expert"]["envs"] = ["maze", "textcraft", "alfworld"]
    assert wrong_in(tmp_path, recipe) == {}  # to train on, a trajectory needs no server
    recipe["arms"]["value"] = {"select": {"name": "value", "engine": {"max_model_len": 1024}}}
    wrong = wrong_in(tmp_path, recipe)
    assert (
        "names a game of ALFWorld's, and the built-in simulator has others" in wrong[f"data {tmp_path / 'data.json'}"]
    )


def test_a_trajectory_that_ends_at_another_reward_or_is_answered_otherwise_is_named(
    tmp_path: Path, recipe: Any, experts: list[Trajectory]
) -> None:
    maze, textcraft = experts
    changed = [replace(m, content=m.content + " Not so.") if i == 4 else m for i, m in enumerate(maze.messages)]
    write_agenttraj(tmp_path / "data.json", [replace(maze, messages=tuple(changed)), replace(textcraft, reward=0.25)])
    wrong = {key.split()[0] + key.split()[1].split("/")[0]: words for key, words in wrong_in(tmp_path, recipe).items()}
    assert "step 1 was answered otherwise than recorded" in wrong["replaymaze"]
    assert "reward 1, recorded is 0.25" in wrong["replaytextcraft"]


def test_a_checkout_that_cannot_be_read_has_its_own_remedy(tmp_path: Path, recipe: Any) -> None:
    there = checkout(tmp_path / "AgentGym", TEXTS)
    (client,) = Path(there).rglob("academia.py")
    client.write_text(client.read_text().replace("'Play academia.'", "ask()"))
    rows = [{"item_id": f"{env}_{i}"} for env in ("maze", "academia") for i in range(2)]
    (tmp_path / "items.json").write_text(json.dumps(rows))
    recipe["evaluate"] |= {"tasks": {"maze": 2, "academia": 2}, "openings": {"agentgym": there}}
    with served(AgentGym("academia").app()) as url:
        recipe["environments"]["servers"]["academia"] = [url]
        wrong = wrong_in(tmp_path, recipe)
    assert list(wrong) == ["prompts academia"]
    assert "does not write the first two turns of academia in constants" in wrong["prompts academia"]
    assert "| check out AgentGym as it is published, or leave openings.agentgym out" in wrong["prompts academia"]


def test_missing_servers_data_models_and_short_contexts(tmp_path: Path, recipe: Any, model: str) -> None:
    del recipe["environments"]["servers"]["maze"]
    recipe["expert"]["path"] = str(tmp_path / "nothing.json")
    recipe["train"]["max_length"] = 9000
    recipe["models"] = {"rival": str(tmp_path / "no-model" / "here")}
    wrong = wrong_in(tmp_path, recipe)
    assert "no server is named" in wrong["server maze"]
    assert "nothing.json" in wrong[f"data {tmp_path / 'nothing.json'}"]
    assert "made for 2,048 tokens, and is asked to read 9,000" in wrong[f"model {model}"]
    assert any("no-model" in key for key in wrong)


@pytest.mark.parametrize("kind", ["judge", "player"])
def test_endpoints_are_asked_for_one_token(
    tmp_path: Path, recipe: Any, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from aiohttp import web

    address = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "FAKE_KEY"}
    if kind == "judge":
        recipe["arms"]["llm"] = {"name": "llm", "model": "judge", "endpoint": address}
    else:
        recipe["models"] = {"player": {"path": "player", "endpoint": address}}
    file = written(tmp_path, recipe)
    extra = ["player"] if kind == "player" else []

    def look() -> list[Finding]:
        return [f for f in preflight(stages.opened(file, extra=extra)[0]) if f.check == "key"]

    (found,) = look()
    assert (found.result, found.subject) == ("ok", f"{kind} at {address['base_url']}")
    assert [call["max_tokens"] for call in endpoint.calls] == [1]
    answer = endpoint.answer
    endpoint.answer = lambda body, call: web.Response(status=401, text="no")
    (found,) = look()
    assert found.result == "failed"
    assert len(endpoint.calls) == 2
    endpoint.answer = answer
    monkeypatch.delenv("FAKE_KEY")
    (found,) = look()
    assert found.result == "ok"  # an address of one's own may do without a key
    assert ("FAKE_KEY is not set" in found.detail) == (kind == "player")


def test_gpus_and_disk_are_counted(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe["train"] |= {"use_gpu": True, "num_workers": 4}
    monkeypatch.setattr("atlas_ray.recipes.nodes.gpus_here", lambda: 2)
    assert "4 are wanted, this machine has 2" in wrong_in(tmp_path, recipe)["GPUs 4 for training"]
    monkeypatch.setattr("atlas_ray.recipes.nodes.gpus_here", lambda: 4)
    assert not any(key.startswith(("GPUs", "disk")) for key in wrong_in(tmp_path, recipe))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    (wrong,) = (words for key, words in wrong_in(tmp_path, recipe).items() if key.startswith("disk"))
    assert "GB are free" in wrong


def test_engines_take_gpus_where_there_are_any_and_split_ones_need_them(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe["evaluate"]["engine"]["replicas"] = 3
    recipe["train"] = {"max_length": 1024, "num_workers": 2}  # on GPUs where there are any

    def found(gpus: int) -> dict[str, str]:
        monkeypatch.setattr("atlas_ray.recipes.nodes.gpus_here", lambda: gpus)
        return {f.subject: f.result for f in found_in(tmp_path, recipe) if f.check == "GPUs"}

    assert found(0) == {}
    assert found(2) == {"2 for training": "ok", "3 for engines": "failed"}
    recipe["evaluate"]["engine"] |= {"replicas": 1, "tensor_parallel": 4}
    assert found(0) == {"4 for engines": "failed"}


def test_gpus_that_an_autoscaler_may_add_are_counted(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_ray.cluster import placement
    from atlas_ray.recipes import nodes

    labels = {placement.GROUP: "workers", "ray.io/node-group": "workers"}
    there = [{"CPU": 8.0}, {"CPU": 8.0, "GPU": 4.0}]  # one more may join
    alive = [{"Alive": True, "Resources": there[i], "Labels": [{}, labels][i]} for i in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setattr(nodes, "connect", lambda config: None)
    monkeypatch.setattr("ray.nodes", lambda: alive)
    monkeypatch.setattr(placement, "_groups", lambda: [({"CPU": 8, "GPU": 4}, 2, labels)])
    recipe["train"] |= {"use_gpu": True, "num_workers": 8}
    assert wrong_in(tmp_path, recipe) == {}
    recipe["train"]["num_workers"] = 9
    assert "9 are wanted, the cluster has 8" in wrong_in(tmp_path, recipe)["GPUs 9 for training"]


def test_environments_in_which_values_are_estimated_are_looked_at_too(tmp_path: Path, recipe: Any, dead: str) -> None:
    recipe["evaluate"]["tasks"] = {"maze": 2}
    recipe["environments"]["servers"]["textcraft"] = [dead]
    assert wrong_in(tmp_path, recipe) == {}
    recipe["arms"]["value"] = {"select": {"name": "value", "engine": {"max_model_len": 1024}}}
    assert list(wrong_in(tmp_path, recipe)) == [f"server textcraft at {dead}"]


def test_arms_with_the_same_judge_ask_it_once(tmp_path: Path, recipe: Any, endpoint: FakeEndpoint) -> None:
    address = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "FAKE_KEY"}
    for ratio in (0.1, 0.3):
        recipe["arms"][f"llm{ratio}"] = {"name": "llm", "ratio": ratio, "model": "judge", "endpoint": address}
    assert [f.result for f in found_in(tmp_path, recipe) if f.check == "key"] == ["ok"]
    assert len(endpoint.calls) == 1


def test_only_what_will_run_is_looked_at(tmp_path: Path, recipe: Any, dead: str) -> None:
    recipe["environments"]["servers"]["maze"] = [dead]
    opened = stages.opened(written(tmp_path, recipe))[0]
    assert failures(preflight(opened))
    assert {f.check for f in preflight(opened, ["train/random"])} <= {"data", "model", "disk"}
    for config in opened.train.values():
        RunFolder(config.run).finish()
    assert preflight(opened, ["train/random"]) == []


def test_what_could_not_be_checked_has_not_passed(
    tmp_path: Path, recipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Finding("data", "a", "ok", ""), Finding("disk", "s3://b", "not checked", "a store's room is not known")]
    monkeypatch.setattr("atlas_ray.recipes.preflight.run.preflight", lambda *_: found)
    monkeypatch.setattr(running, "stages_for", lambda *_, **__: ([Stage("evaluate", "", lambda: None)], 1))
    running.run(stages.opened(written(tmp_path, recipe))[0])
    assert "preflight: 1 of 2 checks passed, 1 could not be made" in capsys.readouterr().err


def test_a_run_without_it_is_recorded(tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "stages_for", lambda *_, **__: ([Stage("evaluate", "", lambda: None)], 1))
    opened = stages.opened(written(tmp_path, recipe))[0]

    def skipped(**options: bool) -> bool:
        running.run(opened, **options)
        return bool(RunFolder(opened.root).read_json(RECORD)["skipped"])

    assert skipped(skip_preflight=True)
    assert not skipped()
    assert skipped(skip_preflight=True)
    for model in opened.evaluations[""].models:
        RunFolder(opened.evaluations[""].run).child(model).finish()
    assert skipped()  # nothing is left to look at, so the record stays


def test_a_silent_hub_is_asked_once(tmp_path: Path, recipe: Any, dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    asked: list[str] = []
    silent = hub._silent
    monkeypatch.setattr(hub, "_silent", lambda address: asked.append(address) or silent(address))
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    recipe["models"] = {f"rival{i}": f"someone/model{i}" for i in range(3)}
    found = found_in(tmp_path, recipe)
    assert asked == [dead]
    assert [f.result for f in found if f.check == "hub"] == ["not checked"]
    lines = failure_lines(found)
    assert "someone/model0, someone/model1, someone/model2: not in the hub's cache" in lines[0]
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("runs", ["runs", "s3://bucket/runs?endpoint_override=127.0.0.1:9&scheme=http"])
def test_what_the_recipe_trains_itself_is_not_looked_for_wherever_it_lies(recipe: Any, runs: str) -> None:
    resolved = Recipe(validate(RecipeConfig, recipe | {"runs": runs}))
    (evaluation,) = resolved.evaluations.values()
    trained = [m if isinstance(m, str) else m.path for name, m in evaluation.models.items() if name == "random"]
    assert trained
    assert set(trained) <= Pending(resolved, {}, {}, {}, []).made_here
