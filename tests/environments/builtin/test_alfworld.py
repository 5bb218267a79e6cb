"""The built-in ALFWorld: houses, the engine's texts, the six errands, and an expert that searches. What every simulator
must hold is in `test_every_simulator.py`."""

from __future__ import annotations

import builtins
import importlib.util
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("textworld", reason="pip install 'atlas-ray[alfworld]'")

from atlas_ray.environments.builtin.alfworld import game
from atlas_ray.environments.builtin.alfworld.game import Engine
from atlas_ray.environments.builtin.alfworld.house import N_TEST, N_TRAIN, PLACES, TYPES, House, Type, houses, kind
from atlas_ray.environments.builtin.alfworld.search import Memory, plan
from atlas_ray.environments.builtin.alfworld.simulator import AlfWorld
from atlas_ray.environments.http.dialects import AVAILABLE_ACTIONS
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError

KITCHEN = ("cabinet 1", "countertop 1", "diningtable 1", "fridge 1", "microwave 1", "sinkbasin 1")
# what to do with what, where it is at first, and what is said on the way
ERRANDS: dict[Type, tuple[str, str, list[str]]] = {
    "put": (
        "egg",
        "diningtable",
        ["take egg 1 from countertop 1", "go to diningtable 1", "put egg 1 in/on diningtable 1"],
    ),
    "clean": (
        *("plate", "cabinet"),
        [
            *("take plate 1 from countertop 1", "go to sinkbasin 1", "clean plate 1 with sinkbasin 1"),
            *("go to cabinet 1", "open cabinet 1", "put plate 1 in/on cabinet 1"),
        ],
    ),
    "heat": (
        *("egg", "diningtable"),
        [
            *("take egg 1 from countertop 1", "go to microwave 1", "heat egg 1 with microwave 1"),
            *("go to diningtable 1", "put egg 1 in/on diningtable 1"),
        ],
    ),
    "cool": (
        *("egg", "diningtable"),
        [
            *("take egg 1 from countertop 1", "go to fridge 1", "cool egg 1 with fridge 1"),
            *("go to diningtable 1", "put egg 1 in/on diningtable 1"),
        ],
    ),
    "two": (
        *("egg", "diningtable"),
        [
            *("take egg 1 from countertop 1", "go to diningtable 1", "put egg 1 in/on diningtable 1"),
            *("go to fridge 1", "open fridge 1", "take egg 2 from fridge 1"),
            *("go to diningtable 1", "put egg 2 in/on diningtable 1"),
        ],
    ),
}


def begun(monkeypatch: pytest.MonkeyPatch, house: House) -> tuple[AlfWorld, str]:
    """A simulator whose only task is a given house."""
    monkeypatch.setattr("atlas_ray.environments.builtin.alfworld.simulator.houses", lambda: (house,))
    simulator = AlfWorld()
    return simulator, simulator.reset(0).observation


def kitchen(type_: Type, what: str, where: str, wording: int = 0) -> House:
    things = {"plate 1": "countertop 1", "egg 1": "countertop 1", "egg 2": "fridge 1", "knife 1": "diningtable 1"}
    return House(type_, "kitchen", KITCHEN, things, what, where, wording)


