"""Training where all selections failed, or one of ten, or there is nothing to do, or Ctrl-C is pressed.

As test_failing_stages.py for the stages of units; the optimizer steps are real, in this process instead of Ray's.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atlas_ray.config import DataConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training import stage
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.metrics import read_metrics
from atlas_ray.training.worker import Job, run_worker
from atlas_ray.types import Selection
from tests.cli.test_failing_stages import Atlas, atlas  # noqa: F401  the command line in this process
from tests.support.failing import CAUSE, UNITS
from tests.support.training import a_trajectory, write_base

TEN = [a_trajectory(number, 3) for number in range(UNITS)]
STEPS = 5 * 2  # optimizer steps: ten trajectories, five at a time, five epochs


class Interrupted:
    """Is asked after every optimizer step whether to stop, and once answers by Ctrl-C."""

    def __init__(self, at: int | None) -> None:
        self._left = at

    def __call__(self) -> bool:
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
        return False


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | None]]:
    """At which optimizer step; None for none."""
    at: list[int | None] = [None]
    monkeypatch.setattr(stage, "_run_workers", lambda job, _: run_here(job, at[0]))
    monkeypatch.setattr(stage, "corpus_of", lambda config, found, chat, by: Corpus.of(found, chat))
    monkeypatch.setattr("atlas_ray.cluster.connection.connect", lambda *_: None)
    monkeypatch.setattr(stage, "fetch_for_workers", lambda _: None)
    handler = signal.getsignal(signal.SIGINT)
    yield at
    signal.signal(signal.SIGINT, handler)


def run_here(job: Job, at: int | None) -> int:
    return run_worker(job, torch.device("cpu"), Interrupted(at))


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, TEN)
    settings = {
        "model": write_base(tmp_path / "base"),
        "selection": str(tmp_path / "selection"),
        "dtype": "float32",
        "use_gpu": "false",
        "max_length": "500",
        "epochs": "5",
        "global_batch_size": "5",
        "checkpoint_steps": "2",
    }
    set_ = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["train", "--data", str(tmp_path / "data" / "trajectories"), "--run", str(tmp_path / "run"), *set_]


def select(folder: Path, failed: set[int]) -> None:
    """A finished selection of the first step of each, but for those that failed."""
    run = RunFolder(str(folder / "selection"))
    run.begin(SelectConfig(data=DataConfig(path=str(folder / "data"))), stage="select")
    run.write_shard(
        SELECTIONS,
        [
            Selection(t.id, t.env, t.item_id, "python", None, len(t.steps), (), error=CAUSE)
            if number in failed
            else Selection(t.id, t.env, t.item_id, "python", None, len(t.steps), (1,))
            for number, t in enumerate(TEN)
        ],
    )
    run.finish()


def steps(folder: Path) -> list[int]:
    return [metrics["step"] for metrics in read_metrics(RunFolder(str(folder / "run")))]


def status(folder: Path, atlas: Atlas) -> str:  # noqa: F811
    return " ".join(atlas("status", str(folder / "run"))[1].split())


@pytest.mark.usefixtures("interrupted")
def test_all_fail(tmp_path: Path, training: list[str], atlas: Atlas) -> None:  # noqa: F811
    select(tmp_path, set(range(UNITS)))
    code, said = atlas(*training)
    assert code == 2
    assert "of 10 trajectories 0 have a selection; the first selection failed: " + CAUSE in said.splitlines()[-2]
    assert CAUSE in status(tmp_path, atlas)
    assert steps(tmp_path) == []


@pytest.mark.usefixtures("interrupted")
def test_one_of_ten_fails(tmp_path: Path, training: list[str], atlas: Atlas) -> None:  # noqa: F811
    select(tmp_path, {3})
    code, said = atlas(*training)
    assert code == 0, said
    assert "1 left out: no selection" in said
    assert "finished" in status(tmp_path, atlas)
    finished = RunFolder(str(tmp_path / "run")).finished
    assert finished is not None
    assert (finished["trajectories"], finished["dropped"]) == (9, 1)


@pytest.mark.usefixtures("interrupted")
def test_nothing_to_do(tmp_path: Path, training: list[str], atlas: Atlas) -> None:  # noqa: F811
    select(tmp_path, set())
    assert atlas(*training)[0] == 0
    before, weights = status(tmp_path, atlas), (tmp_path / "run" / "model" / "model.safetensors").stat()
    code, said = atlas(*training)
    assert code == 0, said
    assert steps(tmp_path) == [*range(1, STEPS + 1)]
    assert (tmp_path / "run" / "model" / "model.safetensors").stat() == weights
    assert status(tmp_path, atlas) == before


def test_interrupted(
    tmp_path: Path,
    training: list[str],
    interrupted: list[int | None],
    atlas: Atlas,  # noqa: F811
) -> None:
    select(tmp_path, set())
    interrupted[0] = 5
    code, said = atlas(*training)
    assert code == 130
    assert said.splitlines()[-1] == "atlas: stopped; the same command goes on from here"
    assert "unfinished" in status(tmp_path, atlas)

    interrupted[0] = None
    code, said = atlas(*training)
    assert code == 0, said
    assert steps(tmp_path) == [*range(1, STEPS + 1)]
    assert "unfinished" not in status(tmp_path, atlas)


@pytest.mark.usefixtures("interrupted")
def test_a_training_that_fails_says_why_and_goes_on_once_mended(
    tmp_path: Path,
    training: list[str],
    atlas: Atlas,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> int:
        raise stage.AtlasError(CAUSE, "make room")

    select(tmp_path, set())
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_run_workers", fail)
        code, said = atlas(*training)
    assert code == 1
    assert CAUSE in said.splitlines()[-2]
    assert CAUSE in status(tmp_path, atlas)
    assert atlas(*training)[0] == 0
    assert "finished" in status(tmp_path, atlas)
