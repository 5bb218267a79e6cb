"""OpenEnv both ways: its servers played here, our environments played by its clients.

The fast half speaks to our own server; the slow half to OpenEnv itself, in a virtual environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.builtin.maze import Maze
from atlas_ray.environments.client import open_session
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.foreign import openenv, openenv_servers
from atlas_ray.environments.foreign.openenv import action_field, text_of
from atlas_ray.environments.foreign.openenv_servers import Package
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import Opening
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import Episode, StopReason, Task
from tests.support.episodes import Recite, play_all
from tests.support.foreign import forget
from tests.support.serving import expert_replies, running

CLIENT = """
import asyncio, json, sys
from openenv.core.generic_client import GenericEnvClient

async def play(url, index, replies):
    async with GenericEnvClient(base_url=url) as env:
        found = await env.reset(seed=index)
        told, total = [found.observation["text"]], 0.0
        for reply in replies:
            found = await env.step({"message": reply})
            told.append(found.observation["text"])
            total += found.reward or 0.0
            if found.done:
                break
        return told, total, found.done

async def main():
    url, games = json.load(sys.stdin)
    print(json.dumps(await asyncio.gather(*(play(url, index, replies) for index, replies in games))))

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)


SUPPORT = Path(__file__).parents[1] / "support"


def registered(name: str, url: str) -> None:
    validate(EnvironmentsConfig, {"register": {name: f"openenv:{url}"}})


async def played(name: str, index: int, replies: list[str]) -> Episode:
    session = open_session(registry.get(name), EnvironmentsConfig())
    try:
        return await run_episode(
            Recite(replies), session, EpisodeRequest(Task(name, f"{name}_{index}"), Sampling(), seed=0)
        )
    finally:
        await session.close()


async def test_our_maze_behind_openenvs_protocol_gives_the_texts_and_rewards_of_the_maze() -> None:
    async with running(create_app(["maze"], protocol="openenv")) as url:
        registered("labyrinth", url)
        for index in range(10):
            # the maze takes the action from the whole reply, and so does the one behind the server
            replies = expert_replies("maze", index)
            actions = [reply.partition("Action: ")[2] for reply in replies]
            own = LocalSession(registry.get("maze"))
            await own.reset(Task("maze", f"maze_{index}"))
            expected = [await own.step(action) for action in actions]
            found = await played("labyrinth", index, replies)
            answers = [m.content for m in found.messages[4::2]]
            assert answers == [result.observation for result in expected]
            assert (found.reward, found.success) == (expected[-1].reward, True)


async def test_a_broken_message_is_answered_and_the_connection_goes_on() -> None:
    async with (
        running(create_app(["maze"], protocol="openenv")) as url,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{url}/ws") as socket,
    ):

        async def ask(text: str) -> Any:
            await socket.send_str(text)
            return json.loads(await socket.receive_str(timeout=10))

        broken = ["{", "[]", "7", '{"type": "fly"}', '{"type": "step", "data": {}}', '{"type": "reset", "data": 3}']
        assert {(await ask(message))["type"] for message in broken} == {"error"}
        assert "reset" in (await ask('{"type": "step", "data": {"message": "go"}}'))["data"]["message"]
        assert (await ask('{"type": "reset", "data": {"seed": 10000000000}}'))["type"] == "error"
        assert (await ask('{"type": "reset", "data": {"seed": 3}}'))["data"]["observation"]["instruction"]
        assert (await ask('{"type": "state"}'))["data"] == {"episode_id": "maze/maze_3", "step_count": 0}


