"""A process of a stage's own Ray is killed: the stage ends within a minute or goes on; the same command completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.training.metrics import read_checkpoints, read_metrics
from tests.support.rows import write_agenttraj
from tests.support.training import a_trajectory, write_base
from tests.support.waiting import eventually

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SLOW = "tests.support.slow_stages"
SETTINGS = {
    "select": ["data.path=data", "selector.name=python", f"selector.call={SLOW}:first_step"],
    "train": [
        *("data.path=data", "model=base", "dtype=float32", "use_gpu=false", "max_length=500"),
        *("epochs=40", "global_batch_size=4", "checkpoint_steps=20"),
    ],
    "evaluate": ["models.mine=expert", "tasks.maze=60", "engine.episodes_in_flight=4"],
}
TITLES = {"raylet": "raylet/raylet", "gcs_server": "gcs/gcs_server", "dashboard": "dashboard/dashboard.py"}


def start(stage: str, folder: Path) -> subprocess.Popen[bytes]:
    """The stage as a user starts it; what it prints is added to `log`."""
    settings = [word for setting in SETTINGS[stage] for word in ("--set", setting)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", SLOW, stage, "--run", "run", *settings],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def is_called(process: psutil.Process, title: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return title in " ".join(process.cmdline())
    return False


def units(folder: Path) -> list[str]:
    """What the log says to be finished, in order."""
    lines = (folder / "log").read_text(errors="replace").splitlines()
    return [json.loads(line)["unit"] for line in lines if line.startswith('{"time": "')]


def recorded(stage: str, folder: Path) -> list[str]:
    """What the run folder holds, each as often as it was written."""
    run = RunFolder(str(folder / "run"))
    if stage == "train":
        return [f"checkpoint {saved['step']}" for saved in read_checkpoints(run)]
    run, table = (run, SELECTIONS) if stage == "select" else (run.child("mine"), EPISODES)
    return [name for rows in run.tables(table) for name in rows["id"].to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    (tmp_path / "data").mkdir()
    for number in range(60):
        write_agenttraj(tmp_path / "data" / f"{number:02}.json", [a_trajectory(number, 2 + number % 5)])
    return tmp_path


@pytest.mark.parametrize("stage", [*SETTINGS])
@pytest.mark.parametrize("lost", ["raylet", "gcs_server", "dashboard", "driver"])
def test_a_stage_whose_ray_is_killed_ends_soon_and_completes_when_run_again(
    stage: str, lost: str, folder: Path
) -> None:
    driver = start(stage, folder)
    own = psutil.Process(driver.pid)
    try:
        assert eventually(lambda: len(units(folder)) >= 3 or driver.poll() is not None, 180)
        assert driver.poll() is None, (folder / "log").read_text()[-2000:]
        before, rays = units(folder), own.children(recursive=True)
        if lost == "driver":
            driver.kill()
        else:
            [process] = [one for one in rays if is_called(one, TITLES[lost])]
            process.kill()
        killed = time.monotonic()
        code = driver.wait(60 if lost != "dashboard" else 180)
        _, alive = psutil.wait_procs(rays, max(0.0, killed + 60 - time.monotonic()))
        # Ray's agents look for their raylet for a while longer where nobody is left to end them
        assert [one for one in alive if lost != "driver" or "Agent" not in one.name()] == []
    finally:
        for process in [*own.children(recursive=True), own] if driver.poll() is None else []:
            process.kill()
    said = (folder / "log").read_text(errors="replace")
    if lost == "dashboard":  # nothing needs it
        assert code == 0, said[-2000:]
        return
    if lost != "driver":
        assert code == 1
        assert f"atlas: Ray's {lost} on this machine has died" in said
    kept = recorded(stage, folder)
    assert set(before) <= set(kept) or stage == "evaluate"  # an episode is told of before its shard is full
    assert start(stage, folder).wait(240) == 0, (folder / "log").read_text()[-2000:]
    whole = recorded(stage, folder)
    if stage == "train":
        steps = [metrics["step"] for metrics in read_metrics(RunFolder(str(folder / "run")))]
        assert steps == [*range(1, 601)]
    else:
        assert len(whole) == len(set(whole)) == 60
        assert whole[: len(kept)] == kept
