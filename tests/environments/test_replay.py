"""Whether an environment repeats itself: what counts as the same answer, and how starts are counted and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import client
from atlas_ray.environments.client import open_session
from atlas_ray.environments.registry import get
from atlas_ray.environments.replay import compare, count_starts, difference, replay_words
from atlas_ray.errors import UserError
from atlas_ray.evaluation.table6 import rows
from atlas_ray.report.paper.ours import Figure, PaperRuns, Start
from atlas_ray.report.paper.render import markdown
from atlas_ray.report.results import build_results
from atlas_ray.report.tables import replay_table
from atlas_ray.report.terminal import verification_table
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.selection.value.estimators import value_figures
from atlas_ray.selection.value.settings import ValueSelector
from atlas_ray.selection.value.stage import estimate_values
from atlas_ray.types import Episode, Replay, StopReason, Task
from tests.evaluation.test_verification import an_episode
from tests.recipes.test_fourteen import episode, winning
from tests.selection.value.test_economy import FakePool, expert, turns
from tests.support.agentgym import AgentGym
from tests.support.paper_runs import table
from tests.support.report_records import arm, report_input, selection, trajectory
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
def test_live_services_may_answer_a_little_otherwise(env: str, told: str, found: Replay) -> None:
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
def test_order_and_words(env: str, recorded: str, told: str, found: Replay) -> None:
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


def test_price_limits_are_drawn_anew_by_each_of_agentgyms_shops() -> None:
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


async def test_recipes_that_a_restarted_textcraft_draws_anew_are_no_other_task(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_verification_tells_how_many_starts_replay() -> None:
    plan = {"maze/maze_1": {"from scratch": {0}, "from critical step": {2, 4}, "from other step": set[int]()}}
    episodes = [
        an_episode(1, 0, False),
        replace(an_episode(1, 2, True), replay="near"),
        replace(an_episode(1, 4, False, StopReason.REPLAY_MISMATCH), replay="differs"),
    ]
    scratch, critical = rows(plan, {"maze/maze_1": ()}, {"maze/maze_1": 6}, episodes, [])  # type: ignore[arg-type]
    assert (scratch.replays, critical.replays) == ({}, {"exact": 0, "near": 1, "differs": 1})
    caption = str(verification_table([scratch, critical]).caption)
    assert "maze, from critical step: 1 of 2 starts replay, 1 of them nearly" in caption


def test_episodes_written_before_are_still_read(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    with folder.writer(EPISODES) as writer:
        writer.add(replace(an_episode(1, 2, True), replay="near"))
    (shard,) = (tmp_path / "episodes").glob("*.parquet")
    assert folder.read(EPISODES)[0].replay == "near"
    pq.write_table(pq.read_table(shard).drop_columns(["replay"]), shard)
    assert folder.read(EPISODES)[0].replay is None


def test_value_rollouts_count_the_starts_that_replay() -> None:
    def play(request: EpisodeRequest) -> Episode:
        found: Replay | None = (
            ("exact", "near", "differs")[min(2, len(request.prefix) // 2)] if request.prefix else None
        )
        one = replace(turns(request, 0.6), replay=found)
        return replace(one, stop_reason=StopReason.REPLAY_MISMATCH, error="other") if found == "differs" else one

    plain = ValueSelector(rollouts=3, model="m")
    found = list(estimate_values(FakePool(play), plain, [expert(6, i) for i in range(2)], seed=0))
    assert [one.replays for one in found] == [{"exact": 1, "near": 2, "differs": 2}] * 2
    assert value_figures(found, plain)["replays"] == {"maze": {"differs": 4, "exact": 2, "near": 4}}


def test_the_report_shows_the_share_of_starts_that_replay() -> None:
    told = trajectory("maze", 100)
    known = selection("value", told, 1, replays={"exact": 5, "near": 1, "differs": 2})
    given = report_input(arm("base", {"maze": 4}), selections={"value": [known], "gold": [selection("gold", told, 2)]})
    results = build_results(replace(given, specs={"maze": get("maze")}))
    assert results["replays"] == [
        {"selector": "value", "env": "maze", "replays": {"differs": 2, "exact": 5, "near": 1}, "share": 0.75}
    ]
    (row,) = replay_table(results).rows
    assert [cell.text for cell in row] == ["value", "maze", "8", "5", "1", "2", "75.0"]


def test_table_6_says_how_many_starts_replay() -> None:
    shown = Figure(40.0, 30.0, 50.0, 100, 1, None, 0, False)
    starts = {"from_scratch": Start(shown), "from_critical_step": Start(shown, replays={"exact": 3, "differs": 1})}
    text = markdown(table("table6", PaperRuns({}, {}, verification={"maze": starts})))
    assert "maze: 3 of 4 starts replay as recorded." in text


def test_selections_keep_their_counts_and_those_written_before_have_none(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    with folder.writer(SELECTIONS) as writer:
        writer.add(selection("value", trajectory("maze", 1), 1, replays={"exact": 2}))
    (shard,) = (tmp_path / "selections").glob("*.parquet")
    assert folder.read(SELECTIONS)[0].replays == {"exact": 2}
    pq.write_table(pq.read_table(shard).drop_columns(["replays"]), shard)
    assert folder.read(SELECTIONS)[0].replays == {}
