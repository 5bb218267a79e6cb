"""AgentBoard's own tasks of PDDL and Jericho: read from files in its layout, played in place of the built-in ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.agentboard import material
from atlas_ray.environments.client import HttpSession, open_session
from atlas_ray.environments.custom_data import load_custom_data
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import UserError
from atlas_ray.evaluation.items import test_tasks as tasks_of
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.recipes.preflight.servers import check_environments
from atlas_ray.types import Task
from tests.support.serving import remote, running

PACKAGE = Path(__file__).parents[2] / "atlas_ray" / "environments" / "builtin"
PROBLEMS = Path("agentboard") / "environment" / "pddl_env" / "pddlgym" / "pddl"
# AgentBoard's gripper and blockworld know no types; what is a room is a fact
GRIPPER = """
(define (domain gripper-strips)
  (:predicates (room ?r) (ball ?b) (gripper ?g) (at-robby ?r) (at ?b ?r) (free ?g) (carry ?o ?g))
  (:action move :parameters (?from ?to) :precondition (and (room ?from) (room ?to) (at-robby ?from))
    :effect (and (at-robby ?to) (not (at-robby ?from))))
  (:action pick :parameters (?o ?r ?g)
    :precondition (and (ball ?o) (room ?r) (gripper ?g) (at ?o ?r) (at-robby ?r) (free ?g))
    :effect (and (carry ?o ?g) (not (at ?o ?r)) (not (free ?g))))
  (:action drop :parameters (?o ?r ?g)
    :precondition (and (ball ?o) (room ?r) (gripper ?g) (carry ?o ?g) (at-robby ?r))
    :effect (and (at ?o ?r) (free ?g) (not (carry ?o ?g)))))
"""
BLOCKS = """
(define (domain blocksworld-4ops) (:requirements :strips)
  (:action pickup :parameters (?b) :precondition (and (clear ?b) (on-table ?b) (arm-empty))
    :effect (and (holding ?b) (not (clear ?b)) (not (on-table ?b)) (not (arm-empty))))
  (:action stack :parameters (?b ?under) :precondition (and (clear ?under) (holding ?b))
    :effect (and (arm-empty) (clear ?b) (on ?b ?under) (not (clear ?under)) (not (holding ?b)))))
"""


def gripper(balls: int) -> str:
    names = [f"ball{i}" for i in range(1, balls + 1)]
    facts = "".join(f"(ball {ball}) (at {ball} rooma) " for ball in names)
    goal = " ".join(f"(at {ball} roomb)" for ball in names)
    return (
        f"(define (problem p) (:domain gripper-strips) (:objects rooma roomb left right {' '.join(names)}) (:init "
        f"(room rooma) (room roomb) (gripper left) (gripper right) (free left) (free right) (at-robby rooma) {facts}) "
        f"(:goal (and {goal})))"
    )


def row(domain: str, *subgoals: str) -> dict[str, Any]:
    goal = "The goal is to satisfy the following conditions: " + " ".join(subgoals) + " "
    more = {"subtask": domain}
    return {"id": 0, "task": "pddl", "goal": goal, "subgoals": subgoals, "difficulty": "easy", "additional_info": more}


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """AgentBoard's layout: two problems of gripper, one of each other domain."""
    root = tmp_path / "AgentBoard"
    place = root / PROBLEMS
    barman = (PACKAGE / "pddl" / "barman.pddl").read_text().replace("?l - level ?below", "?l - level?below")
    assert "level?below" in barman  # as in AgentBoard's file
    tyres = (PACKAGE / "pddl" / "tyreworld.pddl").read_text().replace("(open ?c)", "(isopen ?c)")
    problems = {
        "gripper": {"prob01": gripper(2), "prob02": gripper(1)},
        "blockworld": {
            "problem1": "(define (problem p) (:domain b) (:objects b1 b2) (:init (arm-empty) (on-table b1) "
            "(on-table b2) (clear b1) (clear b2)) (:goal (and (on b2 b1))))"
        },
        "barman": {
            "p01": "(define (problem p) (:domain barman) (:objects shaker1 - shaker left right - hand shot1 - shot "
            "ingredient1 - ingredient dispenser1 - dispenser l0 - level) (:init (ontable shaker1) (ontable shot1) "
            "(dispenses dispenser1 ingredient1) (clean shot1) (empty shot1) (handempty left) (handempty right)) "
            "(:goal (and (contains shot1 ingredient1))))"
        },
        "tyreworld": {
            "p01": "(define (problem p) (:domain tyreworld) (:objects boot - container r1 - wheel) "
            "(:init (unlocked boot) (closed boot) (in pump boot) (in r1 boot) (intact r1) (not-inflated r1)) "
            "(:goal (and (inflated r1) (in r1 boot) (closed boot))))"
        },
    }
    for name, text in {"gripper": GRIPPER, "blockworld": BLOCKS, "barman": barman, "tyreworld": tyres}.items():
        (place / name).mkdir(parents=True)
        (place / f"{name}.pddl").write_text(text)
        for problem, told in problems[name].items():
            (place / name / f"{problem}.pddl").write_text(told)
    rows = [
        row("gripper", "ball1 is at roomb.", "ball2 is at roomb."),
        row("gripper", "ball1 is at roomb."),
        row("blockworld", "b2 is on b1."),
        row("barman", "shot1 contains ingredient1."),
        row("tyreworld", "Wheel r1 is inflated.", "r1 is in boot.", "boot is closed."),
    ]
    write_rows(root / "data" / "pddl" / "test.jsonl", rows)
    return root


