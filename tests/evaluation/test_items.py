"""Which test tasks are played, and models behind an endpoint: asked, counted and paid."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import DataConfig, validate
from atlas_ray.environments.builtin.maze import Maze
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.http.server import create_app
from atlas_ray.errors import UserError
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.items import item_figures, item_lines, problems, unknown_items
from atlas_ray.evaluation.items import test_tasks as tasks_of
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Message, Task
from tests.support import agentgym
from tests.support.agentgym import AgentGym
from tests.support.episodes import Recite, winning
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.forms import EVAL, KNOWN, TRIALS, write_eval, write_mappings
from tests.support.serving import served


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


def test_every_known_item_is_played_and_the_unknown_are_named_and_counted(tmp_path: Path) -> None:
    servers = {env: ["http://127.0.0.1:1"] for env in KNOWN}
    named = write_eval(tmp_path / "eval", maze=["sqlgym_1", "12"])
    tasks: dict[str, Any] = dict.fromkeys(KNOWN)
    del tasks["todo"]
    given = config(tmp_path, items=named, tasks=tasks, environments={"servers": servers})
    found = tasks_of(given)
    assert {task.item_id for tasks in found.values() for task in tasks} == {
        item_id for ids in EVAL.values() for item_id in ids if not re.match("sqlgym|webarena|.*todo", item_id)
    }
    assert found["maze"] == [Task("maze", f"lmrlgym_maze_{number}") for number in (12, 0, 24)]
    assert found["sheet"][1] == Task("sheet", "tool_sheet_19")
    assert problems(given, ask=False) == []
    assert item_lines(given) == [
        "items: 7 rows of environments that are not known here are skipped: sqlgym 4, webarena 2, 12 1",
        "items: not asked for in evaluate.tasks: todo 2",
    ]
    assert item_figures(given) == {"items": {"rejected": 0, "skipped": {"sqlgym": 4, "webarena": 2, "12": 1}}}


def test_items_that_agentgym_has_no_environment_of_either_are_a_fault_beforehand(tmp_path: Path) -> None:
    servers = {"maze": ["http://127.0.0.1:1"]}
    for more, said in ((["webarena_1"], []), (["narnia_1", "narnia_2"], ["narnia 2"])):
        named = write_eval(tmp_path / more[0], maze=more)
        given = config(tmp_path, items=named, environments={"servers": servers})
        assert [re.findall(r"\w+ \d+(?=;)", one.what)[0] for one in unknown_items(given)] == said
        assert problems(given, ask=False) == []


def test_what_is_wrong_with_test_tasks_is_said_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(
        json.dumps([{"item_id": i} for i in ("maze_x", "movie_3", "/".join(TRIALS[0]), 7)])
    )
    given = config(
        tmp_path,
        items={"path": str(tmp_path / "items.json")},
        tasks={"maze": None, "movie": 1, "alfworld": 1, "textcraft": 1000, "mazes": 1},
        environments={"servers": {"maze": ["http://127.0.0.1:1"], "alfworld": ["127.0.0.1:1"]}},
    )
    said = [(p.what, p.remedy) for p in problems(given, ask=False)]
    assert [what.partition("\n")[0] for what, _ in said] == [
        "evaluate.items names tasks of movie, for which no server is named",
        "textcraft has 100 test tasks, 1000 were asked for",
        "no environment is called 'mazes'",
        "the server '127.0.0.1:1' of alfworld is no address",
        "maze: item id 'maze_x' carries no number of a task",
        f"alfworld: item id '{'/'.join(TRIALS[0])}' names a game, and nothing tells its number at the server",
    ]
    assert all(remedy for _, remedy in said)
    assert "1 rows name no task; the first:" in item_lines(given)[0]
    with pytest.raises(UserError, match="6 things are wrong") as refused:
        stage.evaluate(given)
    assert all(what in str(refused.value) and remedy in str(refused.value) for what, remedy in said)
    assert not (tmp_path / "a").exists()


def test_items_that_cannot_be_read_are_a_problem_like_others(tmp_path: Path) -> None:
    [wrong] = problems(config(tmp_path, items={"path": str(tmp_path / "eval")}))
    assert "eval does not exist" in wrong.what


class Knowing:
    """A policy that wins in every environment of the stand-ins."""

    name = "knowing"

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Recite:
        return Recite(winning(task.env))


@pytest.mark.usefixtures("ray_cluster")
def test_items_in_their_published_forms_are_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentgym, "TASKS", 10_000)
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(Knowing()))
    named = write_eval(tmp_path / "eval", alfworld=["_".join(TRIALS[0]), "/".join(TRIALS[1])])
    servers = {env: AgentGym(env) for env in KNOWN}
    servers["alfworld"].names = {number: "/".join(trial) for number, trial in TRIALS.items()}
    with ExitStack() as stack:
        at = {env: [stack.enter_context(served(server.app()))] for env, server in servers.items()}
        mappings = write_mappings(tmp_path / "AgentGym")
        asked = {"servers": at, "alfworld_mappings": mappings}
        found = stage.evaluate(config(tmp_path / "run", items=named, tasks=dict.fromkeys(KNOWN), environments=asked))[
            "a"
        ]
    assert {r.env: (r.n, r.success) for r in found} == {
        env: (3 if env == "maze" else 4 if env == "alfworld" else 2, 1.0) for env in KNOWN
    }
    assert not any(r.excluded or r.flagged for r in found)
    begun = {env: {body[s.index_key] for name, body in s.log if name == "reset"} for env, s in servers.items()}
    assert begun["alfworld"] == {2420, 2421, 0, 1}
    assert (begun["maze"], begun["sheet"], begun["wordle"]) == ({0, 12, 24}, {0, 19}, {3, 9})
    finished = RunFolder(str(tmp_path / "run" / "a")).finished
    assert finished is not None
    assert finished["items"] == {"rejected": 0, "skipped": {"sqlgym": 3, "webarena": 2}}


# --- servers without items ---


def test_our_own_server_has_the_built_in_test_tasks(tmp_path: Path) -> None:
    with served(create_app(["maze", "weather"])) as url:
        asked = {"servers": {"maze": [url, f"{url}/maze/"], "weather": [url]}}
        assert problems(config(tmp_path, tasks={"maze": 40, "weather": 2}, environments=asked)) == []


def test_an_agentgym_server_is_not_asked_for_built_in_tasks(tmp_path: Path) -> None:
    with served(AgentGym("maze").app()) as url:
        given = config(tmp_path, tasks={"maze": 40}, environments={"servers": {"maze": [url]}})
        with pytest.raises(UserError, match=f"maze at {url}: a server of AgentGym's kind, whose test tasks") as refused:
            stage.evaluate(given)
        assert "evaluate.items: {path: AgentGym/AgentEval}" in refused.value.remedy
        named = DataConfig(**items(tmp_path, "maze_3"))
        assert problems(given.model_copy(update={"items": named, "tasks": {"maze": 1}})) == []


def test_a_server_with_fewer_tasks_and_one_that_is_silent_are_told_apart(tmp_path: Path) -> None:
    two = CustomData(Maze, {"test": 2, "train": 200})
    with served(create_app(["maze"], custom_data={"maze": two})) as url:
        servers = {"maze": [url, "http://127.0.0.1:1"], "pddl": ["http://127.0.0.1:1"]}
        said = [
            p.what for p in problems(config(tmp_path, tasks={"maze": 3, "pddl": 1}, environments={"servers": servers}))
        ]
    assert said[0] == f"maze at {url}: it has 2 test tasks, 3 were asked for"
    assert said[1].startswith("pddl at http://127.0.0.1:1: it does not answer")


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
    assert len(endpoint.calls) == 1 + calls  # first it is asked whether it plays at all
    # each call 1,000 tokens at $2.50 and 100 at $10.00 a million
    assert folder.finished is not None
    assert folder.finished["dollars"] == pytest.approx(calls * (1000 * 2.5 + 100 * 10) / 1e6)
    stage.evaluate(settings)
    assert len(endpoint.calls) == 1 + calls


@pytest.mark.usefixtures("ray_cluster")
def test_an_endpoint_and_an_engine_take_turns_in_pools_of_their_own(
    tmp_path: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(ScriptedPolicy("expert")))
    endpoint.answer = lambda body, call: "Thought: on\nAction: move up"
    asked = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY"}
    models = {"closed": {"path": "gpt-4o", "endpoint": asked}, "open": "m", "again": {"path": "o", "endpoint": asked}}
    found = stage.evaluate(config(tmp_path / "run", models=models))
    assert [results[0].success for results in found.values()] == [0.0, 1.0, 0.0]
    played = RunFolder(str(tmp_path / "run" / "open")).read(EPISODES)
    assert {episode.usage.calls for episode in played} == {0}
