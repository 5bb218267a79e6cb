"""Ctrl-C: one sentence and exit code 130, however often it is pressed and wherever a run is."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from tests.support.recipes import a_recipe, finish, start

STOPPED = "atlas: stopped; the same command goes on from here"
STAGE = """
import os, signal, sys
from atlas_ray.cli import main
from atlas_ray.errors import AtlasError
from atlas_ray.trajectories import collect

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job has not

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def stage(settings, clean):
    try:
        interrupt()
    finally:
        {cleanup}

collect.collect = stage
main.main(["collect", "--set", "envs=[maze]", "--set", "role=expert"])
"""


@pytest.mark.parametrize("cleanup", ["pass", "interrupt()", "raise AtlasError('an engine does not end')"])
def test_ctrl_c_is_one_sentence_and_code_130(cleanup: str, tmp_path: Path) -> None:
    code = STAGE.format(cleanup=cleanup)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (130, STOPPED)


@pytest.mark.slow
def test_two_interrupts_stop_a_recipe_in_training_and_in_evaluation(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path, {"gold": {"name": "gold", "ratio": 0.3}})
    metrics, base = tmp_path / "small/train/gold/metrics.jsonl", RunFolder(str(tmp_path / "small/evaluate/base"))

    def interrupted_when(met: Callable[[], bool]) -> None:
        process = start(tmp_path, recipe)
        while not met():
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, (tmp_path / "out.log").read_text()[-3000:]
        assert STOPPED in (tmp_path / "out.log").read_text().splitlines()[-3:]

    interrupted_when(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 3)
    interrupted_when(lambda: len(base.done(EPISODES)) >= 32)
    assert not (tmp_path / "small/report").exists()
    finish(tmp_path, recipe, tmp_path)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
