"""What a malicious environment server, trajectory file, model or HTTP client may not do. See docs/security.md."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from atlas_ray.cli.main import main
from atlas_ray.config import DataConfig
from atlas_ray.environments import client
from atlas_ray.environments.http import probe, request_limits
from atlas_ray.environments.http.server import create_app
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected, write_rejected
from atlas_ray.types import Message, Task, Trajectory
from tests.support.records import a_row
from tests.support.serving import BUILT_IN, remote, running, served

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)


# --- a malicious environment server ---


def answering(answer: Handler) -> web.Application:
    """A server that makes ids, and answers all else as the test says."""
    app = web.Application()
    app.router.add_post("/{env}/create", create)
    app.router.add_route("*", "/{tail:.*}", answer)
    return app


async def create(_: web.Request) -> web.Response:
    return web.json_response({"id": 0})


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x" * 2**16)


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def bomb(_: web.Request) -> web.Response:
    """A hundred megabytes in a hundred kilobytes."""
    return web.Response(body=gzip.compress(bytes(100 * 2**20)), headers={"Content-Encoding": "gzip"})


async def deep(_: web.Request) -> web.Response:
    return web.Response(text="[" * 10**6)


async def digits(_: web.Request) -> web.Response:
    return web.Response(text="9" * 10**6)


async def injected(_: web.Request) -> web.Response:
    return web.Response(status=404, text="\x1b[2J\x1b]0;owned\x07[/bold] <script>\u202e")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (endless, "the answer is longer than 4 MiB"),
        (bomb, "the answer is longer than 4 MiB"),
        (drip, "no answer within 0.5 s"),
        (deep, "the answer is no JSON"),
        (digits, "the answer is no JSON"),
        (injected, r"HTTP 404: \\x1b\[2J\\x1b\]0;owned\\x07\[/bold\] <script>\\u202e"),
    ],
)
async def test_malicious_answers_are_faults(answer: Handler, why: str) -> None:
    async with (
        running(answering(answer)) as url,
        remote("maze", url, timeout_s=0.5 if answer is drip else 30) as session,
    ):
        with pytest.raises(EnvironmentFailure, match=why):
            await session.reset(Task("maze", "maze_1"))


async def test_redirects_are_not_followed() -> None:
    met: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        met.append(request.path)
        return web.json_response({"observation": "x"})

    async with running(answering(elsewhere)) as other:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{other}/reset"})

        async with running(answering(redirect)) as url, remote("maze", url) as session:
            with pytest.raises(EnvironmentFailure, match="HTTP 307"):
                await session.reset(Task("maze", "maze_1"))
    assert met == []


async def test_control_characters_in_observations_are_stored_as_text(tmp_path: Path) -> None:
    text = "\x1b[31m<img src=x onerror=alert(1)>\x00\ud800" + "x" * 2**20

    async def tell(_: web.Request) -> web.Response:
        return web.json_response({"observation": text})

    async with running(answering(tell)) as url, remote("maze", url) as session:
        observation = (await session.reset(Task("maze", "maze_1"))).observation
    assert observation == text.replace("\ud800", "?")
    told = Trajectory("maze/1", "maze", "1", (Message("user", observation), Message("assistant", "go", True)))
    folder = RunFolder(str(tmp_path))
    folder.write_shard(TRAJECTORIES, [told])
    assert folder.read(TRAJECTORIES) == [told]


async def test_doctor_escapes_what_a_server_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with served(answering(injected)) as url, pytest.raises(SystemExit):
        await asyncio.to_thread(main, ["doctor", f"maze={url}"])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert r"\x1b[2J\x1b]0;owned\x07[/bold]" in shown
    assert not (await probe.probe(url, "maze")).ok


# --- a malicious trajectory file ---

TEXTS = [
    "../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\x",
    "a\x00b",
    "\x1b[2J",
    "[/bold]",
    "x" * 10_000,
    "CON",
    "%2e%2e",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_do_not_become_paths(text: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (file := tmp_path / "data.json").write_text(json.dumps([a_row(text) | {"env": "maze"}]))
    rejected: list[Rejected] = []
    found = read_trajectories(DataConfig(path=str(file)), rejected)
    assert [t.item_id for t in found] == [text]
    folder = RunFolder(str(tmp_path / "run"))
    folder.write_shard(TRAJECTORIES, found)
    assert folder.read(TRAJECTORIES) == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.json", "run"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["trajectories"]


@pytest.mark.parametrize("env", ["../maze", "maze/x", "Maze", "", "m\x1b", 7, ["maze"], {"a": 1}])
def test_environment_names_are_plain(env: Any, tmp_path: Path) -> None:
    (file := tmp_path / "data.json").write_text(json.dumps([a_row() | {"env": env}]))
    rejected: list[Rejected] = []
    assert read_trajectories(DataConfig(path=str(file)), rejected) == []
    assert "is not a lower-case name" in rejected[0].reason
    assert "\x1b" not in str(rejected[0])


NUMBERS = ("1e999", "9" * 4000, "9" * 10_000, "NaN", "-0.1")


@pytest.mark.parametrize(
    "line",
    [f'{{"reward": {number}, "conversations": 1, "item_id": "maze_1"}}' for number in NUMBERS]
    + ["[" * 10**6, '{"a":' * 10**5, "\x00", '{"item_id": "maze_1", "conversations": [' + "[]," * 1000 + "[]]}"],
)
def test_malicious_rows_are_rejected_one_by_one(line: str, tmp_path: Path) -> None:
    good = a_row()
    for given in (line, line.replace('"conversations": 1', f'"conversations": {json.dumps(good["conversations"])}')):
        (file := tmp_path / "data.jsonl").write_text(given + "\n" + json.dumps(good) + "\n")
        rejected: list[Rejected] = []
        assert [t.item_id for t in read_trajectories(DataConfig(path=str(file)), rejected)] == ["maze_1"]
        assert [row.row for row in rejected] == [1]
        write_rejected(RunFolder(str(tmp_path / "run")), rejected)


@pytest.mark.parametrize("key", ["step", "rank"])
def test_gold_fits_its_column(key: str, tmp_path: Path) -> None:
    gold = {"step": 1, "rank": 1, "category": "Plan Creation"} | {key: 2**31}
    (file := tmp_path / "data.json").write_text(json.dumps([a_row() | {"gold": [gold]}]))
    rejected: list[Rejected] = []
    assert read_trajectories(DataConfig(path=str(file)), rejected) == []
    assert f"gold {key} 2147483648" in rejected[0].reason


def test_corrupted_parquet_is_refused_or_read(tmp_path: Path) -> None:
    """Three hundred files with a few bytes changed, mostly in the footer, where sizes and offsets stand."""
    messages = (Message("user", "x"), Message("assistant", "y", True))
    rows = [Trajectory(f"maze/{i}", "maze", str(i), messages) for i in range(9)]
    pq.write_table(TRAJECTORIES.to_table(rows), file := tmp_path / "data.parquet")
    whole, rng, refused = file.read_bytes(), random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(rng.choice([0, len(whole) // 2, len(whole) // 2]), len(whole))] = rng.randrange(256)
        file.write_bytes(content)
        try:
            read_trajectories(DataConfig(path=str(file)), [])
        except UserError as error:
            refused += 1
            assert str(file) in error.what  # noqa: PT017
    assert refused > 30


def test_links_and_archives_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    with zipfile.ZipFile(tmp_path / "data.json.zip", "w") as archive:
        archive.writestr("data.json", "[]")
    with pytest.raises(UserError, match=r"holds no \.json, .* file"):
        read_trajectories(DataConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match="no kind of file that is read"):
        read_trajectories(DataConfig(path=str(tmp_path / "data.json.zip")))


# --- a malicious client of our own server ---


def dial(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


async def ask_raw(url: str, request: bytes) -> bytes:
    """What a server answers to bytes; b"" where it closes."""

    def talk() -> bytes:
        with dial(url) as line:
            line.sendall(request)
            return line.recv(4096)

    return await asyncio.to_thread(talk)


def wired(*names: str, **options: Any) -> web.Application:
    return create_app(list(names), **options)


@pytest.mark.parametrize("begun", [b"", b"POST /create HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_connections_of_unfinished_requests_are_closed(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "REQUEST_SECONDS", 0.1)
    runner = web.AppRunner(wired("maze"))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    closing = asyncio.create_task(request_limits.close_idle_connections(runner))
    try:
        assert await ask_raw(f"http://127.0.0.1:{runner.addresses[0][1]}", begun) == b""  # closed
    finally:
        closing.cancel()
        await runner.cleanup()


async def test_endless_bodies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(wired("maze")) as url:
        head = b"POST /step HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        too_long = head + (b"10000\r\n" + b"x" * 2**16 + b"\r\n") * 20
        assert (await ask_raw(url, too_long)).startswith(b"HTTP/1.1 413 ")
        monkeypatch.setattr(request_limits, "REQUEST_SECONDS", 0.1)
        assert (await ask_raw(url, head + b"1\r\nx\r\n")).startswith(b"HTTP/1.1 408 ")
        lies = b"POST /step HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
        assert (await ask_raw(url, lies)).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /observation?id=1%0d%0aSet-Cookie:%20x=1 HTTP/1.1",
        b"GET /x%0d%0aSet-Cookie:%20x=1 HTTP/1.1",
        b"GET /../../etc/passwd HTTP/1.1",
        b"GET /maze/../../../etc/passwd HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1",
    ],
)
async def test_malformed_request_lines_are_refused(request_line: bytes) -> None:
    async with running(wired("maze")) as url:
        answer = await ask_raw(url, request_line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.split(b" ")[1][:1] == b"4"
    assert b"set-cookie" not in answer.split(b"\r\n\r\n")[0].lower()
    assert b"root:" not in answer


async def test_ten_thousand_sessions_reach_the_limit() -> None:
    async with running(wired("maze")) as url, aiohttp.ClientSession(url) as http:

        async def create() -> Any:
            async with http.post("/create") as response:
                return await response.json()

        answers = [one for _ in range(100) for one in await asyncio.gather(*(create() for _ in range(100)))]
    assert sum("id" in one for one in answers) == 4096
    assert {one["error"] for one in answers if "error" in one} == {"The server is full, it holds 4096 environments."}


IDS = ["-1", "1e3", "null", "true", '"0"', "9" * 400, "[0]", '{"a": 1}', '"../x"', "0.5"]


@pytest.mark.parametrize("number", IDS)
async def test_only_issued_ids_are_played(number: str) -> None:
    async with running(wired("maze")) as url, aiohttp.ClientSession(url) as http:
        for path, rest in (("/step", ', "action": "move up"'), ("/reset", ', "game": 1')):
            async with http.post(path, data=f'{{"id": {number}{rest}}}') as response:
                assert response.status in (200, 422)
                assert {"error", "detail"} & (await response.json()).keys()


ACTIONS = [
    "x" * (2**20 - 100),
    "(" * 10_000,
    "take " * 10_000,
    "search[" + "a " * 10_000 + "]",
    "click[../../etc/passwd]",
    "__import__('os').system('id')",
    "{{ 7*7 }} ${7*7} %s %n",
    "\x1b[2J\x00\x07",
    "\ud800",
    "9" * 10_000,
    "",
]


@pytest.mark.parametrize("name", BUILT_IN)
async def test_malicious_actions_get_an_answer_from_every_environment(name: str) -> None:
    try:
        app = wired(name)
    except UserError as error:
        pytest.skip(str(error))
    async with running(app) as url, remote(name, url, timeout_s=60) as session:
        for action in ACTIONS:
            await session.reset(Task(name, f"{name}_1"))
            result = await session.step(f"Thought: so\nAction: {action}")
            assert result.reward <= 0 or not result.done
            assert len(result.observation) < 100_000
