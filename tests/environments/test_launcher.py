"""`atlas environments start`: real servers on loopback, awaited, started again, and ended with all they started."""

from __future__ import annotations

import json
import os
import runpy
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import yaml

from atlas_ray.environments.agentgym.launcher import LaunchConfig, launch, servers_of_agentgym
from atlas_ray.environments.http.probe import probe
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.recipes.settings import load_recipe

ROOT = Path(__file__).parents[2]
_SECONDS = 60.0
Found = TypeVar("Found")

# A server of somebody else's in a Python of its own; it starts a child in a session of its own, as a daemon would, and
# says who both are and which variables it was given.
THEIRS = """#!{python}
import http.server, json, os, subprocess, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
child = subprocess.Popen(["sleep", "600"], start_new_session=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            os._exit(3)
        told = {{"pid": os.getpid(), "child": child.pid, "variables": dict(os.environ), "arguments": sys.argv[1:]}}
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


def until(found: Callable[[], Found | None]) -> Found:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        if (value := found()) is not None:
            return value
        time.sleep(0.05)
    return pytest.fail("it does not come about")


def ask(url: str, path: str = "/") -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(url + path, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder like a venv's in which AgentGym's `textcraft` is installed."""
    program = tmp_path / "venv" / "bin" / "textcraft"
    program.parent.mkdir(parents=True)
    program.write_text(THEIRS.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "venv"


class Launched:
    """The command under way, in a folder of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any], *arguments: str) -> None:
        self.folder, self.log = folder, folder / "said"
        (folder / "launch.yaml").write_text(yaml.safe_dump(settings))
        variables = {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "hush", "TMDB_API_KEY": "films", "COLUMNS": "500"}
        command = [sys.executable, "-c", "from atlas_ray.cli.main import main; main()", "environments", "start"]
        command += ["--config", "launch.yaml", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=os.environ | variables, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def servers(self) -> dict[str, list[str]]:
        """The addresses, once they are written."""

        def read() -> dict[str, list[str]] | None:
            assert self.process.poll() is None, self.said
            if "answer; addresses:" not in self.said:
                return None
            return yaml.safe_load((self.folder / "servers.yaml").read_text())["environments"]["servers"]

        return until(read)

    def family(self) -> list[int]:
        return [self.process.pid, *(p.pid for p in psutil.Process(self.process.pid).children(recursive=True))]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    made: list[Launched] = []

    def start(settings: dict[str, Any], *arguments: str) -> Launched:
        made.append(Launched(tmp_path, settings, *arguments))
        return made[-1]

    yield start
    for each in made:
        each.process.kill()
        each.process.wait()


async def test_servers_restart_at_their_address_and_end_with_their_children(
    started: Callable[..., Launched], theirs: Path, tmp_path: Path
) -> None:
    settings = {
        "servers": {
            "textcraft": {"prefix": str(theirs), "variables": ["TMDB_API_KEY"]},
            "lmrlgym": {"built_in": True, "processes": 2},
        }
    }
    launched = started(settings)
    servers = launched.servers()
    assert {env: len(urls) for env, urls in servers.items()} == {"textcraft": 1, "maze": 2, "wordle": 2}
    assert servers["maze"] == servers["wordle"]  # AgentGym serves both in one process, below their names
    for url in servers["maze"]:
        assert url.startswith("http://127.0.0.1:")
        assert (await probe(url, "maze")).ok  # a real episode
    [url] = servers["textcraft"]
    first = ask(url)
    assert first is not None
    # a tool server evaluates what models write: it is given no key but its own
    assert first["variables"].get("TMDB_API_KEY") == "films"
    assert "OPENAI_API_KEY" not in first["variables"]
    assert first["variables"].get("PYTHONPATH") == str(ROOT)
    assert first["variables"]["PATH"].startswith(f"{theirs}/bin:")

    ask(url, "/die")

    def again() -> dict[str, Any] | None:
        told = ask(url)
        return told if told is not None and told["pid"] != first["pid"] else None

    second = until(again)
    assert not alive(first["child"])  # nothing of the one that died is left
    until(lambda: True if "textcraft-0 answers again" in launched.said else None)
    assert "textcraft-0 ended with code 3 and is started again" in launched.said

    family = launched.family()
    assert {second["pid"], second["child"]} <= set(family)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.process.wait(_SECONDS) == 0
    assert not [pid for pid in family if alive(pid)]
    assert "ending 3 server(s)" in launched.said
    for name in ("textcraft-0", "lmrlgym-0", "lmrlgym-1"):
        assert (tmp_path / "server-logs" / f"{name}.log").exists()

    launched.log.unlink()
    later = started(settings, "textcraft")  # this one alone, and where it was: a run that goes on finds it
    assert later.servers() == {"textcraft": [url]}


def test_servers_end_when_the_launcher_is_killed(started: Callable[..., Launched], theirs: Path) -> None:
    launched = started({"servers": {"textcraft": {"prefix": str(theirs)}}})
    [url] = launched.servers()["textcraft"]
    told = until(lambda: ask(url))
    family = launched.family()
    assert {told["pid"], told["child"]} <= set(family)
    launched.process.kill()
    launched.process.wait()
    until(lambda: None if [pid for pid in family if alive(pid)] else True)


@pytest.mark.parametrize(
    ("server", "seconds", "says"),
    [
        (
            {"command": ["no-such-program"]},
            60,
            r"textcraft-0 ended with code 127 before .*: cannot start no-such-program",
        ),
        (
            {"command": ["sh", "-c", "echo out of memory; exit 9"]},
            60,
            r"ended with code 9 before it answered: out of memory",
        ),
        ({"command": ["sleep", "600"]}, 1, r"textcraft-0 did not answer within 1 s: it said nothing"),
    ],
)
def test_a_server_that_does_not_start_ends_the_others_and_is_named(
    tmp_path: Path, theirs: Path, server: dict[str, Any], seconds: float, says: str
) -> None:
    config = LaunchConfig.model_validate(
        {
            "servers": {
                "textcraft": server,
                "babyai": {"command": [str(theirs / "bin/textcraft"), "--host", "{host}", "--port", "{port}"]},
            },
            "start_s": seconds,
            "out": str(tmp_path / "servers.yaml"),
            "logs": str(tmp_path / "logs"),
        }
    )
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    with pytest.raises(AtlasError, match=says):
        launch(config, threading.Event())
    assert not {p.pid for p in psutil.Process().children(recursive=True)} - before
    assert not (tmp_path / "servers.yaml").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"servers": {"webshopp": {}}}, "AgentGym has no server called 'webshopp'"),
        ({"servers": {"mine": {"command": ["x"], "envs": ["mazes"]}}}, "no environment is called 'mazes'"),
        ({"servers": {"textcraft": {"prefix": "/nowhere"}}}, "/nowhere/bin/textcraft does not exist"),
        ({"servers": {"maze": {"built_in": True}}, "host": "0.0.0.0"}, "no address to be found at"),
    ],
)
def test_what_cannot_be_started_is_refused_first(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        launch(LaunchConfig.model_validate(settings), threading.Event())


def test_a_recipe_includes_the_written_addresses(tmp_path: Path) -> None:
    written = {"environments": {"servers": {"maze": ["http://127.0.0.1:4000"]}}}
    (tmp_path / "servers.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "mine.yaml").write_text(
        f"include: [{ROOT}/jobs/paper.yaml, servers.yaml]\nname: mine\nenvironments: {{timeout_s: 30}}\n"
    )
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.environments.servers == written["environments"]["servers"]
    assert recipe.environments.timeout_s == 30


def test_kubernetes_manifests_have_the_same_servers() -> None:
    manifests = runpy.run_path(str(ROOT / "cluster" / "kuberay" / "environments.py"))
    assert set(servers_of_agentgym()) == set(manifests["SERVERS"])
