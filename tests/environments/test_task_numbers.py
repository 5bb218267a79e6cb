"""Which number a task has at the server that plays it: most ids carry it, ALFWorld's games are looked up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments.agentgym.task_numbers import game_of, numbered, numbers, unplayable
from atlas_ray.environments.registry import get
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Task
from tests.support.agentgym import AgentGym
from tests.support.forms import TRIALS, write_mappings
from tests.support.serving import remote, running

TASK, TRIAL = TRIALS[1]
FORMS = [
    f"{TASK}/{TRIAL}",
    f"{TASK}_{TRIAL}",
    f"alfworld_{TASK}_{TRIAL}",
    f"alfworld/{TASK}/{TRIAL}",
    f"json_2.1.1/train/{TASK}/{TRIAL}/game.tw-pddl",
]
SERVED = {"alfworld": ["http://127.0.0.1:1"]}


@pytest.mark.parametrize(
    ("env", "item_id", "number"),
    [
        ("maze", "maze_3", 3),
        ("maze", "lmrlgym_maze_12", 12),
        ("movie", "tool_movie_0", 0),
        ("alfworld", "alfworld_2420", 2420),
        ("webshop", "webshop_005238", 5238),
    ],
)
def test_item_ids_carry_their_number(env: str, item_id: str, number: int) -> None:
    assert get(env).index(item_id) == number


@pytest.mark.parametrize(
    "item_id",
    [
        "maze",
        "maze_",
        "maze_x",
        "maze_-3",
        "webshop_5238_v2",
        "maze_3#2",
        "room_1_7",
        "trial_T20190907_174127_043461",
        "BabyAI-GoToObj-v0_3",
        *FORMS,
    ],
)
def test_other_trailing_digits_are_not_numbers(item_id: str) -> None:
    with pytest.raises(UserError, match="carries no number of a task") as refused:
        get("alfworld").index(item_id)
    assert "NAME_NUMBER" in refused.value.remedy


@pytest.mark.parametrize("item_id", FORMS)
def test_alfworld_games_are_looked_up_by_name(item_id: str, tmp_path: Path) -> None:
    assert game_of(item_id) == f"{TASK}/{TRIAL}"
    checkout = write_mappings(tmp_path / "AgentGym")
    configs = Path(checkout) / "agentenv-alfworld" / "configs"
    for given in (checkout, str(configs), [str(configs / "mappings_test.json"), str(configs / "mappings_train.json")]):
        settings = EnvironmentsConfig(servers=SERVED, alfworld_mappings=given)
        assert get("alfworld").number(numbered(Task("alfworld", item_id), settings)) == 1
    test = Task("alfworld", "/".join(TRIALS[2420]))
    assert numbered(test, settings).index == 2420
    assert numbered(test, settings) == test  # the id is the task's name still


def test_the_served_folder_gives_numbers(tmp_path: Path) -> None:
    for place in (f"train/{TASK}/{TRIAL}", f"valid_unseen/{'/'.join(TRIALS[2420])}"):
        file = tmp_path / "json_2.1.1" / place / "game.tw-pddl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"solvable": True, "pddl_problem": "x", "grammar": 'Your task is to: look. "'}))
    assert numbers(str(tmp_path)) == {"/".join(TRIALS[2420]): 0, f"{TASK}/{TRIAL}": 1}


def test_unplayable_tasks_are_reported_once_per_reason(tmp_path: Path) -> None:
    tasks = [Task("alfworld", "/".join(trial)) for trial in TRIALS.values()]
    others = [Task("maze", "maze_x"), Task("maze", "maze"), Task("maze", "maze_3")]
    [built_in, maze] = unplayable([*tasks, *others], EnvironmentsConfig())
    assert "the built-in simulator has others; 2 more are like it" in built_in.what
    assert "environments.servers.alfworld" in built_in.remedy
    assert maze.what == "maze: item id 'maze_x' carries no number of a task; 1 more are like it"
    [unknown] = unplayable(tasks, EnvironmentsConfig(servers=SERVED))
    assert "nothing tells its number at the server; 2 more are like it" in unknown.what
    assert "environments.alfworld_mappings takes AgentGym's checkout" in unknown.remedy
    checkout = write_mappings(tmp_path / "AgentGym")
    known = EnvironmentsConfig(servers=SERVED, alfworld_mappings=checkout)
    assert unplayable(tasks, known) == []
    [absent] = unplayable([Task("alfworld", f"{TASK}/trial_T20200101_000000_000000")], known)
    assert "that environments.alfworld_mappings does not tell of" in absent.what


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "mappings.json does not exist"),
        ("[", "is no JSON"),
        ("{}", "holds no list of games"),
        ('[{"item_id": 3}]', "entry 1: no item_id with task_type and task_id"),
        ('[{"item_id": "3", "task_type": "T", "task_id": "R"}]', "entry 1: no item_id with"),
        (
            '[{"item_id": 3, "task_type": "T", "task_id": "R"}, {"item_id": 3, "task_type": "T", "task_id": "S"}]',
            "has number 3, as",
        ),
    ],
)
def test_malformed_mappings_are_refused(content: str | None, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "mappings.json"
    if content is not None:
        other = TRIALS[0][1]
        file.write_text(content.replace('"T"', f'"{TASK}"').replace('"R"', f'"{TRIAL}"').replace('"S"', f'"{other}"'))
    tasks = [Task("alfworld", "/".join(TRIALS[0])), Task("maze", "maze_x")]
    wrong, maze = unplayable(tasks, EnvironmentsConfig(servers=SERVED, alfworld_mappings=str(file)))
    assert complaint in wrong.what
    assert "mappings_train.json" in wrong.remedy
    assert maze.what.startswith("maze: item id 'maze_x'")  # and what else is wrong is said, too


async def test_a_server_that_plays_another_game_is_refused(tmp_path: Path) -> None:
    settings = EnvironmentsConfig(servers=SERVED, alfworld_mappings=write_mappings(tmp_path / "AgentGym"))
    task = numbered(Task("alfworld", f"{TASK}_{TRIAL}"), settings)
    server = AgentGym("alfworld", names={1: f"{TASK}/{TRIAL}"})
    async with running(server.app()) as url, remote("alfworld", url) as session:
        assert (await session.reset(task)).observation.startswith("task 1, step 0")
        server.names[1] = "/".join(TRIALS[0])
        with pytest.raises(EnvironmentFailure, match=f"number 1 is the game {TRIALS[0][0]}") as failure:
            await session.reset(task)
        assert "environments.alfworld_mappings must be the server's own" in failure.value.remedy
        await session.reset(Task("alfworld", "alfworld_1"))  # which says nothing of the game


def test_a_folder_without_mappings_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no mappings_train\.json or mappings_test\.json"):
        numbers(str(tmp_path))