@pytest.mark.parametrize("type_", ERRANDS)
def test_each_task_type_needs_all_its_steps(type_: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    what, where, steps = ERRANDS[type_]
    simulator, _ = begun(monkeypatch, kitchen(type_, what, where))
    results = [simulator.step(action) for action in ("go to countertop 1", *steps)]
    assert [result.done for result in results] == [False] * len(steps) + [True]
    assert [result.reward for result in results] == [0.0] * len(steps) + [1.0]
    assert "Nothing happens." not in {result.observation for result in results}
    if type_ in ("clean", "heat", "cool"):  # without its third step the goal is not reached
        simulator.reset(0)
        assert not [simulator.step(action) for action in ("go to countertop 1", *steps[:2], *steps[3:])][-1].done


def test_looking_in_light_needs_the_thing_and_the_lamp(monkeypatch: pytest.MonkeyPatch) -> None:
    things = {"book 1": "bed 1", "desklamp 1": "desk 1"}
    simulator, _ = begun(monkeypatch, House("light", "bedroom", ("bed 1", "desk 1"), things, "book", "desklamp", 0))
    assert not [simulator.step(action) for action in ("go to desk 1", "use desklamp 1")][-1].done
    simulator.reset(0)
    steps = ("go to bed 1", "take book 1 from bed 1", "go to desk 1", "toggle desklamp 1 desk 1")
    assert [simulator.step(action).done for action in steps] == [False, False, False, True]


def test_the_texts_are_alfworlds_in_agentgyms_names(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator, first = begun(monkeypatch, kitchen("heat", "plate", "cabinet", wording=1))
    assert first == (
        "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a countertop 1,"
        " a diningtable 1, a fridge 1, a microwave 1, and a sinkbasin 1."
        "\nYour task is to: heat some plate and put it in cabinet."
        + AVAILABLE_ACTIONS
        + ",".join(f"go to {one}" for one in KITCHEN)
        + ",help,inventory,look"
    )
    said = [
        ("go to fridge 1", "You arrive at fridge 1. The fridge 1 is closed."),
        ("open fridge 1", "You open the fridge 1. The fridge 1 is open. In it, you see a egg 2."),
        ("take egg 1 from fridge 1", "Nothing happens."),
        ("  take   egg 2 from fridge 1 ", "You pick up the egg 2 from the fridge 1."),
        ("inventory", "You are carrying: a egg 2."),
        ("put egg 2 in fridge 1", "You put the egg 2 in/on the fridge 1."),
        ("go to countertop 1", "You arrive at countertop 1. On the countertop 1, you see a egg 1, and a plate 1."),
        ("fly", "Nothing happens."),
        ("close fridge 1", "Nothing happens."),
    ]
    for action, text in said:
        assert simulator.step(action).observation == text
    assert simulator.available_actions[0] == "examine countertop 1"
    assert simulator.task_type == "pick_heat_then_place_in_recep"
    simulator.reset(0)
    for action in ("go to fridge 1", "open fridge 1", "take egg 2 from fridge 1"):
        simulator.step(action)
    assert "put egg 2 in/on fridge 1" in simulator.available_actions
    simulator.step("move egg 2 to fridge 1")  # as ALFWorld calls it now
    assert "take egg 2 from fridge 1" in simulator.available_actions


def test_what_is_put_into_the_goal_ends_the_episode_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    what, where, steps = ERRANDS["put"]
    simulator, _ = begun(monkeypatch, kitchen("put", what, where))
    last = [simulator.step(action) for action in ("go to countertop 1", *steps)][-1]
    assert simulator.step("take egg 1 from diningtable 1") == simulator.step("look") == last


# --- houses ---


def test_tasks_are_as_many_as_the_papers_of_all_six_types_and_all_differ() -> None:
    spec, found = get("alfworld"), houses()
    assert (spec.n_test, spec.n_train) == (N_TEST, N_TRAIN) == (200, 2420)
    assert len(found) == 2620 == len({(one.furniture, one.sentence) for one in found})
    for part in (found[:N_TEST], found[N_TEST:]):
        counts = Counter(one.type for one in part)
        assert set(counts) == set(TYPES)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert {one.room for one in found} == set(PLACES)


def test_no_house_begins_solved_and_each_can_be() -> None:
    for house in houses():
        wanted = [place for thing, place in house.things.items() if kind(thing) == house.what]
        assert len(wanted) >= (2 if house.type == "two" else 1)
        assert house.where not in {kind(place) for place in wanted}
        assert set(house.things.values()) <= set(house.furniture)
        assert all(
            kind(place) in PLACES[house.room].get(kind(thing), [kind(place)]) for thing, place in house.things.items()
        )
        if house.type == "light":
            assert "desklamp 1" in house.things
        else:
            assert house.where in {kind(one) for one in house.furniture}


# --- the expert searches ---


def test_the_plan_depends_on_observations_alone() -> None:
    """Two houses that differ in hidden places get the same plan until that was looked into."""
    rng = random.Random("hidden")
    for house in rng.sample(houses(), 40):
        spots = list(house.things.values())
        rng.shuffle(spots)
        moved = House(
            house.type,
            house.room,
            house.furniture,
            dict(zip(house.things, spots, strict=True)),
            house.what,
            house.where,
            0,
        )
        one, other = Memory(house), Memory(moved)
        assert plan(one).action == plan(other).action
        place = plan(one).action.removeprefix("go to ")
        told = f"You arrive at {place}. On the {place}, you see nothing."
        one.hear(f"go to {place}", told), other.hear(f"go to {place}", told)
        assert plan(one).action == plan(other).action != f"go to {place}"


def test_the_plan_finds_what_lies_last(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House("put", "kitchen", KITCHEN, {"egg 1": "microwave 1"}, "egg", "diningtable", 0)
    simulator, _ = begun(monkeypatch, house)
    done: list[str] = []
    while not (result := simulator.step(done.append(plan(simulator._memory).action) or done[-1])).done:  # type: ignore[func-returns-value]
        assert len(done) < 20
    assert done == [
        *("go to fridge 1", "open fridge 1", "go to countertop 1", "go to sinkbasin 1", "go to microwave 1"),
        *("open microwave 1", "take egg 1 from microwave 1", "go to diningtable 1", "put egg 1 in/on diningtable 1"),
    ]
    assert result.reward == 1


# --- the engine ---


def test_the_engine_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = list(sys.argv)
    simulator = AlfWorld()
    simulator.reset(0)
    simulator.step("look")
    assert simulator._engine is not None
    library = simulator._engine._env.downward_lib
    simulator.close()
    simulator.close()
    assert game._LIBRARIES.count(library) == 1  # for the next engine
    simulator.reset(1)
    assert sys.argv == arguments
    assert not list(tmp_path.iterdir())


def test_engines_are_independent() -> None:
    one, other = Engine(), Engine()
    first, second = one.load(houses()[0]), other.load(houses()[1])
    assert first != second
    command = one.commands[0]
    text = one.play(command)
    assert other.load(houses()[1]) == second
    assert one.load(houses()[0]) == first
    assert one.play(command) == text


@pytest.mark.parametrize("name", ["alfworld", "textworld"])
def test_a_missing_extra_names_its_installation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    game._rules.cache_clear(), game._engine_class.cache_clear()
    found, true_import = importlib.util.find_spec, builtins.__import__

    def without(module: str, *rest: Any) -> Any:
        if module.partition(".")[0] == name:
            raise ImportError(module)
        return true_import(module, *rest)

    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: None if module == name else found(module, *rest)
    )
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError) as caught:
        AlfWorld()
    assert caught.value.remedy == "pip install 'atlas-ray[alfworld]'"
    assert os.environ.get("ALFWORLD_DATA") is None  # its package was not imported
