"""An expert of wasteful habits: detours that hang on the situation, from which it recovers."""

from __future__ import annotations

import asyncio

import pytest

from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Episode

ROUNDS = 45


def played(env: str, waste: float, seed: int = 0, tasks: int = 60) -> list[Episode]:
    async def play() -> list[Episode]:
        policy, spec = ScriptedPolicy("expert", seed, waste), get(env)
        requests = [EpisodeRequest(t, Sampling(), seed=seed, max_rounds=ROUNDS) for t in spec.tasks("train", tasks)]
        return [await run_episode(policy, LocalSession(spec), request) for request in requests]

    return asyncio.run(play())


def rounds(episodes: list[Episode]) -> float:
    return sum(e.rounds for e in episodes) / len(episodes)


@pytest.mark.parametrize("env", ["maze", "textcraft", "blocksworld"])
def test_about_as_many_steps_lie_on_detours_as_were_asked_for(env: str) -> None:
    straight = rounds(played(env, 0.0))
    for waste in (0.2, 0.4):
        found = 1 - straight / rounds(played(env, waste))
        assert 0.6 * waste <= found <= 1.4 * waste, (waste, found)


@pytest.mark.parametrize("env", ["maze", "textcraft", "wordle", "blocksworld"])
def test_the_expert_recovers_from_every_detour(env: str) -> None:
    assert all(episode.success for episode in played(env, 0.5))


@pytest.mark.parametrize("env", ["maze", "textcraft", "blocksworld"])
def test_a_detour_is_a_habit_of_the_situation_and_not_of_the_draw(env: str) -> None:
    one, other = (
        [tuple(m.content.split("Action:")[-1] for m in e.messages if m.trainable) for e in played(env, 0.4, s)]
        for s in (0, 1)
    )
    alike = sum(a == b for a, b in zip(one, other, strict=True)) / len(one)
    assert alike > 0.35  # whole episodes, though the expert has slips and looks of its own, which are drawn


def test_no_detour_is_gold() -> None:
    """A step that leads away from maze's goal is marked in no trajectory."""
    for episode in played("maze", 0.4):
        gold = {mark.step for mark in episode.gold or ()}
        turns = [m.content for m in episode.messages if m.trainable]
        for number, turn in enumerate(turns[1:], 2):
            if "wrong" in turn:  # it comes back from the step before
                assert number - 1 not in gold


def test_environments_whose_expert_makes_no_detours_refuse_them() -> None:
    with pytest.raises(UserError, match="webshop's expert makes no detours"):
        ScriptedPolicy("expert", 0, 0.2).open(get("webshop").tasks("train", 1)[0], [], Sampling())
    with pytest.raises(ValueError, match="a novice does not recover"):
        CollectConfig(role="novice", waste=0.2)
