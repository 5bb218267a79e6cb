"""The tools' dialect over real HTTP on loopback: AgentGym's forms and refusals, none of its faults."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from tests.support.serving import TOOLS, expert_replies, play, recorded, remote, running


@pytest.mark.parametrize("name", TOOLS)
async def test_the_recording_played_to_our_server(name: str) -> None:
    """Weather's exchanges, request by request: the same kinds of answers, the texts that do not hang on data equal."""
    same_text = 0
    async with running(create_app([name])) as url, aiohttp.ClientSession(url) as http:
        ours = 0
        for exchange in recorded("weather"):
            request, expected = exchange["request"], exchange["response"]
            sent = {**request.get("json", {}), **request.get("query", {})}
            sent |= {"env_idx": ours} if sent.get("env_idx") == 1 else {}
            body: dict[str, Any] = {"params": sent} if request["method"] == "GET" else {"json": sent or None}
            async with http.request(request["method"], request["path"], **body) as response:
                assert response.status == expected["status"], exchange["n"]
                if "text" in expected:
                    assert await response.text() == expected["text"]
                    continue
                answer = await response.json()
            if request["path"] == "/create" and response.status == 200:
                ours = answer
            if request["path"] == "/list_envs":
                assert answer == [ours]
                continue
            assert type(answer) is type(expected["json"])
            if not isinstance(answer, dict):
                continue
            assert list(answer) == list(expected["json"])
            if response.status == 422:
                assert answer["detail"][0]["loc"] == expected["json"]["detail"][0]["loc"]
                continue
            known = ("Format error", "Observation: ERROR", "Observation: 3.0")
            if expected["json"]["observation"].startswith(known):
                if "3.0" in expected["json"]["observation"]:
                    assert answer["done"]
                    answer["observation"] = answer["observation"].replace("done", "3.0")
                assert answer["observation"] == expected["json"]["observation"]
                same_text += 1
    assert same_text == 3


async def test_the_dialect() -> None:
    async with running(create_app(["movie"])) as url, aiohttp.ClientSession(url) as http:

        async def ask(method: str, path: str, status: int = 200, **body: Any) -> Any:
            sent = {"params": body} if method == "GET" else {"json": body}
            async with http.request(method, path, **sent) as response:
                assert response.status == status
                return await (response.json() if status != 500 else response.text())

        first = await ask("POST", "/create", id=0)
        other = await ask("POST", "/create", id=7)
        goals = [await ask("GET", "/observation", env_idx=number) for number in (first, other)]
        assert goals[0] != goals[1]
        assert goals[1] == await ask("POST", "/reset", env_idx=other, id=7)
        assert goals[1].startswith("Now new trial starts.\nYou should perform actions to accomplish the goal: ")
        step = await ask("POST", "/step", env_idx=other, action="Action: check_valid_actions with Action Input: {}")
        assert (step["reward"], step["done"]) == (0.0, False)
        assert await ask("GET", "/observation", env_idx=other) == goals[1]  # always the goal
        assert await ask("POST", "/reset", env_idx=other, id=None) == goals[1]  # the same task again
        assert await ask("POST", "/reset", env_idx=other) == goals[1]
        assert await ask("GET", "/list_envs") == [first, other]
        assert await ask("POST", "/reset", 500, env_idx=other, id=400) == "Internal Server Error"
        assert await ask("GET", "/observation", env_idx=other) == goals[1]  # a reset that failed changes nothing
        assert await ask("GET", "/observation", 500, env_idx=99) == "Internal Server Error"
        assert await ask("POST", "/create", 500, id=10**6) == "Internal Server Error"
        assert await ask("GET", "/list_envs") == [first, other]  # and leaves no id behind
        for body in ({}, {"id": "x"}):
            await ask("POST", "/create", 422, **body)
        await ask("POST", "/step", 422, env_idx=other, action=None)
        finish = 'Action: finish with Action Input: {"answer": "x"}'
        ends = [await ask("POST", "/step", env_idx=other, action=finish) for _ in range(2)]
        assert [end["done"] for end in ends] == [True, True]
        assert ends[1]["observation"] == "Observation: ERROR | The task has finished.\nGive me one action."


async def test_sessions_over_one_server_do_not_mix() -> None:
    async with running(create_app(TOOLS)) as url:

        async def episode(name: str, index: int) -> bool:
            async with remote(name, url) as session:
                replies = expert_replies(name, index, noise=0.2)
                return await play(session, index, replies) == await play(LocalSession(get(name)), index, replies)

        assert all(await asyncio.gather(*(episode(name, index) for name in TOOLS for index in range(13))))
