"""`ray job stop` in the midst of training: a checkpoint, and the same job submitted again goes on from it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from atlas_ray.cluster.submit import submit
from atlas_ray.errors import AtlasError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from tests.support.training import TRAJECTORIES_HERE, a_long_run, kept_lines, kill_all, written_lines

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Address of a new cluster's dashboard, which jobs are sent to; it may not answer yet.

    The cluster has a folder of its own: Ray's jobs take any other that runs on this machine for theirs otherwise.
    """
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, agent = one.getsockname()[1], other.getsockname()[1]
    binaries = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "disabled", "PATH": f"{binaries}:{os.environ['PATH']}"}
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [
            str(binaries / "ray"),
            "start",
            "--head",
            "--block",
            "--port=0",
            "--num-cpus=2",
            f"--temp-dir={folder}",
        ]
        # The agent that takes jobs has a fixed port otherwise, and does without where another cluster holds it.
        command += [f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}"]
        head = start_head(command, environment, tmp_path / "head.log")
        yield f"http://127.0.0.1:{port}"
        kill_all(head)


def start_head(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Ray gives a node 30 s to start, too little on a busy machine: three attempts."""
    for _ in range(3):
        with log.open("w") as out:
            head = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        while head.poll() is None:
            if "Ray runtime started" in log.read_text():
                return head
            time.sleep(0.2)
    return pytest.fail(log.read_text()[-3000:])


def wait_until(reached: Callable[[], bool], failed: Callable[[], str | None], log: Path | None = None) -> None:
    deadline = time.monotonic() + 200
    while not reached():
        assert time.monotonic() < deadline, log and log.read_text()[-3000:]
        if why := failed():
            pytest.fail(why)
        time.sleep(0.2)


def test_a_stopped_job_has_a_checkpoint_and_the_same_job_goes_on(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.job_submission import JobStatus, JobSubmissionClient

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = a_long_run(tmp_path, epochs=4, global_batch_size=1, checkpoint_steps=10_000)
    many = [type(t)(f"{t.id}@{n}", t.env, t.item_id, t.messages) for n in range(25) for t in TRAJECTORIES_HERE]
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, many)
    data = {"path": str(tmp_path / "data" / "trajectories")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json") | {"data": data}))
    arguments, submitted = ["--config", str(tmp_path / "train.yaml")], list[str]()

    def accepted() -> bool:
        try:  # it has only just started
            submitted.append(submit("train", arguments, cluster, wait=False))
        except AtlasError as error:
            (tmp_path / "head.log").open("a").write(f"{error}\n")
        return bool(submitted)

    wait_until(accepted, lambda: None, tmp_path / "head.log")
    [job], client = submitted, JobSubmissionClient(cluster)

    def over(job: str) -> bool:
        return client.get_job_status(job).is_terminal()

    wait_until(
        lambda: len(written_lines(tmp_path)) >= 5, lambda: client.get_job_logs(job)[-3000:] if over(job) else None
    )
    assert client.stop_job(job)
    wait_until(lambda: over(job), lambda: None)
    assert client.get_job_status(job) == JobStatus.STOPPED
    assert RunFolder(config.run).finished is None
    kept = kept_lines(tmp_path)
    assert 5 <= len(kept) < 700
    assert f"training stopped at step {len(kept)} of 700 (SIGTERM)" in client.get_job_logs(job)

    submit("train", arguments, cluster, wait=True)
    assert RunFolder(config.run).finished is not None
    assert len(written_lines(tmp_path)) == 700
    assert written_lines(tmp_path)[: len(kept)] == kept
