"""Run folders that cannot be opened, reached or written: each ends soon, with one clear message."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event

import pytest

from atlas_ray.config import FrozenConfig
from atlas_ray.errors import AtlasError, StorageTimeout, UserError
from atlas_ray.runs import store
from atlas_ray.runs.folder import RunFolder


class Config(FrozenConfig):
    run: str = "runs/x"


def test_a_bucket_that_refuses_connections_is_reported_without_its_key(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_a_uri_of_no_known_store_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="give a path or an s3:// or gs:// URI"):
        RunFolder(uri)


def test_a_run_folder_below_a_file_is_refused(tmp_path: Path) -> None:
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
