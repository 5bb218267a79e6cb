"""Checkpoints: written beside the training, whole or not at all, one beside the one being written, none left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter

from atlas_ray.errors import AtlasError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training import loop
from atlas_ray.training.checkpoints import Checkpoints
from atlas_ray.training.metrics import METRICS
from atlas_ray.training.stage import delete_checkpoints
from tests.support.store import Store
from tests.support.tiny import tiny_llama
from tests.support.training import CPU, a_config, curve, run_locally, the_examples


@pytest.fixture(params=["alone", "in a group"])
def _processes(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "in a group":
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def a_module(seed: int = 0, **options: Any) -> tuple[Any, list[torch.optim.Optimizer]]:
    config = a_config(**options)
    module = loop.place_model(tiny_llama(80, seed=seed), config, CPU)
    return module, loop.make_optimizers(module, config)


def complete(folder: RunFolder) -> list[str]:
    """States that count."""
    return [child.uri.partition("?")[0].rpartition("/")[2] for child in folder.children() if child.has(".metadata")]


@pytest.mark.usefixtures("_processes")
def test_checkpoint_holds_the_state_at_save_while_training_continues(tmp_path: Path) -> None:
    (module, optimizers), folder = a_module(), RunFolder(str(tmp_path))
    config, checkpoints = a_config(), Checkpoints(folder)
    assert checkpoints.restore(module, optimizers) == (0, "")
    kept: dict[str, torch.Tensor] = {}

    def save(step: int) -> None:
        if step == 3:
            checkpoints.save(step, module, optimizers, "three lines", lambda _: None)
            kept.update({name: weight.clone() for name, weight in module.state_dict().items()})

    loop.fit(module, optimizers, the_examples(), config, CPU, on_checkpoint=save)
    checkpoints.wait()
    other, its_optimizers = a_module(seed=1)
    assert Checkpoints(folder).restore(other, its_optimizers) == (3, "three lines")
    torch.testing.assert_close(other.state_dict(), kept, rtol=0, atol=0)
    assert not torch.equal(other.model.lm_head.weight, module.model.lm_head.weight)


@pytest.mark.parametrize(("place", "optimizer"), [("path", "adam"), ("path", "muon"), ("store", "adam")])
def test_resume_from_path_or_store_is_bitwise_equal(
    tmp_path: Path, request: pytest.FixtureRequest, place: str, optimizer: str
) -> None:
    config = a_config(optimizer=optimizer, epochs=3)
    whole, _, steps = run_locally(config)
    store: Store | None = request.getfixturevalue("store") if place == "store" else None
    folder = RunFolder(store.uri("bucket/run/checkpoints") if store else str(tmp_path))
    module, optimizers = a_module(optimizer=optimizer)
    checkpoints, asked = Checkpoints(folder), iter([False] * 3 + [True])

    def save(step: int) -> None:
        checkpoints.save(step, module, optimizers, "", lambda _: None)

    loop.fit(module, optimizers, the_examples(), config, CPU, on_checkpoint=save, stop=lambda: next(asked))
    checkpoints.wait()
    assert complete(folder) == ["00000004"]
    module, optimizers = a_module(seed=1, optimizer=optimizer)
    done, _ = Checkpoints(folder).restore(module, optimizers)
    again: list[dict[str, Any]] = []
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=again.append, done=done)
    assert curve(again) == curve(steps[4:])
    torch.testing.assert_close(module.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.usefixtures("_processes")
def test_last_complete_checkpoint_is_kept_while_the_next_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (module, optimizers), folder = a_module(), RunFolder(str(tmp_path))
    checkpoints, go_on, during = Checkpoints(folder), threading.Event(), list[list[str]]()
    seconds: list[float] = []
    write = FileSystemWriter.write_data

    def slowly(self: Any, *given: Any) -> Any:
        assert go_on.wait(60)
        during.append(sorted(path.name for path in tmp_path.iterdir()))
        return write(self, *given)

    monkeypatch.setattr(FileSystemWriter, "write_data", slowly)
    for step in (5, 10, 15):
        go_on.clear()
        checkpoints.save(step, module, optimizers, str(step), seconds.append)  # returns though nothing can be written
        assert f"{step:08d}" not in complete(folder)
        go_on.set()
        checkpoints.wait()
        assert complete(folder) == [f"{step:08d}"]
    assert during == [["00000005"], ["00000005", "00000010"], ["00000010", "00000015"]]
    assert len(seconds) == 3


def test_incomplete_checkpoint_is_ignored_and_deleted(tmp_path: Path) -> None:
    (module, optimizers), folder = a_module(), RunFolder(str(tmp_path))
    checkpoints = Checkpoints(folder)
    checkpoints.save(5, module, optimizers, "five", lambda _: None)
    checkpoints.wait()
    (tmp_path / "00000010").mkdir()  # as a killed process leaves it: data, and no word that it is all
    (tmp_path / "00000010" / METRICS).write_text("ten")
    (tmp_path / "00000010" / "__0_0.distcp").write_bytes(b"half")
    assert Checkpoints(folder).restore(module, optimizers) == (5, "five")
    assert [path.name for path in tmp_path.iterdir()] == ["00000005"]


@pytest.mark.usefixtures("_processes")
def test_failed_write_raises_and_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module, optimizers), folder = a_module(), RunFolder(str(tmp_path))
    checkpoints = Checkpoints(folder)
    checkpoints.save(5, module, optimizers, "five", lambda _: None)
    checkpoints.wait()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    checkpoints.save(10, module, optimizers, "ten", lambda _: None)
    with pytest.raises(AtlasError, match=rf"cannot write to {tmp_path}: .*No space left.*\n  check space"):
        checkpoints.wait()
    assert Checkpoints(folder).restore(module, optimizers) == (5, "five")


def _save_and_fail(rank: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=rank, world_size=2)
    (module, optimizers), folder = a_module(), RunFolder(str(place / "states"))
    config, checkpoints = a_config(epochs=1), Checkpoints(folder)

    def save(step: int) -> None:
        checkpoints.save(step, module, optimizers, f"{step} lines", lambda _: None)

    loop.fit(module, optimizers, the_examples(), config, CPU, on_checkpoint=save)
    checkpoints.wait()
    if rank == 0:
        RunFolder.write_bytes = _full  # type: ignore[method-assign,assignment]
    with pytest.raises(AtlasError, match=r"cannot write to .*No space left"):
        save(9)
    weights = {name: weight.full_tensor() for name, weight in module.named_parameters()}
    if rank == 0:
        torch.save(weights, place / "weights.pt")
    dist.destroy_process_group()


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_processes_write_shards_together_and_fail_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_save_and_fail, (tmp_path,), nprocs=2)
    module, optimizers = a_module(seed=1)
    assert Checkpoints(RunFolder(str(tmp_path / "states"))).restore(module, optimizers) == (3, "3 lines")
    torch.testing.assert_close(dict(module.named_parameters()), torch.load(tmp_path / "weights.pt"), rtol=0, atol=0)


@pytest.mark.parametrize("keep", [False, True])
def test_finished_run_keeps_its_checkpoint_only_on_request(tmp_path: Path, keep: bool) -> None:
    config = a_config(run=str(tmp_path), keep_checkpoint=keep)
    module, optimizers = a_module()
    for digest in ("of this data", "of other data before"):
        checkpoints = Checkpoints(RunFolder(config.run).child("checkpoints", digest))
        checkpoints.save(5, module, optimizers, "", lambda _: None)
        checkpoints.wait()
    delete_checkpoints(config)
    assert (tmp_path / "checkpoints").exists() is keep
    delete_checkpoints(config)
