"""What cannot work ends soon, with one clear message."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from atlas_ray.cluster.submit import last_error, submit
from atlas_ray.config import FrozenConfig
from atlas_ray.errors import AtlasError, StorageTimeout, UserError
from atlas_ray.runs import store
from atlas_ray.runs.folder import RunFolder


class Config(FrozenConfig):
    run: str = "runs/x"


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def guarded() -> Iterator[str]:
    """A dashboard that lets in who sends `right`; it answers as Ray's does."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization")
            self.send_response(200 if sent == "Bearer right" else 403 if sent else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Guard)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_bucket_that_does_not_answer(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    run = RunFolder(f"s3://bucket/x?endpoint_override=127.0.0.1:{closed_port}&scheme=http")
    with pytest.raises(AtlasError, match=r"cannot reach s3://bucket/x.*HeadObject") as failed:
        run.begin(Config(), stage="select")
    assert "check space, permissions and the address" in str(failed.value)
    assert "a-secret" not in str(failed.value)


def test_a_bucket_that_is_silent_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CONTACT_SECONDS", 0.05)
    over = Event()
    monkeypatch.setattr(RunFolder, "has", lambda *_: over.wait())
    with pytest.raises(StorageTimeout, match=r"cannot reach s3://bucket/x\?region=x: no answer within 0 s"):
        RunFolder("s3://bucket/x?region=x").begin(Config(), stage="select")
    over.set()


@pytest.mark.parametrize("uri", ["s4://bucket/x", "http://host/x", "file://relative/x"])
def test_a_bad_uri(uri: str) -> None:
    with pytest.raises(UserError, match="give a path or an s3:// or gs:// URI"):
        RunFolder(uri)


def test_a_folder_where_a_file_lies(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another run folder"):
        RunFolder(str(tmp_path / "file" / "run")).begin(Config(), stage="select")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from atlas_ray.runs.folder import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
RunFolder({str(tmp_path)!r}).write_bytes("replies/1.parquet", b"x" * 5000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"AtlasError: cannot write to {tmp_path}: " in done.stderr
    assert "check space" in done.stderr
    assert list((tmp_path / "replies").iterdir()) == []


def test_a_relative_folder_is_refused_in_a_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    RunFolder("runs/here").begin(Config(), stage="select")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"'runs/x' is relative.*\n.*s3://"):
        RunFolder("runs/x").begin(Config(), stage="select")
    RunFolder(str(tmp_path / "absolute")).begin(Config(), stage="select")


@pytest.mark.parametrize(("token", "says"), [(None, "none was sent"), ("wrong", "the one that was sent is wrong")])
def test_no_token_and_a_wrong_one(token: str | None, says: str, guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._raylet import AuthenticationTokenLoader

    monkeypatch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    AuthenticationTokenLoader.instance().reset_cache()
    with pytest.raises(UserError, match=f"asks for a token: {says}\n.*RAY_AUTH_MODE=token"):
        submit("train", [], guarded, wait=False)
    monkeypatch.undo()
    AuthenticationTokenLoader.instance().reset_cache()


def test_no_cluster_there(closed_port: int) -> None:
    with pytest.raises(UserError, match=f"no cluster answers at http://127.0.0.1:{closed_port}"):
        submit("train", [], f"http://127.0.0.1:{closed_port}", wait=False)


def test_the_last_error_of_a_job_is_the_commands_own() -> None:
    told = "failed with exit code 2, last available logs:\natlas: unknown key `x`\n  mend it\n"
    assert last_error(told) == "unknown key `x`"
    assert last_error("worker lost\n") == "worker lost"
    assert last_error("") == "no message"