async def test_a_server_that_is_none_of_openenvs_spoils_the_episode_by_name() -> None:
    app = web.Application()
    async with running(app) as url:
        registered("other", url)
        found = await played("other", 0, ["Action: go"])
    assert found.stop_reason is StopReason.ENV_ERROR
    assert "does not answer as an OpenEnv server" in str(found.error)


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ({"message": {"type": "string"}, "metadata": {"type": "object"}}, "message"),
        ({"row": {"type": "integer"}}, "row: integer"),
        ({"tool": {"type": "string"}, "arguments": {"type": "object"}}, "tool: string, arguments: object"),
        ({}, "nothing"),
    ],
)
def test_actions_are_one_text_or_refused(properties: dict[str, Any], found: str) -> None:
    schema = {"action": {"properties": properties, "required": [n for n in properties if n != "metadata"]}}
    if found in properties:
        assert action_field(schema, "http://a") == found
    else:
        with pytest.raises(UserError, match=found):
            action_field(schema, "http://a")


def test_of_an_observation_its_texts_are_told_and_all_of_it_where_there_is_more() -> None:
    assert text_of({"text": "a wall", "hint": "", "metadata": {"x": 1}, "done": False}) == "a wall"
    assert text_of({"board": [[1, 2]], "turn": "you"}) == '{"board": [[1, 2]], "turn": "you"}'


def test_where_an_observation_is_empty_the_prompt_in_its_metadata_is_told() -> None:
    """So have it the environments that OpenEnv imports from other libraries."""
    assert text_of({"metadata": {"prompt": [{"type": "text", "text": "Craft"}, {"text": "it."}]}}) == "Craft\nit."
    assert text_of({"metadata": {"prompt": [{"role": "user", "content": "Craft it."}]}}) == "Craft it."
    assert text_of({"metadata": {"source": "x"}}) == ""


async def test_the_users_own_data_is_served_and_a_full_server_says_so() -> None:
    class Shifted(Maze):
        def reset(self, index: int) -> Opening:
            return replace(super().reset(index), observation="A maze of my own.")

    app = create_app(
        ["maze"], protocol="openenv", max_sessions=1, custom_data={"maze": CustomData(Shifted, {"all": 3})}
    )
    async with running(app) as url, aiohttp.ClientSession() as http, http.ws_connect(f"{url}/ws") as socket:
        await socket.send_str('{"type": "reset", "data": {"seed": 1}}')
        told = json.loads(await socket.receive_str(timeout=10))
        assert told["data"]["observation"]["text"] == "A maze of my own."
        async with http.ws_connect(f"{url}/ws") as second:
            assert json.loads(await second.receive_str(timeout=10))["data"]["code"] == "CAPACITY_REACHED"


def test_one_server_has_one_environment() -> None:
    with pytest.raises(UserError, match="has one environment"):
        create_app(["maze", "wordle"], protocol="openenv")


