"""The user's own games and products, served in place of the built-in ones."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.cli.main import main
from atlas_ray.environments.custom_data import load_custom_data
from atlas_ray.environments.http import server
from atlas_ray.environments.http.server import create_app, serve
from atlas_ray.errors import EnvironmentFailure, UserError
from tests.support.serving import play, remote, running

STORIES = Path(__file__).parents[2] / "atlas_ray" / "environments" / "builtin" / "jericho" / "stories"
LIGHTHOUSE = ["You find an iron key", "You open\nthe TOWER'S door", "The lamp flares up"]
TO_THE_LAMP = ["look under net", "take key", "north", "unlock door with key", "open door", "east", "take oil", "west"]
TO_THE_LAMP += ["north", "up", "fill lamp", "light lamp"]


@pytest.fixture
def games(tmp_path: Path) -> Path:
    """Two of our stories as if they were somebody's, with subgoals in both forms."""
    pytest.importorskip("jericho", reason="pip install 'atlas-ray[jericho]'")
    for name in ("lighthouse", "archive"):
        shutil.copy(STORIES / f"{name}.z5", tmp_path)
    (tmp_path / "lighthouse.goals.yaml").write_text("".join(f"- {json.dumps(text)}\n" for text in LIGHTHOUSE), "utf-8")
    labels = {"goal": "Open the vault.", "subgoals": ["you find the ledger", "the vault opens"]}
    (tmp_path / "archive.goals.json").write_text(json.dumps(labels), "utf-8")
    return tmp_path


# --- what is given ---


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["jericho"], "not of the form NAME=PATH"),
        (["jericho="], "not of the form NAME=PATH"),
        (["maze=here"], "no data can be given for 'maze'"),
        (["jericho={games}", "jericho={games}"], "twice for jericho"),
        (["jericho={games}/none"], "there is no game in"),
    ],
)
def test_malformed_data_arguments_are_refused(given: list[str], told: str, games: Path) -> None:
    with pytest.raises(UserError, match=told):
        load_custom_data(one.replace("{games}", str(games)) for one in given)


def test_custom_data_must_belong_to_a_served_environment(games: Path) -> None:
    with pytest.raises(UserError, match="jericho, which is not served"):
        serve(["maze"], data=[f"jericho={games}"])


def test_the_command_line_serves_custom_data_and_prints_its_task_numbers(
    games: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def no_server(*_: Any) -> None:
        pass

    monkeypatch.setattr(server, "_serve", no_server)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "maze", "jericho", "--data", f"jericho={games}"])
    assert not ended.value.code
    assert capsys.readouterr().out == "tasks of jericho: archive.z5 0, lighthouse.z5 1\n"


def test_custom_data_has_no_scripted_agent(games: Path) -> None:
    simulator = load_custom_data([f"jericho={games}"])["jericho"].simulator()
    simulator.reset(0)
    for agent in (simulator.expert, simulator.novice):
        with pytest.raises(UserError, match="no scripted agent for material of your own"):
            agent(random.Random(0))


# --- jericho ---


def test_a_game_is_a_task_with_progress_by_its_goal_texts(games: Path) -> None:
    custom = load_custom_data([f"jericho={games}"])["jericho"]
    assert str(custom) == "archive.z5 0, lighthouse.z5 1"
    simulator = custom.simulator()
    assert simulator.reset(0).observation.startswith("Your goal: Open the vault.\n\n")
    first = simulator.reset(1).observation
    assert first.endswith("Here lie a net, a boat, a barrel, a crate and a pot.")
    results = [simulator.step(command) for command in TO_THE_LAMP]
    progress = [round(result.reward * 3) for result in results]
    assert progress == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 3]
    assert [result.done for result in results] == [False] * 11 + [True]
    assert results[-1].progress == results[-1].reward == 1.0
    assert simulator.step("look") == simulator.step("north")  # nothing follows the end
    assert not simulator.reset(1).observation.startswith("The story has ended")
    with pytest.raises(UserError, match="jericho has no task 2"):
        simulator.reset(2)


def test_the_end_of_a_story_ends_the_episode(games: Path) -> None:
    (games / "lighthouse.goals.yaml").write_text("- never told\n- You find an iron key\n", "utf-8")
    simulator = load_custom_data([f"jericho={games}"])["jericho"].simulator()
    simulator.reset(1)
    results = [simulator.step(command) for command in TO_THE_LAMP]
    assert [result.done for result in results] == [False] * 11 + [True]
    assert results[-1].reward == 0.5


