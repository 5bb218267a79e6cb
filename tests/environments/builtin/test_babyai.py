"""BabyAI: its texts against the real server's, its rules, its expert."""

from __future__ import annotations

import random

import pytest

from atlas_ray.environments.builtin.babyai.scene import LEVELS, Scene, load_level
from atlas_ray.environments.builtin.babyai.simulator import BabyAI
from atlas_ray.environments.registry import get
from tests.support.serving import recorded


def test_the_texts_are_the_real_servers() -> None:
    """The recorded exchanges, played here: observations, actions on offer, rewards."""
    simulator, done, compared = BabyAI(), True, 0
    for exchange in recorded("babyai"):
        asked, answer = exchange["request"].get("json", {}), exchange["response"]["json"]
        if not isinstance(answer, dict) or "error" in answer:
            continue
        if exchange["request"]["path"] == "/reset":
            assert simulator.reset(asked["data_idx"]).observation == answer["observation"]
            done = False
        elif exchange["request"]["path"] == "/step" and not done:
            result = simulator.step(asked["action"])
            assert (result.observation, result.done) == (answer["observation"], answer["done"])
            assert result.reward == pytest.approx(answer["score"])
            done, compared = result.done, compared + 1
    assert compared == 6


def test_what_is_seen_is_what_minigrid_shows() -> None:
    for index in range(0, 40, 3):
        env, rng = load_level(index + 1, 5), random.Random(index)
        for _ in range(8):
            scene = Scene.of(env)
            _, mask = env.gen_obs_grid()
            shown = {(6 - j, i - 3) for i in range(7) for j in range(7) if mask[i, j]} - {(0, 0)}
            in_level = {
                (ahead, right)
                for ahead, right in shown
                for x, y in [scene.pose.ahead(ahead, right)]
                if 0 <= x < env.width and 0 <= y < env.height
            }
            assert {(ahead, right) for ahead, right, _ in scene.visible} == in_level
            env.step(rng.choice([0, 1, 2, 2, 2, 5, 3]))


def test_actions_that_cannot_be_taken_say_why() -> None:
    simulator = BabyAI()
    simulator.reset(0)  # a red ball among grey things
    first = simulator.step("check available actions").observation.splitlines()
    assert first[0].startswith(
        "You can take the following actions: turn left, turn right, move forward, pickup grey key"
    )

    def said(action: str) -> str:
        result = simulator.step(action)
        assert (result.reward, result.done) == (0.0, False)
        return result.observation.splitlines()[0]

    assert said("fly") == said("") == "The action is not recognized. Please check valid actions."
    assert said("drop") == "You cannot drop the object, as you are not carrying anything."
    assert "You are carrying a grey key." in said("pick up grey key 1")
    assert "pickup" not in simulator.step("turn left").observation


def test_a_locked_door_wants_its_key_and_a_box_gives_one() -> None:
    simulator = BabyAI()
    simulator.reset(105)  # level 26: the key lies in the box before the door
    locked = simulator.step("turn right").observation
    assert "locked door" in locked or "box" in locked
    actions = []
    for step in range(20):
        decision = simulator.expert(random.Random(step + 1))
        actions.append(decision.action)
        if simulator.step(decision.action).done:
            break
    assert "toggle" in actions
    assert actions[-1].startswith("toggle and go through")


def test_rewards_end_episodes() -> None:
    simulator = BabyAI()
    simulator.reset(0)
    for _ in range(63):
        assert not simulator.step("turn left").done
    late = simulator.step("turn left")
    assert (late.reward, late.done) == (0.0, True)
    assert "The task has failed." in late.observation
    assert simulator.step("go to red ball 1") == late
    simulator.reset(0)
    won = simulator.step("go to red ball 1")
    assert (won.reward, won.done) == (1 - 0.9 * 8 / 64, True)
    spec = get("babyai")
    assert spec.scale(won.reward) >= spec.success_at
    assert spec.scale(0.0) < spec.success_at
    assert spec.scale(1 - 0.9) >= spec.success_at  # reached with the last move


def test_levels_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for level in range(1, len(LEVELS) + 1):
        load_level(level, 7)
    assert capsys.readouterr() == ("", "")
