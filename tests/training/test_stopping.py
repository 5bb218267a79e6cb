"""How training is asked to stop, and what a state in a folder is worth."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.metrics import read_metrics
from atlas_ray.training.stopping import STOP, StopFile, on_sigterm
from tests.support.solo import run_alone
from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE, a_config, curve, write_base


def test_first_sigterm_requests_a_stop_and_second_one_terminates(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append("end"))
    try:
        with on_sigterm(lambda: asked.append("stop")):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == ["stop", "end", "end"]
    assert "training stops behind this step" in capsys.readouterr().err


def test_a_stop_file_is_noticed(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    stop, elsewhere = StopFile(folder), StopFile(None)
    assert not stop()
    folder.write_bytes(STOP, b"")
    deadline = time.monotonic() + 20
    while not stop():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not elsewhere()
    folder.remove(STOP)
    folder.remove(STOP)
    assert not folder.has(STOP)
    stop.close()


def test_a_stopped_run_has_a_checkpoint_of_its_last_step_and_goes_on(tmp_path: Path) -> None:
    options = {"model": write_base(tmp_path / "base"), "epochs": 3, "checkpoint_steps": 100}
    whole, cut = (a_config(run=str(tmp_path / name), **options) for name in ("whole", "cut"))
    run_alone(whole, TRAJECTORIES_HERE, SELECTIONS_HERE)
    asked = iter([False] * 3 + [True])
    assert run_alone(cut, TRAJECTORIES_HERE, SELECTIONS_HERE, stop=lambda: next(asked))[0] == 4
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").glob("*/*")] == ["00000004"]
    assert not RunFolder(cut.run).has("model/model.safetensors")
    assert run_alone(cut, TRAJECTORIES_HERE, SELECTIONS_HERE)[0] == 9
    assert curve(read_metrics(RunFolder(cut.run))) == curve(read_metrics(RunFolder(whole.run)))