def test_interpreter_commands_are_not_passed_on(games: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    simulator = load_custom_data([f"jericho={games}"])["jericho"].simulator()
    simulator.reset(1)
    for command in ("save", "look. RESTORE", "quit", "undo", "verbose", "restart"):
        assert simulator.step(command).observation == "That is no part of the story."
    assert simulator.step("take short sword").observation == "You can't see any such thing."
    assert sorted(tmp_path.iterdir()) == before


def test_the_score_of_a_known_game_counts_without_subgoals(games: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known games cannot be had here, so the interpreter stands in for one: it keeps a score of 0 to 10."""
    import jericho

    score = iter((0, 4, 2, 10))
    monkeypatch.setattr(jericho.FrotzEnv, "get_max_score", lambda self: 10)
    monkeypatch.setattr(jericho.FrotzEnv, "get_score", lambda self: next(score))
    monkeypatch.setattr(
        jericho.FrotzEnv, "is_fully_supported", property(lambda self: 1, lambda self, value: None), False
    )
    for labels in games.glob("*.goals.*"):
        labels.unlink()
    simulator = load_custom_data([f"jericho={games}"])["jericho"].simulator()
    simulator.reset(0)
    results = [simulator.step("look") for _ in range(3)]
    assert [(result.progress, result.done) for result in results] == [(0.4, False), (0.4, False), (1.0, True)]


def spoilt(games: Path, how: str) -> str:
    """Spoils a file; its name."""
    story, labels = games / "archive.z5", games / "archive.goals.json"
    data = bytearray(story.read_bytes())
    if how == "empty":
        data = bytearray()
    elif how == "cut":
        del data[9_000:]
    elif how == "flipped":
        data[9_000] ^= 1
    elif how == "version":
        data[0] = 3
    elif how == "no labels":
        labels.unlink()
    else:
        labels.write_text(how, "utf-8")
        return labels.name
    story.write_bytes(data)
    return story.name


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("empty", "for its size"),
        ("cut", "a damaged story"),
        ("flipped", "a damaged story"),
        ("version", "version 5"),
        ("no labels", "does not know this game's score"),
        *((labels, "not a list of texts") for labels in ("[", "[]", "{}", '[""]', "[1]", "- !!python/name:os.system")),
        ("[" + '"x",' * 20_000 + "]", "not a list of texts"),
    ],
)
def test_unplayable_files_are_named(how: str, told: str, games: Path) -> None:
    name = spoilt(games, how)
    with pytest.raises(UserError) as caught:
        load_custom_data([f"jericho={games}"])
    assert name in caught.value.what
    assert told in caught.value.what


async def test_a_client_plays_custom_data_over_http(games: Path) -> None:
    replies = [f"Thought: On.\nAction: {command}" for command in TO_THE_LAMP]
    app: Any = create_app(["jericho"], custom_data=load_custom_data([f"jericho={games}"]))
    async with running(app) as url, remote("jericho", url) as session:
        opening, results = await play(session, 1, replies)
        assert "Cove" in opening.observation
        assert (results[-1].reward, results[-1].done) == (1.0, True)
        with pytest.raises(EnvironmentFailure, match="The data_idx 2 is not valid"):
            await play(session, 2, [])


# --- alfworld ---

KITCHEN = ("cabinet 1", "countertop 1", "diningtable 1", "fridge 1", "microwave 1", "sinkbasin 1")
TO_THE_TABLE = ["go to countertop 1", "take egg 1 from countertop 1", "go to diningtable 1"]
TO_THE_TABLE += ["move egg 1 to diningtable 1"]


def game(folder: Path, place: str, **changed: Any) -> Path:
    """Writes one of our games where `alfworld-download` would have put one."""
    from atlas_ray.environments.builtin.alfworld.game import data, problem
    from atlas_ray.environments.builtin.alfworld.house import House

    things = {"egg 1": "countertop 1", "egg 2": "fridge 1"}
    house = House("put", "kitchen", KITCHEN, things, "egg", "diningtable", 0)
    file = folder / "json_2.1.1" / place / "game.tw-pddl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(data(problem(house), house.sentence) | changed), "utf-8")
    return file


@pytest.fixture
def houses(tmp_path: Path) -> Path:
    if not all(importlib.util.find_spec(name) for name in ("alfworld", "textworld")):
        pytest.skip("pip install 'atlas-ray[alfworld]'")
    return tmp_path


def alfworld(folder: Path) -> Any:
    return load_custom_data([f"alfworld={folder}"])["alfworld"].simulator()


def test_alfworlds_games_are_numbered_by_part_and_path(houses: Path) -> None:
    for place in ("train/b/t1", "train/a/t2", "train/a/t1", "valid_seen/a/t1", "valid_unseen/z-Egg/t1"):
        game(houses, place)
    for place in ("train/pick_and_place_with_movable_recep/t1", "train/a-BreadSliced/t1"):
        game(houses, place)
    game(houses, "train/a/t3", solvable=False)
    custom = load_custom_data([f"alfworld={houses}"])["alfworld"]
    assert str(custom) == "valid_unseen 0, train 1 to 3, valid_seen 4"
    files: Any = custom.simulator()
    assert [str(file.parent.relative_to(houses / "json_2.1.1")) for file in files._games[:4]] == [
        *("valid_unseen/z-Egg/t1", "train/a/t1", "train/a/t2", "train/b/t1")
    ]


def test_a_game_is_played_as_the_built_in_ones(houses: Path) -> None:
    game(houses, "valid_unseen/pick_and_place_simple-Egg-None-DiningTable-1/trial_1")
    simulator = alfworld(houses)
    first = simulator.reset(0).observation
    assert first.startswith("You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a count")
    assert "\nYour task is to: put a egg in diningtable.\nAVAILABLE ACTIONS: go to cabinet 1," in first
    assert simulator.task_type == "pick_and_place_simple-Egg-None-DiningTable-1/trial_1"
    assert simulator.step("fly").observation == "Nothing happens."
    results = [simulator.step(action) for action in TO_THE_TABLE]
    assert [(result.reward, result.done) for result in results] == [(0.0, False)] * 3 + [(1.0, True)]
    assert results[-1].observation == "You put the egg 1 in/on the diningtable 1."
    assert simulator.step("look") == results[-1]
    assert simulator.reset(0).observation == first
    simulator.close()


def test_things_of_alfreds_scenes_are_numbered_as_alfworld_does_it(houses: Path) -> None:
    """Their ids tell where they are: `Egg|-01.20|+00.90` is the last of two eggs in the alphabet, so egg 1."""
    file = game(houses, "valid_unseen/a/t1")
    data = json.loads(file.read_text("utf-8"))
    ids = {f"{one[:-2]}_1": f"{one[:-2].title()}_bar__minus_01_dot_30_bar__plus_00_dot_9" for one in KITCHEN}
    ids["sinkbasin_1"] = "Sink_bar__minus_01_dot_30_bar__plus_00_dot_9_bar_SinkBasin"
    ids |= {
        "egg_1": "Egg_bar__plus_01_dot_20_bar__plus_00_dot_9",
        "egg_2": "Egg_bar__minus_01_dot_20_bar__plus_00_dot_9",
    }
    for ours, theirs in ids.items():
        data["pddl_problem"] = re.sub(rf"\b(at_)?{ours}\b", rf"\g<1>{theirs}", data["pddl_problem"])
    file.write_text(json.dumps(data), "utf-8")
    simulator = alfworld(houses)
    first = simulator.reset(0).observation
    assert (
        "you see a cabinet 1, a countertop 1, a diningtable 1, a fridge 1, a microwave 1, and a sinkbasin 1." in first
    )
    assert [simulator.step(action).done for action in TO_THE_TABLE] == [False, False, False, True]


def test_the_grammar_in_a_game_file_is_never_evaluated(houses: Path) -> None:
    pwned = houses / "pwned"
    file = game(houses, "valid_unseen/a/t1")
    data = json.loads(file.read_text("utf-8"))
    evil = f"{{open('{pwned}', 'w').name}}"
    data["grammar"] = data["grammar"].replace("You arrive at", f"{evil} You arrive at")
    data["grammar"] = data["grammar"].replace("put a egg in diningtable.", f"put {evil} #intro# it's an egg [there].")
    file.write_text(json.dumps(data), "utf-8")
    simulator = alfworld(houses)
    told = re.search(r"Your task is to: (.*)", simulator.reset(0).observation)
    assert told
    assert "name" in told[1]
    assert "it's an egg" in told[1]
    assert not set(told[1]) & set("{}#[]()")
    for action in TO_THE_TABLE:
        simulator.step(action)
    assert not pwned.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "needs pddl_problem and grammar"),
        ('{"pddl_problem": 1, "grammar": "x"}', "needs pddl_problem and grammar"),
        ('{"pddl_problem": "x", "grammar": "x", "solvable": true}', "does not tell the task"),
        (" " * (2**22 + 1), "too large"),
    ],
)
def test_a_file_that_is_no_game_is_named(content: str, told: str, houses: Path) -> None:
    game(houses, "valid_unseen/a/t1").write_text(content, "utf-8")
    with pytest.raises(UserError, match=told) as caught:
        load_custom_data([f"alfworld={houses}"])
    assert "valid_unseen/a/t1/game.tw-pddl" in caught.value.what


def test_a_folder_without_games_says_where_they_are_looked_for(houses: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_custom_data([f"alfworld={houses}"])
    assert "json_2.1.1/valid_unseen/TASK/TRIAL/game.tw-pddl" in caught.value.remedy


async def test_a_game_that_breaks_after_loading_is_named(houses: Path) -> None:
    game(houses, "valid_unseen/a/t1", pddl_problem="(define (problem house) (:domain alfred) (:init (flies egg)))")
    gone = game(houses, "valid_unseen/a/t2")
    game(houses, "valid_unseen/a/t3")
    app: Any = create_app(["alfworld"], custom_data=load_custom_data([f"alfworld={houses}"]))
    gone.unlink()
    async with running(app) as url, remote("alfworld", url, timeout_s=60) as session:
        for index, told in enumerate(
            ("a/t1/game.tw-pddl: no game of ALFWorld's rules", "a/t2/game.tw-pddl: No such file")
        ):
            with pytest.raises(EnvironmentFailure, match=told):
                await play(session, index, [])
        _, results = await play(session, 2, [f"Action: {action}" for action in TO_THE_TABLE])
        assert (results[-1].reward, results[-1].done) == (1.0, True)
