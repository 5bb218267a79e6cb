"""The LLM selector against an endpoint that refuses, breaks, babbles and hangs; and killed halfway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm.journal import REPLIES
from atlas_ray.selection.pipeline import select_steps
from bench.endpoint import Endpoint, endpoint
from bench.selection import config_of, write

_FULL = pytest.mark.slow
_FAULTS = {"refused": 0.2, "broken": 0.05, "garbage": 0.02, "hanging": 0.01}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("n", "at_once", "seconds", "patience"), [(120, 40, 0.02, 0.5), pytest.param(2000, 200, 1.0, 5.0, marks=_FULL)]
)
def test_every_trajectory_ends_selected_or_failed_and_none_twice(
    tmp_path: Path, n: int, at_once: int, seconds: float, patience: float
) -> None:
    with endpoint(seconds=seconds, retry_after=seconds, **_FAULTS) as server:
        limits = {"timeout_s": patience, "max_retries": 8}
        config = config_of(tmp_path / "run", write(tmp_path / "data", n), server.base_url, at_once, endpoint=limits)
        folder = select_steps(config)
        answered = Counter(server.answered())
    rows = [id_ for table in folder.tables(SELECTIONS) for id_ in table["id"].to_pylist()]
    assert sorted(rows) == sorted(f"house/{i}" for i in range(n))  # rows on disk: none is there twice
    found = folder.read(SELECTIONS)
    failed = [s.error for s in found if s.error]
    assert all(s.chosen == (2,) for s in found if not s.error)
    assert all(e.startswith(("unusable answer: ", "no answer: ")) for e in failed)
    assert len(failed) < 0.02 * n + 3  # two pieces of garbage in a row, or nine attempts in vain
    # Who was answered in sense was not asked again.
    assert sum(answered.values()) < n * 1.08 + 5


@pytest.mark.parametrize(("n", "at_once", "seconds"), [(60, 8, 0.1), pytest.param(2000, 200, 1.0, marks=_FULL)])
def test_killed_at_half_no_finished_trajectory_is_asked_for_again(
    tmp_path: Path, n: int, at_once: int, seconds: float
) -> None:
    with endpoint(seconds=seconds) as server:
        config = config_of(tmp_path / "run", write(tmp_path / "data", n), server.base_url, at_once)
        file = tmp_path / "select.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        command = [sys.executable, "-c", "from atlas_ray.cli.main import main; main()", "select", "--config", str(file)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _until_answered(server, n // 2, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        held = {reply.trajectory_id.removeprefix("house/") for reply in RunFolder(config.run).read(REPLIES)}
        before = server.answered()
        assert n // 2 - 2 * at_once <= len(held) < n
        assert subprocess.run(command, check=True, capture_output=True).returncode == 0
        after = server.answered()
    assert all(after[number] == before[number] == 1 for number in held)
    # Only replies that were under way or on their way to disk at the kill are paid for twice.
    assert sum(after.values()) <= n + 2 * at_once
    found = RunFolder(config.run).read(SELECTIONS)
    assert len(found) == n
    assert not any(s.error for s in found)


def _until_answered(server: Endpoint, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while sum(server.answered().values()) < count:
        assert process.poll() is None, "the selection ended before it was killed"
        assert time.monotonic() < deadline, "the selection asks nothing"
        time.sleep(0.02)  # between two looks
