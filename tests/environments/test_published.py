"""Environments that others have published, 30 tasks of each and 16 at once: exact rewards and turns, alike twice."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.foreign import openenv_servers
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import Episode, StopReason, Task
from tests.support import solutions
from tests.support.episodes import Recite, calling, play_all
from tests.support.foreign import OURS, forget

TASKS = 30
GAMES = {
    "TowerOfHanoi-v0": lambda seed: solutions.HANOI,
    "FrozenLake-v0": solutions.frozen_lake,
    "Mastermind-v0": solutions.mastermind,
}
TAGGED = {19, 25}  # tasks of TextCraft whose recorded way names a group of items, which its tool does not take
PATTERN = ("3 paper", "1 skull_banner_pattern")  # what is made in task 1
MARBLE = """
import itertools, json
from marble_v1.taskset import MarbleConfig, MarbleTaskset
tasks = itertools.islice(MarbleTaskset(MarbleConfig(id="marble-v1")), 30)
print(json.dumps([task.data.solution for task in tasks]))
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, OURS)


async def twice(name: str, place: str, replies: Mapping[int, Sequence[str]]) -> list[Episode]:
    """Episodes of an environment, after others that were the same."""
    validate(EnvironmentsConfig, {"register": {name: place}})
    once, again = await play_all(name, replies), await play_all(name, replies)
    assert [(e.messages, e.raw_reward) for e in once] == [(e.messages, e.raw_reward) for e in again]
    return again


def turns_of(episode: Episode) -> list[str]:
    """What came back after each call."""
    return [m.content for m in episode.messages if m.role == "tool"]


def acting(actions: Sequence[str]) -> list[str]:
    return [f"Thought: it is the way.\nAction: {action}" for action in actions]


@pytest.mark.parametrize("game", GAMES)
async def test_games_of_textarena_are_won_in_as_many_moves_as_it_takes(game: str) -> None:
    moves = {seed: GAMES[game](seed) for seed in range(TASKS)}
    found = await twice("game", f"textarena:{game}", {seed: acting(way) for seed, way in moves.items()})
    assert {e.stop_reason for e in found} == {StopReason.DONE}
    assert [(e.reward, e.rounds) for e in found] == [(1.0, len(way)) for way in moves.values()]


async def test_gymnasiums_taxi_is_paid_for_each_ride_what_its_way_leaves() -> None:
    ways = {seed: solutions.taxi(seed) for seed in range(TASKS)}
    place = "gymnasium:tests.support.toy_text:TaxiInWords-v0"
    found = await twice("taxi", place, {seed: acting(["fly", *way]) for seed, way in ways.items()})
    assert {e.stop_reason for e in found} == {StopReason.DONE}
    assert [(e.raw_reward, e.rounds) for e in found] == [(21.0 - len(way), len(way) + 1) for way in ways.values()]
    assert len({e.messages[2].content for e in found}) > TASKS // 2


@pytest.mark.slow
async def test_marble_v1_of_verifiers_pays_for_layouts_that_score(verifiers_python: str) -> None:
    told = subprocess.run([verifiers_python, "-c", MARBLE], check=True, capture_output=True, text=True).stdout
    layouts = [json.dumps(layout if index % 3 else []) for index, layout in enumerate(json.loads(told))]
    replies = {index: [f"So it falls.\n```json\n{layout}\n```"] for index, layout in enumerate(layouts)}
    found = await twice("marble", f"verifiers:{verifiers_python}:marble-v1", replies)
    assert {(e.stop_reason, e.rounds) for e in found} == {(StopReason.DONE, 1)}
    assert [e.reward for e in found] == [float(index % 3 > 0) for index in range(TASKS)]
    assert len({e.messages[2].content for e in found}) > TASKS // 2


@pytest.mark.slow
async def test_the_counter_of_verifiers_own_tests_is_bumped_by_calls_of_its_tool(verifiers_python: str) -> None:
    """It is one task, which is played thirty times."""
    place = f"verifiers:{verifiers_python}:counter-tool-v1"
    validate(EnvironmentsConfig, {"register": {"counter": place}})
    spec, room = registry.get("counter"), asyncio.Semaphore(16)
    by_calls = OpeningTemplate.of_tools(spec)

    async def one(sample: int) -> Episode:
        bumps = [calling("counter_bump", f"c{n}") for n in range(sample % 4)]
        request = EpisodeRequest(Task("counter", "counter_0"), Sampling(), seed=0, sample=sample, opening=by_calls)
        async with room:
            session = open_session(spec, EnvironmentsConfig())
            played = await run_episode(Recite([*bumps, Reply("<answer>done</answer>")]), session, request)
            await session.close()
        return played

    once, again = [await asyncio.gather(*map(one, range(TASKS))) for _ in range(2)]
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert [(e.reward, e.rounds) for e in once] == [(float(n % 4 >= 2), n % 4 + 1) for n in range(TASKS)]
    assert turns_of(once[3]) == ["count=1", "count=2", "count=3"]


