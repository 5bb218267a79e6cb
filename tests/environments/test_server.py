"""The environment server over real HTTP on loopback: AgentGym's forms, bounds, tokens."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
from typing import Any

import aiohttp
import pytest

from atlas_ray.environments.http.client_pool import TOKEN_VARIABLE
from atlas_ray.environments.http.probe import probe
from atlas_ray.environments.http.server import create_app, serve
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Task
from tests.support.serving import recorded, remote, running


async def test_the_server_refuses_as_agentgyms():
    maze, textcraft = recorded("maze"), recorded("textcraft")
    app = create_app(["maze", "textcraft"])
    async with running(app) as url, aiohttp.ClientSession(url) as http:

        async def same(exchange: dict[str, Any], prefix: str = "") -> None:
            request, expected = exchange["request"], exchange["response"]
            body = {"data": request["body"]} if "body" in request else {"json": request.get("json")}
            async with http.request(request["method"], prefix + request["path"], **body) as response:
                assert (response.status, await response.json()) == (expected["status"], expected["json"])

        await same(maze[63])  # an unknown id
        await same(maze[64])  # a broken body
        await same(maze[65])  # no such endpoint
        await same(textcraft[0], "/textcraft")  # no body
        await same(textcraft[14], "/textcraft")  # closing what is not there
        await same(textcraft[15], "/textcraft")

        async def keys(exchange: dict[str, Any], path: str, body: Any) -> dict[str, Any]:
            """The answer, whose keys must be those recorded."""
            async with http.post(path, json=body) as response:
                answer = await response.json()
            assert response.status == 200
            assert list(answer) == list(exchange["response"]["json"])
            return answer

        number = (await keys(maze[0], "/maze/create", None))["id"]
        assert await keys(maze[1], "/maze/step", {"id": number, "action": "move up"}) == {"error": str(number)}
        refused = await keys(maze[9], "/maze/reset", {"id": number, "game": 9999})
        assert refused == {"error": "The game 9999 is not valid."}
        await keys(maze[2], "/maze/reset", {"id": number, "game": 17})
        for _ in range(51):
            last = await keys(maze[3], "/maze/step", {"id": number, "action": "dance"})
        assert (last["reward"], last["done"]) == (-1.0, True)
        finished = {"error": f"The task with environment {number} has finished."}
        assert await keys(maze[6], "/maze/step", {"id": number, "action": "move up"}) == finished
        async with http.get("/maze/observation", params={"id": number}) as response:
            assert await response.json() == finished
        await keys(maze[2], "/maze/reset", {"id": number, "game": 17})
        async with http.get("/maze/available_actions", params={"id": number}) as response:
            assert "move up" in await response.json()

        number = (await keys(textcraft[1], "/textcraft/create", {}))["id"]
        await keys(textcraft[2], "/textcraft/reset", {"id": number, "data_idx": 0})
        step = await keys(textcraft[3], "/textcraft/step", {"id": number, "action": "inventory"})
        async with http.get("/textcraft/observation", params={"id": number}) as response:
            assert await response.json() == step["observation"]


async def test_babyai_is_served_as_the_real_server_does():
    """The whole recording, request by request: the ids differ, nothing else."""
    async with running(create_app(["babyai"])) as url, aiohttp.ClientSession(url) as http:
        ours = 0
        for exchange in recorded("babyai"):
            request = exchange["request"]
            given = {**request.get("json", {}), **request.get("query", {})}
            given |= {"id": ours} if given.get("id") == 0 else {}
            sent = {"params": given} if request["method"] == "GET" else {"json": given or None}
            async with http.request(request["method"], request["path"], **sent) as response:
                answer = await response.json()
            if request["path"] == "/create":
                ours = answer["id"]
                continue
            expected = json.loads(
                re.sub(
                    r"(environment|id|\"error\": \")( ?)0\b",
                    rf"\g<1>\g<2>{ours}",
                    json.dumps(exchange["response"]["json"]),
                )
            )
            assert answer == pytest.approx(expected) if isinstance(expected, float) else answer == expected
            if isinstance(expected, dict):
                assert list(answer) == list(expected)


@pytest.mark.parametrize(
    ("body", "kind", "where"),
    [
        ("{}", "missing", ["body", "id"]),
        ("null", "missing", ["body"]),
        ("[1]", "model_attributes_type", ["body"]),
        ('{"id": "x", "action": "a"}', "int_parsing", ["body", "id"]),
        ('{"id": 0, "action": ["a"]}', "string_type", ["body", "action"]),
        ('{"id": NaN, "action": "a"}', "finite_number", ["body", "id"]),
        ("[" * 100_000, "json_invalid", ["body"]),
        (b"\xff", "json_invalid", ["body"]),
    ],
)
async def test_malformed_bodies_are_422(body, kind, where):
    async with running(create_app(["maze"])) as url, aiohttp.ClientSession(url) as http:
        async with http.post("/step", data=body) as response:
            assert response.status == 422
            detail = (await response.json())["detail"]
        assert (detail[0]["type"], detail[0]["loc"]) == (kind, where)
        assert "msg" in detail[0]
        async with http.get("/observation?id=x") as response:
            assert (response.status, (await response.json())["detail"][0]["loc"]) == (422, ["query", "id"])


async def test_limits_of_the_server():
    now = [0.0]
    app = create_app(["maze"], max_sessions=2, idle_seconds=10, clock=lambda: now[0])
    async with running(app) as url, aiohttp.ClientSession(url) as http:

        async def ask(path: str, **body: Any) -> Any:
            async with http.post(path, json=body or None) as response:
                return await response.json(content_type=None)

        one, two = (await ask("/maze/create"))["id"], (await ask("/create"))["id"]
        assert one != two
        assert "full" in (await ask("/create"))["error"]
        now[0] = 9.0
        assert "observation" in await ask("/reset", id=two, game=1)
        now[0] = 11.0
        assert (await ask("/reset", id=one, game=1))["error"] == f"The id {one} is not valid."
        assert "id" in await ask("/create")
        now[0] = 30.0
        assert "id" in await ask("/create")  # both idle ones make room
        async with http.post("/step", data=io.BytesIO(b"x" * (2**20 + 1))) as response:
            assert response.status == 413
        async with http.get("/") as response:
            assert await response.json() == {"atlas_ray": {"maze": 70}}
        async with http.get("/nowhere") as response:
            assert (response.status, await response.json()) == (404, {"detail": "Not Found"})


async def test_a_token_is_asked_for_and_sent(monkeypatch):
    async with running(create_app(["maze"], token="secret")) as url:
        assert "401" in (await probe(url, "maze")).tasks
        monkeypatch.setenv(TOKEN_VARIABLE, "wrong")
        async with remote("maze", url) as session:
            with pytest.raises(EnvironmentFailure, match="HTTP 401"):
                await session.reset(Task("maze", "maze_1"))
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        assert (await probe(url, "maze")).ok
        async with aiohttp.ClientSession(url) as http, http.get("/") as response:
            assert response.status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "example.org"])
@pytest.mark.parametrize("token", [None, ""])
def test_serving_to_others_needs_a_token(host, token):
    with pytest.raises(UserError, match="let anybody in"):
        serve(["maze"], host, 0, token)


@pytest.mark.parametrize(
    ("names", "words"), [([], "no environment"), (["mase"], "'mase'"), (["sciworld"], "not built in")]
)
@pytest.mark.usefixtures("elsewhere")
def test_unservable_names_are_refused(names, words):
    with pytest.raises(UserError, match=words):
        create_app(names)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot serve at 127.0.0.1:{port}"):
            serve(["maze"], port=port)


async def test_serve_says_where_and_ends_on_a_signal():
    code = "from atlas_ray.environments.http.server import serve; serve(['maze', 'wordle'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = await asyncio.to_thread(process.stdout.readline)
            assert line.startswith("serving maze, wordle at http://127.0.0.1:")
            assert (await probe(line.split()[-1], "wordle")).replay == "exact"
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == 0
        finally:
            process.kill()
