"""A training run that is killed or stopped, in whole or in part, ends as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from atlas_ray.errors import Stopped
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.stage import train
from tests.support.training import (
    SELECTIONS_HERE,
    TRAJECTORIES_HERE,
    a_long_run,
    kept_lines,
    kill_all,
    undisturbed,
    written_curve,
    written_lines,
)

pytestmark = pytest.mark.slow
DRIVER = """
import sys
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.stage import train
from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE

if __name__ == "__main__":
    train(TrainConfig.model_validate_json(sys.argv[1]), TRAJECTORIES_HERE, SELECTIONS_HERE)
"""


def start_driver(config: TrainConfig, address: str | None = None) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(Path.cwd())}
    if address:
        environment["RAY_ADDRESS"] = address
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, config.model_dump_json()], env=environment, start_new_session=True
    )


def wait_for_steps(process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    deadline = time.monotonic() + 240
    while len(written_lines(folder)) < count:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)


def test_a_killed_worker_changes_nothing(ray_cluster: None, tmp_path: Path) -> None:
    config = a_long_run(tmp_path)
    killed: list[int] = []

    def kill(metrics: dict[str, Any]) -> None:
        if metrics["step"] >= 12 and not killed:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    killed.append(metrics["step"])

    train(config, TRAJECTORIES_HERE, SELECTIONS_HERE, kill)
    assert killed
    assert killed[0] < total_steps(7, 4, 40)
    np.testing.assert_allclose(written_curve(tmp_path), undisturbed(config), rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["driver", "cluster"])
def test_killed_driver_or_cluster_goes_on_from_its_last_checkpoint(
    ray_cluster: None, tmp_path: Path, what: str
) -> None:
    import ray

    config = a_long_run(tmp_path)
    # the driver alone: of a cluster that lives on
    address = ray.get_runtime_context().gcs_address if what == "driver" else None
    first = start_driver(config, address)
    wait_for_steps(first, tmp_path, 12)
    if what == "driver":
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    else:
        kill_all(first)
    assert not (tmp_path / "run" / "finished.json").exists()
    kept = kept_lines(tmp_path)
    assert len(kept) >= 8
    assert start_driver(config, address).wait(timeout=240) == 0
    assert written_lines(tmp_path)[: len(kept)] == kept  # not done again: they bear the first run's times
    np.testing.assert_allclose(written_curve(tmp_path), undisturbed(config), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sharing", [1, 2], ids=["", "that share sequences"])
def test_one_worker_resumes_a_run_of_two(tmp_path: Path, sharing: int) -> None:
    config = a_long_run(tmp_path, num_workers=2, context_parallel=sharing)
    first = start_driver(config)
    wait_for_steps(first, tmp_path, 12)
    kill_all(first)
    kept = kept_lines(tmp_path)
    alone = config.model_copy(update={"num_workers": 1, "context_parallel": 1})
    assert start_driver(alone).wait(timeout=240) == 0
    assert written_lines(tmp_path)[: len(kept)] == kept
    np.testing.assert_allclose(written_curve(tmp_path), undisturbed(alone), rtol=1e-4)


def test_a_sigterm_makes_a_checkpoint_and_the_same_command_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    # 700 steps of one epoch: but for the signal there is no checkpoint before the end
    config = a_long_run(tmp_path, epochs=1, global_batch_size=1, checkpoint_steps=10_000)
    many = [*TRAJECTORIES_HERE] * 100
    many = [type(t)(f"{t.id}@{n}", t.env, t.item_id, t.messages) for n, t in enumerate(many)]
    seen: list[int] = []

    def terminate(metrics: dict[str, Any]) -> None:
        seen.append(metrics["step"])
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"training stopped at step \d+ of 700") as stopped:
        train(config, many, None, terminate)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert not RunFolder(config.run).has("stop")
    kept = kept_lines(tmp_path)
    assert 5 <= len(kept) < 700
    assert f"step {len(kept)} of" in str(stopped.value)
    train(config, many, None)
    assert len(written_lines(tmp_path)) == 700
    assert written_lines(tmp_path)[: len(kept)] == kept


def test_torchrun_trains_stops_at_a_sigterm_and_goes_on(tmp_path: Path) -> None:
    config = a_long_run(tmp_path, epochs=60, checkpoint_steps=7)
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, TRAJECTORIES_HERE)
    data = {"path": str(tmp_path / "data" / "trajectories")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json") | {"data": data}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "atlas_ray.training.torchrun", "--config", str(tmp_path / "train.yaml")]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    first = subprocess.Popen(command, env=environment)
    wait_for_steps(first, tmp_path, 5)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) != 0
    [state] = (tmp_path / "run").glob("checkpoints/*/*")
    assert int(state.name) < 120
    kept = kept_lines(tmp_path)
    assert len(kept) == int(state.name)
    subprocess.run(command, env=environment, check=True, timeout=240)
    assert written_lines(tmp_path)[: len(kept)] == kept
    assert len(written_lines(tmp_path)) == 120
    assert RunFolder(config.run).finished is not None
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()