@pytest.fixture
def server(openenv_python: str) -> Iterator[str]:
    process = subprocess.Popen(
        [openenv_python, str(SUPPORT / "openenv_server.py")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
async def test_openenvs_own_server_is_played_many_at_once_and_alike_twice(server: str) -> None:
    registered("guess", server)
    replies = {index: [f"Action: {n}" for n in range(1, 8)] for index in range(30)}
    once, again = await play_all("guess", replies), await play_all("guess", replies)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    numbers = [random.Random(index).randint(1, 7) for index in range(30)]
    assert [e.rounds for e in once] == numbers
    assert all(e.stop_reason is StopReason.DONE and e.success for e in once)


@pytest.mark.slow
async def test_an_error_of_openenvs_server_spoils_that_episode_alone(server: str) -> None:
    registered("guess", server)
    broken, fine = await asyncio.gather(
        played("guess", 1, ["Action: break"]), played("guess", 2, [f"Action: {n}" for n in range(1, 8)])
    )
    assert broken.stop_reason is StopReason.ENV_ERROR
    assert "it broke" in str(broken.error)
    assert fine.success


@pytest.mark.slow
async def test_openenvs_own_client_plays_our_maze_as_we_do(openenv_python: str) -> None:
    games = [(index, expert_replies("maze", index, noise=0.2)) for index in range(50)]
    expected = []
    for index, replies in games:
        session = LocalSession(registry.get("maze"))
        told, reward, done = [(await session.reset(Task("maze", f"maze_{index}"))).observation], 0.0, False
        for reply in replies:
            result = await session.step(reply)
            told, reward, done = [*told, result.observation], result.reward, result.done
            if done:
                break
        expected.append([told, reward, done])
    async with running(create_app(["maze"], protocol="openenv")) as url:
        client = await asyncio.create_subprocess_exec(
            *(openenv_python, "-c", CLIENT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        answer, _ = await client.communicate(json.dumps([url, games]).encode())
    assert client.returncode == 0
    assert json.loads(answer) == expected


@pytest.fixture
def packages(openenv_python: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Packages of OpenEnv's that the Python which is returned finds, and whose servers end with the test."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [SUPPORT, SUPPORT / "openenv_package"])))
    return openenv_python


@pytest.mark.slow
async def test_a_packages_server_is_started_here_played_many_at_once_and_ended(packages: str) -> None:
    registered("guess", f"{packages}:openenv_server:app")
    replies = {index: [f"Action: {n}" for n in range(1, 8)] for index in range(30)}
    once, again = await play_all("guess", replies), await play_all("guess", replies)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert [e.rounds for e in once] == [random.Random(index).randint(1, 7) for index in range(30)]
    [servers] = openenv_servers._servers.values()
    assert len(servers) == 1
    openenv_servers.end_all()
    assert not any(server.alive for server in servers)


@pytest.mark.slow
async def test_tools_of_a_server_that_plays_one_episode_at_a_time_are_called_by_several_of_it(packages: str) -> None:
    registered("counting", f"{packages}:counting_env")
    wanted = {index: random.Random(index).randint(3, 9) for index in range(30)}
    call = 'Thought: on\n\nAction: add with Action Input: {"number": %d}'
    replies = {index: ["no call", call % 1, call % 2, call % (n - 3 + index % 2)] for index, n in wanted.items()}
    once, again = await play_all("counting", replies, 3), await play_all("counting", replies, 3)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    assert [e.reward for e in once] == [float(index % 2 == 0) for index in range(30)]
    assert '"number": {"type": "integer"}' in once[0].messages[0].content
    assert "please response in the format" in once[0].messages[4].content
    assert once[0].messages[6].content == f"The total is 1 of {wanted[0]}."
    [servers] = openenv_servers._servers.values()
    assert len(servers) == 3
    openenv_servers.end_all()


async def test_a_package_that_is_not_there_spoils_the_episode_by_name() -> None:
    registered("nowhere", "no_such_package")
    found = await played("nowhere", 0, ["Action: go"])
    assert found.stop_reason is StopReason.ENV_ERROR
    assert "no_such_package.server.app:app ended: " in str(found.error)


@pytest.mark.parametrize(
    ("place", "package"),
    [
        ("echo_env", Package("echo_env.server.app:app")),
        ("echo.other:application", Package("echo.other:application")),
        ("/opt/echo/bin/python:echo_env", Package("echo_env.server.app:app", "/opt/echo/bin/python")),
    ],
)
def test_a_package_is_named_with_its_application_and_python(place: str, package: Package) -> None:
    assert Package.of(place) == package
    registered("echo", place)
    assert registry.get("echo").session is not None


@pytest.mark.parametrize("place", ["http://", "echo-env", "/opt/python:"])
def test_what_is_neither_an_address_nor_a_package_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="is no OpenEnv server"):
        openenv.environment("echo", place)


def test_a_tools_result_is_told_in_words() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert openenv.result_of({"tool_name": "a", "result": {"content": content}}) == "one\ntwo"
    assert openenv.result_of({"result": None, "error": {"message": "no tool"}}) == "Error: no tool"
    assert openenv.result_of({"result": {"blocks": content, "metadata": {}}}) == "one\ntwo"
    assert openenv.result_of({"result": {"b": 1, "a": 2}}) == '{"a": 2, "b": 1}'
