"""The built-in simulators, their scripted agents, and the table."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.cli.main import main
from atlas_ray.environments.builtin import blocksworld, maze, textcraft, wordle
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import gold_ranks
from atlas_ray.environments.registry import ENVIRONMENTS, get
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.types import Message, Task, split_react
from tests.support.absent import here
from tests.support.simulators import ALL, BUILT_IN, LAPTOP, TOOLS, all_played, make_simulator, play

SMOOTH = (*LAPTOP, "pddl", "webshop", "jericho", *TOOLS)  # the others take a while
TOKEN = re.compile(r"[a-z]+|[A-Z][a-z]+|\d|[^\w\s]|\n")


@pytest.mark.parametrize(
    "env", [*SMOOTH, *(pytest.param(env, marks=pytest.mark.slow) for env in ("babyai", "sciworld"))]
)
def test_tasks_are_many_and_their_first_observations_differ(env: str) -> None:
    spec = get(env)
    assert spec.n_test >= {"maze": 70, "pddl": 60, "webshop": 200, "jericho": 40}.get(env, 100)
    assert spec.n_train >= {"babyai": 810, "sciworld": 2120, "webshop": 3930, "weather": 311, "movie": 215}.get(
        env, 140
    )
    tasks = spec.tasks("test") + spec.tasks("train")
    simulator = make_simulator(env)
    assert len({simulator.reset(spec.index(task.item_id)).observation for task in tasks}) == len(tasks)


@pytest.mark.parametrize("env", BUILT_IN)
def test_task_indices_out_of_range_are_refused(env: str) -> None:
    for index in (-1, 10**9):
        with pytest.raises(UserError, match=f"{env} has no task"):
            make_simulator(env).reset(index)


def test_textcraft_gold_teaches_gathering_and_crafting() -> None:
    top = {"get": 0, "part": 0, "target": 0}
    for one in all_played("textcraft", "expert"):
        ranks = gold_ranks([(step, weight) for step, (category, weight) in enumerate(one.marks, 1) if category])
        target = re.search(r"Goal: craft (\w+)\.", one.observations[0])[1]  # type: ignore[index]
        for step, rank in ranks.items():
            if rank <= max(1, len(one.marks) * 3 // 10):
                verb, _, item = split_react(one.replies[step - 1])[1].split()[:3]
                top["get" if verb == "get" else "target" if item == target else "part"] += 1
    assert min(top.values()) > 0.15 * sum(top.values())


def test_the_small_environments_share_a_small_vocabulary() -> None:
    words = set()
    for env in LAPTOP:
        words |= set(TOKEN.findall(make_simulator(env).reset(0).instruction))
        for role in ("expert", "novice"):
            for one in all_played(env, role):
                words |= {word for text in (*one.replies, *one.observations) for word in TOKEN.findall(text)}
    assert len(words) <= 300


@pytest.mark.parametrize(
    "env", [pytest.param(env, marks=pytest.mark.slow if env in ("alfworld", "sciworld") else ()) for env in BUILT_IN]
)
def test_an_episode_depends_on_its_seeds_alone(env: str) -> None:
    code = (
        "import asyncio, json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from atlas_ray.environments.registry import get\nfrom tests.support import simulators as t\n"
        f"print(json.dumps([asyncio.run(t.play(task, role)).replies for task in get({env!r}).tasks('train', 5)"
        " for role in ('expert', 'novice')]))"
    )
    root = str(Path(__file__).parents[2])
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, json.dumps([root, *sys.path])],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("env", BUILT_IN)
def test_another_seed_gives_other_words(env: str) -> None:
    task = get(env).tasks("train", 1)[0]
    assert len({tuple(asyncio.run(play(task, "expert", seed)).replies) for seed in range(5)}) > 1


@pytest.mark.parametrize("env", BUILT_IN)
def test_replay_gives_the_same_observations(env: str) -> None:
    for one in all_played(env, "novice")[:20]:
        simulator, spec = make_simulator(env), get(env)
        simulator.reset(spec.index(one.task.rpartition("/")[2]))
        actions = [spec.take_action(reply) for reply in one.replies]
        assert [simulator.step(action or "").observation for action in actions] == one.observations[1:]


@pytest.mark.parametrize("env", BUILT_IN)
def test_a_scripted_conversation_goes_on_from_a_given_prefix(env: str) -> None:
    task = get(env).tasks("train", 3)[2]
    whole = asyncio.run(play(task, "expert"))

    async def resume() -> list[str]:
        conversation = ScriptedPolicy("expert").open(task, [], Sampling())
        for reply in whole.replies[:1]:
            conversation.append(Message("assistant", reply, True))
        return [(await conversation.generate(0)).text for _ in whole.replies[1:]]

    assert asyncio.run(resume()) == whole.replies[1:]


@pytest.mark.parametrize("env", BUILT_IN)
def test_nonsense_actions_never_succeed(env: str) -> None:
    simulator = make_simulator(env)
    simulator.reset(0)
    assert max(simulator.step("dance").reward for _ in range(60)) < 1


@pytest.mark.parametrize("env", BUILT_IN)
def test_scripted_agents_do_not_change_the_state(env: str) -> None:
    simulator, untouched = make_simulator(env), make_simulator(env)
    simulator.reset(3), untouched.reset(3)
    for _ in range(8):
        for seed in range(5):
            simulator.expert(random.Random(seed)), simulator.novice(random.Random(seed))
        action = untouched.novice(random.Random("n")).action
        assert simulator.step(action) == untouched.step(action)


def test_maze_texts_and_rewards() -> None:
    simulator = maze.Maze()
    index = maze.tasks().index(((4, 1), (1, 5)))
    first = simulator.reset(index)
    assert first.observation == "Goal at 1, 5. You are at 4, 1. Ways: up."
    assert simulator.step("move down").observation == simulator.step("dance").observation == first.observation
    moves = ["up", "up", "up", "right", "down", "down", "right", "right", "up", "right", "up"]
    assert [simulator.step(f"move {way}").reward for way in moves] == [0] * 10 + [1]
    assert simulator.step("move up").observation == "Success"
    simulator.reset(index)
    results = [simulator.step("move down") for _ in range(51)]
    assert [result.done for result in results] == [False] * 50 + [True]
    assert results[-1].reward == -1
    assert get("maze").scale(results[-1].reward) == 0


def test_the_maze_layout_is_closed_and_connected() -> None:
    assert len(maze.WAYS) == 64
    for cell, ways in maze.WAYS.items():
        assert all(cell in maze.WAYS[neighbour].values() for neighbour in ways.values())
    assert all(len(maze.distances(goal)) == 64 for goal in maze.GOALS)
    assert all(maze.SHORTEST <= maze.distances(goal)[start] <= maze.LONGEST for start, goal in maze.tasks())


def test_a_detour_costs_what_walking_it_costs() -> None:
    assert maze.detour((1, 5), (4, 1), "up") == 0
    assert maze.detour((1, 5), (1, 2), "right") == 2  # one cell, a dead end


def test_textcraft_texts() -> None:
    simulator = textcraft.TextCraft()
    index = next(i for i, goal in enumerate(textcraft.tasks()) if goal.target == "torch" and not goal.stock)
    first = simulator.reset(index).observation
    assert first.startswith("Crafting commands:\ncraft ")
    assert first.endswith("\n\nGoal: craft torch.")

    def say(action: str) -> str:
        return simulator.step(action).observation

    assert say("inventory") == "Inventory: You have nothing."
    assert say("craft 4 torch using 1 stick, 1 coal") == "Could not find enough items to craft torch"
    assert say("craft 3 torch using 1 stick, 1 coal") == "Could not find a command for this."
    assert say("get 1 plank") == "Could not find plank"
    assert say("get 1 moon") == "Could not find this."
    assert say("get 0 log") == say("fly") == "Could not execute this."
    assert say("get 2 log") == "Got 2 log"
    assert say("craft 2 plank using 1 log") == "Crafted 2 plank"
    assert say("inventory") == "Inventory: [log] (1) [plank] (2)"
    assert say("craft 2 stick using 1 plank") == "Crafted 2 stick"
    assert say("get 1 coal") == "Got 1 coal"
    last = simulator.step("craft 4 torch using 1 stick, 1 coal")
    assert (last.observation, last.reward, last.done) == ("Crafted 4 torch", 1.0, True)


def test_every_textcraft_plan_ends_in_its_target_and_names_single_digits() -> None:
    for goal in textcraft.tasks():
        jobs = textcraft.plan(goal.target, dict(goal.stock))
        assert jobs[-1].item == goal.target
        assert max(job.n for job in jobs) <= 9
        assert 3 <= len(jobs) <= 12


@pytest.mark.parametrize(
    ("guess", "hidden", "colours"),
    [
        ("light", "light", "g g g g g"),
        ("sound", "light", "b b b b b"),
        ("catch", "hills", "b b b b y"),
        ("eerie", "where", "y b y b g"),
        ("mills", "light", "b g y b b"),
    ],
)
def test_wordle_feedback(guess: str, hidden: str, colours: str) -> None:
    assert wordle.feedback(guess, hidden) == colours


def test_wordle_ends_with_the_sixth_guess_and_shows_its_vocabulary() -> None:
    simulator = wordle.Wordle()
    first = simulator.reset(0)
    assert first.observation == wordle.vocabulary_text(simulator.vocabulary)
    assert wordle.vocabulary_text(["light", "sound"]) == "Words: l i g h t, s o u n d."
    results = [simulator.step("z z z z z") for _ in range(7)]
    assert [result.done for result in results] == [False] * 5 + [True] * 2
    assert results[0].observation == "invalid word"
    _, hidden = wordle.tasks()[0]
    simulator.reset(0)
    assert simulator.step(hidden).reward == 1


def test_blocksworld_states_and_actions() -> None:
    assert len(blocksworld.states()) == 73 + 4 * 13
    assert blocksworld.legal(("blue", "table", "table", "table")).keys() == {
        "unstack red from blue",
        "pickup green",
        "pickup yellow",
    }
    for state in blocksworld.states():
        assert all(state in blocksworld.legal(after).values() for after in blocksworld.legal(state).values())


def test_blocksworld_refuses_what_cannot_be_done_and_pays_at_the_goal() -> None:
    simulator = blocksworld.BlocksWorld()
    first = simulator.reset(0).observation.split("\n")[1]
    refused = simulator.step("dance")
    assert (refused.observation, refused.reward, refused.done) == (f"This is not possible. {first}", 0.0, False)
    while not (result := simulator.step(simulator.expert(random.Random("steady")).action)).done:
        assert (result.reward, result.progress) == (0.0, 0.0)
    assert (result.reward, result.progress) == (1.0, 1.0)


def test_the_registry_has_the_papers_rows() -> None:
    paper = Path(__file__).parents[3] / "shared" / "paper" / "paper_results.json"
    if not paper.exists():
        pytest.skip(f"the paper's figures {paper} are not here")
    rows = json.loads(paper.read_text("utf-8"))["environments"]
    assert len(rows) == 14
    for name, row in rows.items():
        spec = ENVIRONMENTS[name]
        assert (spec.held, spec.max_rounds, spec.metric) == (row["held"], row["max_rounds"], row["metric"]), name


def test_the_table_scales_rewards_and_knows_what_is_built_in() -> None:
    assert set(ENVIRONMENTS) - {"blocksworld"} == set(ALL)
    assert get("sciworld").scale(100) == 1
    assert get("sciworld").scale(-100) == 0
    assert {name for name, spec in ENVIRONMENTS.items() if spec.simulator} == set(BUILT_IN)
    for env in here(BUILT_IN):
        assert get(env).instruction == make_simulator(env).reset(0).instruction


def test_environments_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys; from atlas_ray.environments.registry import ENVIRONMENTS, get\n"
        "def loaded(): return sorted(m for m in sys.modules if m.startswith('atlas_ray.environments.builtin.'))\n"
        "print(len(ENVIRONMENTS), loaded()); get('maze'); print(loaded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    place = "atlas_ray.environments.builtin"
    assert done.stdout.splitlines() == ["15 []", f"['{place}.maze', '{place}.scripted']"]


def test_environments_list_shows_every_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    with pytest.raises(SystemExit):
        main(["environments", "list"])
    lines = {
        cells[0]: cells[1:] for line in capsys.readouterr().out.splitlines() if (cells := line.strip("│ ").split())
    }
    assert set(ALL) <= set(lines)
    assert [cell for cell in lines["babyai"] if cell != "│"] == [
        *("in", "built", "in", "babyai", "861", "112", "20", "reward", "exact")
    ]
    assert [cell for cell in lines["sheet"] if cell != "│"] == [
        *("out", "built", "in", "-", "300", "100", "15", "reward", "exact")
    ]
    assert [cell for cell in lines["sciworld"] if cell != "│"] == [
        *("in", "built", "in", "sciworld", "2120", "200", "30", "reward", "within", "1%")
    ]


def test_an_unknown_environment_names_the_closest(elsewhere: str) -> None:
    with pytest.raises(UserError) as caught:
        get("textcrat")
    assert "textcraft" in caught.value.remedy
    with pytest.raises(UserError):
        LocalSession(get(elsewhere))
    with pytest.raises(UserError):
        ScriptedPolicy("expert").open(Task(elsewhere, f"{elsewhere}_1"), [], Sampling())