def test_rows_number_tasks_and_take_their_domains_problems_in_order(checkout: Path) -> None:
    custom = load_custom_data([f"pddl={checkout}"])["pddl"]
    assert str(custom) == "gripper 0 to 1, blockworld 2, barman 3, tyreworld 4"
    simulator = custom.simulator()
    first = simulator.reset(0).observation
    assert "The goal is to satisfy the following conditions: ball1 is at roomb. ball2 is at roomb.\n" in first
    assert "Ball2 is at rooma." in first
    assert "Ball2" not in simulator.reset(1).observation


def test_agentboards_problems_are_played_to_their_goals(checkout: Path) -> None:
    plans = {
        0: ["pick ball1 rooma left", "pick ball2 rooma right", "move rooma roomb", "drop ball1 roomb left"],
        2: ["pickup b2", "stack b2 b1"],
        3: ["left grasp shot1", "fill-shot shot1 ingredient1 left right dispenser1"],
        4: ["open boot", "fetch pump boot", "fetch r1 boot", "inflate r1", "put-away r1 boot", "close boot"],
    }
    progress = {0: [0, 0, 0, 0.5], 2: [0, 1], 3: [0, 1], 4: [2 / 3] * 5 + [1]}
    simulator = load_custom_data([f"pddl={checkout}"])["pddl"].simulator()
    for index, plan in plans.items():
        simulator.reset(index)
        results = [simulator.step(action) for action in plan]
        assert [result.progress for result in results] == pytest.approx(progress[index]), index
        assert results[-1].done == (progress[index][-1] == 1)
    assert simulator.step("close boot").observation == "The goal is satisfied."
    simulator.reset(0)
    assert "pick ball1 rooma left" in simulator.step("check valid actions").observation
    assert "not valid" in simulator.step("pick ball1 roomb left").observation


def spoilt(checkout: Path, how: str) -> None:
    rows, place = checkout / "data" / "pddl" / "test.jsonl", checkout / PROBLEMS
    if how == "rows of another form":
        rows.write_text('{"id": 0, "goal": "x"}\n')
    elif how == "no json":
        rows.write_text("[" * 100_000)
    elif how == "empty":
        rows.write_text("\n")
    elif how == "another order":
        lines = rows.read_text().splitlines()
        rows.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    elif how == "one row more":
        rows.write_text(rows.read_text() + json.dumps(row("gripper", "ball1 is at roomb.")))
    elif how == "unknown domain":
        write_rows(rows, [row("hanoi", "disk1 is on disk2.")])
    elif how == "no problems":
        shutil.rmtree(checkout / "agentboard")
    elif how == "no domain":
        (place / "barman.pddl").unlink()
    elif how == "damaged":
        (place / "barman" / "p01.pddl").write_text("(define (problem p) (:init")
    elif how == "nested":
        (place / "barman" / "p01.pddl").write_text("(define " + "(" * 100_000)
    elif how == "other facts":
        file = place / "barman" / "p01.pddl"
        file.write_text(file.read_text().replace("(clean shot1)", "(sold shot1)"))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("rows of another form", "test.jsonl, line 1: no task of AgentBoard's"),
        ("no json", "test.jsonl, line 1: no task of AgentBoard's"),
        ("empty", "holds no task"),
        ("another order", r"line 1: its subgoals are not those of .*prob01.pddl"),
        ("one row more", r"line 6: .*gripper holds 2 problems, this is one more"),
        ("unknown domain", "line 1: it is not plain of which domain it is"),
        ("no problems", "the problems of AgentBoard's pddl are not in"),
        ("no domain", "barman.pddl cannot be read as PDDL"),
        ("damaged", "p01.pddl cannot be read as PDDL: a parenthesis is not closed"),
        ("nested", "p01.pddl cannot be read as PDDL"),
        ("other facts", "p01.pddl: facts that AgentBoard's barman does not have"),
    ],
)
def test_what_is_not_agentboards_is_refused_before_anything_is_played(checkout: Path, how: str, told: str) -> None:
    spoilt(checkout, how)
    with pytest.raises(UserError, match=told):
        load_custom_data([f"pddl={checkout}"])


