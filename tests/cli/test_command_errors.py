"""What cannot work, as people type it: each command ends within a minute, with one clear message and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import pytest

from tests.support.nodes import NODES
from tests.support.records import a_row

ROOT = Path(__file__).parents[2]
SECONDS = 60  # the contract's bound, not a measure
ATLAS = [sys.executable, "-c", "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"]
BUCKET = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_EC2_METADATA_DISABLED": "true"}
Done = "subprocess.CompletedProcess[str]"

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and network namespaces want root")


def run(command: Sequence[str], cwd: Path | None = None, **variables: str) -> Done:
    """The command's end; it has a minute."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "ATLAS_"))}
    environment = inherited | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | variables
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=SECONDS, cwd=cwd, env=environment
    )


def atlas(*arguments: str, cwd: Path | None = None, **variables: str) -> Done:
    return run([*ATLAS, *arguments], cwd, **variables)


def message(done: Done, code: int) -> str:
    """What a failed command says, of which there is one: its last lines."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    before, _, said = done.stderr.rpartition("atlas: ")
    assert said
    assert "atlas: " not in before
    return " ".join(said.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "maze.json"
    file.write_text(json.dumps([a_row(f"maze_{i}") for i in range(400)]))
    return str(file)


@contextmanager
def bucket(status: int | None) -> Iterator[str]:
    """The URI of a run folder at a store that refuses everything as S3 does, or never answers."""
    over = Event()

    class Store(BaseHTTPRequestHandler):
        def answer(self) -> None:
            if status is None:
                over.wait()
                return
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 (the base class's names)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"s3://bucket/run?endpoint_override=127.0.0.1:{server.server_port}&scheme=http"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def disk(size: str) -> Iterator[Path]:
    """A disk that is soon full."""
    with TemporaryDirectory() as path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
        try:
            yield Path(path)
        finally:
            subprocess.run(["umount", "-l", path], check=True)


# --- a bad URI ---


BAD = [
    ["collect", "--set", "envs=[maze]", "--run", "s4://bucket/run"],
    ["select", "--set", "selector.name=all", "--data", "s4://bucket/x"],
    ["evaluate", "--set", "models.a=x", "--set", "tasks.maze=1", "--run", "s4://bucket/run"],
    ["train", "--data", "x", "--run", "http://host/run"],
    ["status", "s4://bucket/run"],
]


@pytest.mark.parametrize("arguments", [BAD[0], *(pytest.param(bad, marks=pytest.mark.slow) for bad in BAD[1:])])
def test_a_uri_of_no_known_store_is_refused(arguments: list[str], tmp_path: Path) -> None:
    said = message(atlas(*arguments, cwd=tmp_path), 2)
    assert "Unrecognized filesystem type in URI" in said
    assert "give a path or an s3:// or gs:// URI" in said


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "nonsense", "os://host"])
def test_an_address_that_is_no_dashboards_is_refused(address: str) -> None:
    """Ray would look for a node there for most of a minute, or import a module of that name."""
    said = message(atlas("submit", "train", "--address", address), 2)
    assert f"{address!r} is no address of a dashboard" in said


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_reported(closed_port: int, tmp_path: Path) -> None:
    asked = ["collect", "--set", "envs=[maze]", "--run", str(tmp_path / "run")]
    said = message(atlas(*asked, RAY_ADDRESS=f"127.0.0.1:{closed_port}"), 1)
    assert f"cannot reach Ray at 127.0.0.1:{closed_port}: [Errno 111] Connection refused" in said
    assert "check RAY_ADDRESS" in said


# --- a port in use ---


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = message(atlas("serve", "maze", "--port", str(port)), 2)
    assert f"cannot serve at 127.0.0.1:{port}: " in said
    assert "choose another port, or 0" in said


# --- an unwritable bucket ---


def test_a_bucket_that_denies_access_is_reported(data: str) -> None:
    with bucket(403) as uri:
        job = [sys.executable, str(ROOT / "jobs" / "select_steps.py"), "--data", data, "--set", "selector.name=all"]
        done = run([*job, "--run", uri], **BUCKET)
    said = message(done, 2)
    assert f"cannot reach {uri}: " in said
    assert "ACCESS_DENIED" in said
    assert "check what this machine may do there: AWS_ACCESS_KEY_ID" in said
    assert "a-secret" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 503], ids=["silent", "busy"])
def test_a_bucket_that_does_not_answer_ends_the_command(status: int | None, data: str) -> None:
    """The store's own client would try for 105 s."""
    with bucket(status) as uri:
        said = message(atlas("train", "--data", data, "--run", uri, **BUCKET), 1)
    assert f"cannot reach {uri}: " in said


# --- a full disk ---


@root_only
def test_a_disk_that_fills_up_ends_the_stage_without_half_a_shard(data: str) -> None:
    with disk("16k") as path:
        folder = path / "run"
        done = atlas("select", "--data", data, "--set", "selector.name=random", "--run", str(folder))
        said = message(done, 1)
        assert f"cannot write to {folder}: " in said
        assert "No space left on device" in said
        assert "check space" in said
        assert (folder / "manifest.json").exists()
        assert not list(folder.rglob("*.partial"))  # nor half of a shard


