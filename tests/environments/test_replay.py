"""Whether an environment repeats itself: what counts as the same answer, and how starts are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import client
from atlas_ray.environments.client import open_session
from atlas_ray.environments.registry import get
from atlas_ray.environments.replay import compare, count_starts, difference, replay_words
from atlas_ray.errors import UserError
from atlas_ray.types import Replay, StopReason, Task
from tests.support.agentgym import AgentGym
from tests.support.episodes import episode, winning
from tests.support.serving import remote, running

FORECAST = (
    "Observation: {'latitude': 31.2, 'longitude': 121.5, 'daily': {'time': ['2015-01-01', '2015-01-02'], "
    "'temperature_2m_max': [4.3, 7.9], 'temperature_2m_min': [-3.6, 0.2]}}\nGive me one action."
)


@pytest.mark.parametrize(
    ("env", "told", "found"),
    [
        ("weather", FORECAST, "exact"),
        ("weather", FORECAST.replace("4.3", "4.4").replace("0.2", "-0.1"), "near"),  # measured anew
        ("weather", FORECAST.replace("4.3", "14.3"), "near"),  # one of 25 words and numbers
        ("weather", FORECAST.replace("2015-01-01", "2016-12-31"), "differs"),
        ("weather", "Observation: ERROR | no connection\nGive me one action.", "differs"),
        ("academia", FORECAST.replace("4.3", "4.4"), "differs"),  # its graph is its own
    ],
)
def test_small_differences_are_within_tolerance(env: str, told: str, found: Replay) -> None:
    assert get(env).compare(FORECAST, told) == found


@pytest.mark.parametrize(
    ("env", "recorded", "told", "found"),
    [
        ("maze", "a\nb", "b\n\n a", "exact"),
        ("maze", "Goal at 5, 1. You are at 1, 6.", "Goal at 1, 6. You are at 5, 1.", "differs"),
        ("sciworld", "Which?\n0: the red door\n1: the blue door", "Which?\n0: the blue door\n1: the red door", "near"),
        ("sciworld", "You move to the kitchen.", "You move to the hallway.", "differs"),
        ("sciworld", "", "something", "differs"),
        ("maze", "", "", "exact"),
    ],
)
def test_line_order_does_not_matter_word_order_does(env: str, recorded: str, told: str, found: Replay) -> None:
    assert get(env).compare(recorded, told) == found


def test_a_difference_is_a_share_of_the_longer_text() -> None:
    assert difference("a b c d", "a b c e") == 0.25
    assert difference("a b", "a b c d") == difference("a b c d", "a b") == 0.5
    assert difference("1.0 100.0", "104.0 1.4") == 0.0
    assert difference("1.0 1.0", "1.1 9.0") == 0.5
    assert difference("7 12", "8 12") == 0.5  # counts are no measurements
    assert difference("", "") == 0.0
    assert compare("a b c d", "a b c e", 0.24) == "differs"
    assert compare("a b c d", "a b c e", 0.25) == "near"


def test_price_limits_may_differ_between_servers() -> None:
    first = "WebShop [SEP] Instruction: [SEP] a red lamp, and price lower than {} dollars [SEP] Search"
    assert get("webshop").same_task(first.format("40.00"), first.format("60.00"))
    assert not get("webshop").same_task(first.format("40.00"), first.replace("lamp", "cup").format("40.00"))


def test_a_run_may_set_the_tolerance() -> None:
    def tolerance(**given: float) -> float:
        return open_session(get("maze"), EnvironmentsConfig(replay_tolerance=given)).spec.tolerance

    assert (tolerance(), tolerance(maze=0.2), tolerance(weather=0.3)) == (0.0, 0.2, 0.0)
    with pytest.raises(UserError, match="did you mean maze"):
        tolerance(mase=0.2)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        tolerance(maze=2)


async def test_an_episode_says_how_its_beginning_was_repeated() -> None:
    async with running(AgentGym("weather").app()) as url, remote("weather", url) as session:
        replies = winning("weather")
        told = [m.content for m in (await episode(session, replies)).messages if m.role == "user"][2:]

        async def replayed(recorded: list[str], tolerance: float = 0.1) -> tuple[Replay | None, StopReason, int]:
            session.spec = replace(session.spec, tolerance=tolerance)
            prefix = replies[: len(recorded)]
            played = await episode(session, replies[len(prefix) :], prefix=prefix, recorded=recorded)
            return played.replay, played.stop_reason, played.start_step

        other = told[1].replace("step 1", "step one")
        assert await replayed([]) == (None, StopReason.DONE, 0)
        assert await replayed(told[:2]) == ("exact", StopReason.DONE, 2)
        assert await replayed([told[0], other]) == ("differs", StopReason.REPLAY_MISMATCH, 2)
        assert await replayed([told[0], other], tolerance=0.2) == ("near", StopReason.DONE, 2)


async def test_other_distractor_recipes_are_the_same_textcraft_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """An episode goes on on the new server: its goal is the same."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)
    gym = AgentGym("textcraft")
    drawn = "first"

    def text(game: object) -> str:
        at = f"task {game.index}, step {game.steps}"  # type: ignore[attr-defined]
        return at if game.steps else f"Crafting commands:\n{drawn}\n\nGoal: craft {at}."  # type: ignore[attr-defined]

    monkeypatch.setattr("tests.support.agentgym.Game.text", property(text))
    async with running(gym.app()) as url, remote("textcraft", url) as session:
        first, *rest = winning("textcraft")
        opening = await session.reset(Task("textcraft", "textcraft_7"))
        await session.step(first)
        gym.games.clear()
        drawn = "second"
        results = [await session.step(reply) for reply in rest]
    assert "first" in opening.observation
    assert results[-1].done


def test_starts_are_counted_by_their_worst_episode() -> None:
    found = count_starts([(("a", 1), "exact"), (("a", 1), "near"), ("b", "exact"), ("c", "differs"), ("d", None)])
    assert found == {"exact": 1, "near": 1, "differs": 1}
    assert replay_words(found) == "2 of 3 starts replay, 1 of them nearly"
    assert replay_words({"exact": 4}) == "4 of 4 starts replay"
    assert count_starts([("a", None)]) == {}