def test_the_setting_replaces_built_in_tasks_by_agentboards(checkout: Path) -> None:
    config = EnvironmentsConfig(agentboard={"pddl": str(checkout)})
    evaluation = EvaluateConfig.model_validate(
        {"models": {"base": "m"}, "tasks": {"pddl": None, "maze": 2}, "environments": config.model_dump()}
    )
    assert [task.item_id for task in tasks_of(evaluation)["pddl"]] == [f"pddl_{i}" for i in range(5)]
    with pytest.raises(UserError, match="pddl has 5 test tasks, 60 were asked for"):
        tasks_of(evaluation.model_copy(update={"tasks": {"pddl": 60}}))
    session = open_session(registry.get("pddl"), config)
    assert isinstance(session, LocalSession)
    assert session.spec.n_test == 5
    assert isinstance(open_session(registry.get("maze"), config), LocalSession)
    both = EnvironmentsConfig(agentboard={"pddl": str(checkout)}, servers={"pddl": ["http://127.0.0.1:1"]})
    assert isinstance(open_session(registry.get("pddl"), both), HttpSession)  # a server plays them then
    for wrong, words in (
        ({"maze": str(checkout)}, "maze is not taken from AgentBoard"),
        ({"pddl": "."}, "no test.jsonl"),
    ):
        with pytest.raises(UserError, match=words):
            open_session(registry.get(next(iter(wrong))), EnvironmentsConfig(agentboard=wrong))


def test_the_preflight_says_whose_tasks_are_played_here(checkout: Path) -> None:
    def found(**agentboard: str) -> str:
        config = EnvironmentsConfig(agentboard=agentboard)
        (finding,) = check_environments(["pddl"], (), config, {})
        return f"{finding.result} {finding.detail}"

    assert found() == "ok built in, not AgentBoard's"
    assert found(pddl=str(checkout)) == "ok AgentBoard's tasks"
    assert "there is no test.jsonl of pddl in nowhere" in found(pddl="nowhere")


async def test_a_server_plays_agentboards_tasks(checkout: Path) -> None:
    simulator = material("pddl", str(checkout)).simulator()
    first = simulator.reset(2).observation
    app = create_app(["pddl"], custom_data=load_custom_data([f"pddl={checkout}"], ["pddl"]))
    async with running(app) as url, remote("pddl", url) as session:
        opening = await session.reset(Task("pddl", "pddl_2"))
        results = [await session.step(f"Action: {action}") for action in ("pickup b2", "stack b2 b1")]
    assert opening.observation == first
    assert [result.done for result in results] == [False, True]


# --- jericho ---

KEY = ["look under net", "take key", "north", "unlock door with key"]


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """AgentBoard's layout, with two of our stories under the names of its games."""
    pytest.importorskip("jericho", reason="pip install 'atlas-ray[jericho]'")
    place = tmp_path / "data" / "jericho" / "z-machine-games-master" / "jericho-game-suite"
    place.mkdir(parents=True)
    for story, name in (("lighthouse", "zork1"), ("archive", "905")):
        shutil.copy(PACKAGE / "jericho" / "stories" / f"{story}.z5", place / f"{name}.z5")
    return tmp_path


def jericho_row(subgoals: Any, **more: str) -> dict[str, Any]:
    return {"id": 0, "goal": "Light the lamp.", "subgoals": subgoals, "difficulty": "hard", "additional_info": more}


@pytest.mark.parametrize(
    "subgoals",
    [["You find an iron key!", "The lamp flares up"], "Subgoal 1: You find an iron key! Subgoal 2: The lamp flares up"],
    ids=["a list", "one text"],
)
def test_progress_is_the_share_of_labelled_subgoals(games: Path, subgoals: Any) -> None:
    rows = [jericho_row(subgoals, game_name="zork1"), jericho_row(["never"], game_name="905")]
    write_rows(games / "data" / "jericho" / "test.jsonl", rows)
    custom = material("jericho", str(games))
    assert str(custom) == "zork1 0, 905 1"
    simulator = custom.simulator()
    assert simulator.reset(0).observation.startswith("Your goal: Light the lamp.\n\n")
    assert [simulator.step(command).progress for command in KEY] == [0.5] * 4  # marks do not count, as in AgentBoard
    assert "Light the lamp" in simulator.reset(1).observation


def test_a_missing_game_is_named(games: Path) -> None:
    write_rows(games / "data" / "jericho" / "test.jsonl", [jericho_row(["x"], game_name="zork2")])
    with pytest.raises(UserError, match=r"test.jsonl, line 1: its game \(zork2\) is not in"):
        load_custom_data([f"jericho={games}"])


def test_rows_that_name_no_game_are_agentboards_twenty_in_its_order(games: Path) -> None:
    write_rows(games / "data" / "jericho" / "test.jsonl", [jericho_row(["x"])] * 20)
    with pytest.raises(UserError, match=r"line 2: its game \(acorncourt\) is not in"):  # the first, 905, is there
        load_custom_data([f"jericho={games}"])
    write_rows(games / "data" / "jericho" / "test.jsonl", [jericho_row(["x"])] * 3)
    with pytest.raises(UserError, match=r"line 1: its game \(none\) is not in"):
        load_custom_data([f"jericho={games}"])