@pytest.mark.slow
async def test_textcraft_is_crafted_by_calls_of_its_tools_from_tasks_that_its_server_lists(openenv_python: str) -> None:
    """An OpenReward environment, which OpenEnv's own importer has made one of OpenEnv's."""
    place = f"{openenv_python}:textcraft_many:app"
    validate(EnvironmentsConfig, {"register": {"craft": f"openenv:{place}"}})
    spec = registry.get("craft")
    assert [len(spec.tasks(split)) for split in ("test", "train")] == [100, 1000]
    recipes = await textcraft_tasks(place)
    ways = {index: way_to(task, wrong=index % 3 == 0) for index, task in enumerate(recipes)}
    replies = {
        index: [calling(name, f"c{n}", **given) for n, (name, given) in enumerate(ways[index])] for index in ways
    }
    by_calls = OpeningTemplate.of_tools(spec)
    once, again = [await play_all("craft", replies, opening=by_calls) for _ in range(2)]
    assert [(e.messages, e.raw_reward) for e in once] == [(e.messages, e.raw_reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    won = [float(index % 3 > 0 and index not in TAGGED) for index in ways]
    assert [(e.reward, e.rounds) for e in once] == list(zip(won, map(len, ways.values()), strict=True))
    assert [e.messages[1].content for e in once] == [task["goal"] for task in recipes]
    assert len({task["goal"] for task in recipes}) > TASKS // 2
    assert turns_of(once[1]) == [*(f"Successfully crafted {made}(s)" for made in PATTERN), "It is made."]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(once[0].tools or "")}
    assert schemas["craft"]["required"] == ["ingredients", "target"]
    assert schemas.keys() == {"craft", "get_info", "view_inventory", "finish"}
    openenv_servers.end_all()


@pytest.mark.slow
async def test_verifiers_own_openenv_plays_textcraft_turn_by_turn_by_calls_in_json(
    verifiers_python: str, openenv_python: str
) -> None:
    """Its tasks are the resets that its settings list; tools are called in the text of a reply."""
    server = f"{openenv_python}:textcraft_many:app"
    recipes = await textcraft_tasks(server)
    resets = [{"split": "val", "index": index} for index in range(TASKS)]
    url = await anext(openenv_servers.addresses(openenv_servers.Package.of(server)))
    ways = {index: way_to(task, wrong=index % 3 == 0) for index, task in enumerate(recipes)}
    replies = {
        index: [json.dumps({"type": "call_tool", "tool_name": name, "arguments": given}) for name, given in way]
        for index, way in ways.items()
    }
    settings = urlencode({"base_url": url, "resets": json.dumps(resets)})
    found = await twice("crafting", f"verifiers:{verifiers_python}:openenv?{settings}", replies)
    spec = registry.get("crafting")
    assert [len(spec.tasks(split)) for split in ("test", "train")] == [15, 15]
    assert {e.stop_reason for e in found} == {StopReason.DONE}
    won = [float(index % 3 > 0 and index not in TAGGED) for index in ways]
    assert [(e.reward, e.rounds) for e in found] == list(zip(won, map(len, ways.values()), strict=True))
    told = [json.loads(e.messages[2].content) for e in found]
    assert [t["observation"]["metadata"]["prompt"][0]["text"] for t in told] == [task["goal"] for task in recipes]
    openenv_servers.end_all()


async def textcraft_tasks(place: str) -> list[dict[str, Any]]:
    """The first tasks, as the server tells them."""
    url = await anext(openenv_servers.addresses(openenv_servers.Package.of(place)))
    asked = {"split": "val", "start": 0, "stop": TASKS}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/textcraft_env/task_range", json=asked) as answer:
        return list((await answer.json())["tasks"])


def way_to(task: Mapping[str, Any], wrong: bool) -> list[tuple[str, dict[str, Any]]]:
    """The calls that solve a task, or leave its last craft out."""
    crafts = [
        ("craft", {"ingredients": step["ingredients"], "target": [step["target"][0], step["result_count"]]})
        for step in task["misc"]["gold_trajectory"]
    ]
    return [*(crafts[:-1] if wrong else crafts), ("finish", {"message": "It is made."})]


@pytest.mark.slow
async def test_the_environment_that_openenvs_init_writes_pays_by_length(openenv_python: str) -> None:
    """Its server plays one episode at a time, and no episode of it ends."""
    said = {index: "a" * (index % 12 + 1) for index in range(TASKS)}
    found = await twice("echo", f"openenv:{openenv_python}:echo_env", {i: [f"Action: {t}"] for i, t in said.items()})
    assert {(e.stop_reason, e.rounds) for e in found} == {(StopReason.MAX_ROUNDS, 30)}
    assert [e.raw_reward for e in found] == [pytest.approx(30 * min(1.0, len(text) / 10)) for text in said.values()]
    assert json.loads(found[0].messages[-1].content) == {"echoed_message": "a", "message_length": 1}
    openenv_servers.end_all()