@root_only
@pytest.mark.slow
def test_a_disk_too_small_for_the_model_is_reported(data: str, tiny_models: tuple[str, str]) -> None:
    with disk("600k") as path:
        training = ["train", "--data", data, "--run", str(path / "run"), "--set", f"model={tiny_models[0]}"]
        short = ["--set", "epochs=1", "--set", "dtype=float32", "--set", "max_length=1024"]
        assert "No space left on device" in message(atlas(*training, *short), 1)


# --- GPUs that are not there ---

EVALUATE = ["evaluate", "--set", "tasks.maze=1", "--set", "engine.tensor_parallel=4", "--set", "models.a={}"]
VALUE = ["select", "--set", "selector.name=value", "--set", "selector.engine.tensor_parallel=4"]
LLM = ["select", "--set", "selector.name=llm", "--set", "selector.engine.tensor_parallel=4"]
DATA_AND_MODEL = ["--data", "DATA", "--set", "selector.model={}"]
TRAIN = ["train", "--data", "DATA", "--set", "use_gpu=true", "--set", "model={}"]
ENGINE, WORKER = "1 engine replicas of 1 CPU and 4 GPU each", "1 training workers of 1 CPU and 1 GPU each"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "asked"),
    [(EVALUATE, ENGINE), ([*VALUE, *DATA_AND_MODEL], ENGINE), ([*LLM, *DATA_AND_MODEL], ENGINE), (TRAIN, WORKER)],
    ids=["evaluate", "value", "llm", "train"],
)
def test_more_gpus_than_the_cluster_has_are_reported(
    arguments: list[str], asked: str, data: str, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    given = [part.replace("{}", tiny_models[0]).replace("DATA", data) for part in arguments]
    said = message(atlas(*given, "--run", str(tmp_path / "run")), 2)
    assert f"cannot place {asked}" in said
    assert "the cluster has 1 node of" in said
    assert "lower " in said


# --- tokens, at a real head ---

HEAD = "http://127.0.0.1:8265"  # in a network namespace of its own
NONE = ["env", "-u", "RAY_AUTH_MODE", "-u", "RAY_AUTH_TOKEN_PATH"]
UNSET = ["env", "-u", "RAY_AUTH_TOKEN_PATH"]
WRONG = [*UNSET, "RAY_AUTH_TOKEN=" + "0123456789abcdef" * 4]


@pytest.fixture(scope="module")
def head() -> Iterator[Callable[..., Done]]:
    """Runs commands beside a Ray head that asks for a token, which they have unless they put it aside."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces want root and iproute2")
    with TemporaryDirectory() as short:
        (binaries := Path(short) / "bin").mkdir()
        (binaries / "atlas").write_text(f"#!{sys.executable}\nfrom atlas_ray.cli.main import main\nmain()\n")
        (binaries / "atlas").chmod(0o755)
        path = f"{binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        here = {"NODES_DIR": f"{short}/c", "PATH": path, "HOME": short}

        def beside(*command: str) -> Done:
            return run([str(NODES), *command], ROOT, **here)

        try:
            started = beside("up", "1")
            assert started.returncode == 0, started.stderr
            yield lambda *command: beside("exec", *command)
        finally:
            beside("down")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without", "why"),
    [(NONE, "none was sent"), (UNSET, "none was sent"), (WRONG, "the one that was sent is wrong")],
    ids=["no mode", "no token", "wrong"],
)
def test_a_ray_head_refuses_commands_without_its_token(
    without: list[str], why: str, head: Callable[..., Done], tmp_path: Path
) -> None:
    stage = ["--run", str(tmp_path / "run"), "--set", "envs=[maze]", "--set", "tasks.maze=1"]
    said = message(head(*without, "atlas", "submit", "collect", "--address", HEAD, *stage), 2)
    assert f"the cluster at {HEAD} asks for a token: {why}" in said
    assert "set RAY_AUTH_MODE=token" in said

    address = head("sh", "-c", "cat $NODES_DIR/ray/ray_current_cluster").stdout
    said = message(head(*without, "env", f"RAY_ADDRESS={address}", "atlas", "collect", *stage), 2)
    assert f"the cluster at {address} asks for a token: {why}" in said

    # Ray's own command says so too, below a traceback of its own.
    done = head(*without, "ray", "job", "submit", "--address", HEAD, "--working-dir", "jobs", "--", "true")
    assert done.returncode == 1
    assert "uthentication" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_status_of_a_job_says_what_cannot_be_placed(head: Callable[..., Done], tmp_path: Path) -> None:
    """By Ray's command and by ours; the address of a bucket that is wrong likewise."""
    ray = ["ray", "job", "submit", "--address", HEAD, "--working-dir", ".", "--", "python"]
    asked = [*(part.format("no-such-model") for part in EVALUATE[1:]), "--run", str(tmp_path / "run")]
    done = head(*ray, "jobs/evaluate_agent.py", *asked)
    assert done.returncode == 1
    assert "Job entrypoint command failed with exit code 2" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "cannot place 1 engine replicas of 1 CPU and 4 GPU each: the cluster has 1 node of 2 CPU" in done.stdout

    done = head("atlas", "submit", "evaluate", "--address", HEAD, *asked[:-1], "s4://bucket/run")
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-2]
    assert "ended as FAILED with exit code 2: cannot open 's4://bucket/run" in said
