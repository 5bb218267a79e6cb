"""Other libraries' environments by name: TextArena's games and Gymnasium's text environments."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.check import check
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import Episode, StopReason
from tests.support.episodes import Recite

COUNTER = """
import gymnasium

class Counter(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Text(100)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 5))
        return f"{self.left} left", {}

    def step(self, action):
        self.left -= action == "go"
        return f"{self.left} left", 0.25 * (action == "go"), self.left == 0, False, {}

class Numbers(Counter):
    observation_space = gymnasium.spaces.Discrete(3)

gymnasium.register("Counter-v0", entry_point=Counter, max_episode_steps=6, disable_env_checker=True)
gymnasium.register("Numbers-v0", entry_point=Numbers)
"""
MOVES = {
    "Mastermind-v0": ["[1 2 3 4]", "[2 1 4 3]", "[5 6 1 2]", "[3 5 2 6]"],
    "FrozenLake-v0": ["[right]", "[down]", "[right]", "[down]", "[left]", "[up]"],
    "2048-v0": ["[Up]", "[Left]", "[Down]", "[Right]"],
    "TowerOfHanoi-v0": ["[A C]", "[A B]", "[C B]", "[A C]", "[B A]", "[B C]", "[A C]"],
}


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_counter", raising=False)
    (tmp_path / "my_counter.py").write_text(COUNTER)


def registered(name: str, place: str) -> None:
    validate(EnvironmentsConfig, {"register": {name: place}})


async def episodes(name: str, moves: list[str], tasks: int = 30) -> list[Episode]:
    """Each task by its own mixture of the moves, 16 at once."""
    room = asyncio.Semaphore(16)
    spec = registry.get(name)

    async def one(number: int) -> Episode:
        rng = random.Random(number)
        replies = [f"Thought: a try.\nAction: {rng.choice(moves)}" for _ in range(spec.max_rounds)]
        async with room:
            session = LocalSession(spec)
            task = spec.tasks("test", tasks)[number]
            return await run_episode(Recite(replies), session, EpisodeRequest(task, Sampling(), seed=0))

    return await asyncio.gather(*map(one, range(tasks)))


@pytest.mark.parametrize("game", MOVES)
async def test_games_of_textarena_are_played_alike_twice_whatever_is_played_beside_them(game: str) -> None:
    registered("game", f"textarena:{game}")
    once, again = await episodes("game", MOVES[game]), await episodes("game", MOVES[game])
    assert {e.stop_reason for e in once} <= {StopReason.DONE, StopReason.MAX_ROUNDS}
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert len({e.messages[-1].content for e in once}) > 1
    assert any(e.reward > 0 for e in once) or game == "TowerOfHanoi-v0"  # by chance too hard


async def test_a_game_is_won() -> None:
    registered("hanoi", "textarena:TowerOfHanoi-v0")
    spec = registry.get("hanoi")
    replies = [f"Action: {move}" for move in MOVES["TowerOfHanoi-v0"]]
    task = spec.tasks("test", 1)[0]
    played = await run_episode(Recite(replies), LocalSession(spec), EpisodeRequest(task, Sampling(), seed=0))
    assert (played.stop_reason, played.reward, played.success, played.rounds) == (StopReason.DONE, 1.0, True, 7)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("textarena:NoSuchGame-v0", "NoSuchGame-v0 does not start"),
        ("textarena:TicTacToe-v0", "no game for one player"),
        ("gymnasium:NoSuch-v0", "does not make NoSuch-v0"),
        ("gymnasium:my_counter:Numbers-v0", "no texts"),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(place: str, said: str) -> None:
    registered("game", place)
    with pytest.raises(UserError, match=said):
        registry.get("game")


async def test_a_text_environment_of_gymnasium_keeps_the_rules_and_adds_its_rewards_up() -> None:
    registered("counter", "gymnasium:my_counter:Counter-v0")
    assert [
        finding.rule for finding in [f async for f in check("counter", EnvironmentsConfig())] if not finding.holds
    ] == []
    once, again = await episodes("counter", ["go", "wait"]), await episodes("counter", ["go", "wait"])
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    won = [e for e in once if e.stop_reason is StopReason.DONE and e.messages[-1].content == "0 left"]
    assert won
    assert all(e.reward == 0.25 * int(e.messages[2].content[0]) for e in won)
    assert registry.get("counter").max_rounds == 6


def test_a_name_is_asked_for() -> None:
    with pytest.raises(UserError, match="needs a name"):
        registry.get("textarena:Mastermind-v0")
