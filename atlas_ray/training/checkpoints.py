"""States of a training run to go on from, written beside the training and straight to where the run lies.

Flows in: a module and its optimizers; flows out: the last state that every process completed. Each process writes and
reads its own shards, on a path that all share or in an object store, whatever started it (Ray Train, torchrun). A state
counts once its `.metadata` is there, which torch writes last, when all processes are through: what was interrupted
never counts. One complete state lies beside the one that is being written, no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import pyarrow.fs as pafs
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from atlas_ray.address import name_of
from atlas_ray.errors import AtlasError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.store import explained, first_line, open_store
from atlas_ray.training.metrics import METRICS

_Result = TypeVar("_Result")
_COMPLETE = ".metadata"
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)  # frozen weights are the base model's
_TIMEOUT = timedelta(hours=6)  # of the slowest process's disk


class Checkpoints:
    """The states of one run. Every process calls every method.

    Args:
        folder: Of this run's states alone.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        # A group of its own: training goes on in the other one meanwhile, and their messages must not mix.
        self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if dist.is_initialized() else None
        self._first = self._group is None or dist.get_rank() == 0
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def restore(self, module: nn.Module, optimizers: Sequence[optim.Optimizer]) -> tuple[int, str]:
        """Goes back to the last complete state, whatever the number of processes that wrote it.

        Returns:
            The number of optimizer steps done, and `metrics.jsonl` up to there; 0 and nothing where there is no state.
        """
        last = self._on_all("read", lambda: self._delete_older() if self._first else None)
        if last is None:
            return 0, ""
        place, (state, held), alone = self._folder.child(last), _state(module, optimizers, 0), self._group is None

        def load() -> None:
            dcp.load(
                state, storage_reader=_storage(dcp.FileSystemReader, place), process_group=self._group, no_dist=alone
            )

        self._on_all("read", load)
        weights, moments = state["model"], tree_map(_taken_in, held, state["optimizer"])
        set_state_dict(module, optimizers, model_state_dict=weights, optim_state_dict=moments, options=_TRAINED)
        return int(state["step"]), place.read_bytes(METRICS).decode()

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizers: Sequence[optim.Optimizer],
        metrics: str,
        saved: Callable[[float], None],
    ) -> None:
        """Copies the state to the memory of the host and returns; it is written while training goes on.

        Args:
            step: Optimizer steps done.
            metrics: `metrics.jsonl` up to there.
            saved: Called by the first process, in the background, with the seconds that it took until it was complete.

        Raises:
            AtlasError: If the state before could not be written.
        """
        self.wait()
        begun, place = time.monotonic(), self._folder.child(f"{step:08d}")
        self._on_all("write to", lambda: place.write_bytes(METRICS, metrics.encode()) if self._first else None)
        (state, _), alone = _state(module, optimizers, step), self._group is None
        writer = _storage(dcp.FileSystemWriter, place)
        written: Any = dcp.async_save(state, storage_writer=writer, process_group=self._group, no_dist=alone)

        def complete() -> None:
            written.result()
            if self._first:
                self._delete_older()
                saved(time.monotonic() - begun)

        self._pending = self._executor.submit(complete)

    def wait(self) -> None:
        """Returns once the last state is complete; an AtlasError says that it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._on_all("write to", pending.result)

    def _on_all(self, verb: str, act: Callable[[], _Result]) -> _Result:
        """What the first process got; its failure is everybody's, or the others would wait for it."""
        own: Any
        try:
            with _explained(verb, self._folder.uri):
                own = act()
        except AtlasError as error:
            own = error
        first = [own]
        if self._group is not None:
            dist.broadcast_object_list(first, src=0, group=self._group)
        for failure in (*first, own):
            if isinstance(failure, AtlasError):
                raise failure
        return first[0]  # type: ignore[no-any-return]

    def _delete_older(self) -> str | None:
        """Leaves nothing but the last complete state, and returns its name."""
        states = [child for child in self._folder.children() if name_of(child.uri).isdigit()]
        last = next((state for state in reversed(states) if state.has(_COMPLETE)), None)
        for state in states:
            if state is not last:
                state.delete()
        return None if last is None else name_of(last.uri)


def _state(
    module: nn.Module, optimizers: Sequence[optim.Optimizer], step: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state as it is written, and the optimizers' own as they hold it."""
    weights, moments = get_state_dict(module, optimizers, options=_TRAINED)
    return {"model": weights, "optimizer": tree_map(_written_out, moments), "step": step}, moments


def _written_out(moment: Any) -> Any:
    """Moments of 8 bits in float32: whatever number of processes reads them cuts them into other blocks."""
    local = moment.to_local() if isinstance(moment, DTensor) else moment
    if not hasattr(local, "codes"):
        return moment
    if not isinstance(moment, DTensor):
        return local.dequantize()
    whole: dict[str, Any] = {"shape": moment.shape, "stride": moment.stride(), "run_check": False}
    return DTensor.from_local(local.dequantize(), moment.device_mesh, moment.placements, **whole)


def _taken_in(held: Any, read: Any) -> Any:
    """What was read, in the form in which the optimizer holds it."""
    local, given = (value.to_local() if isinstance(value, DTensor) else value for value in (held, read))
    if not hasattr(local, "codes"):
        return read
    local.copy_(given)
    return held


@contextmanager
def _explained(verb: str, uri: str) -> Iterator[None]:
    """Turns what a store says to any of the processes into a sentence."""
    with explained(uri, verb):
        try:
            yield
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if isinstance(cause, OSError):
                raise cause from error
            remedy = "run the same command again; it goes on from the last complete checkpoint"
            raise AtlasError(f"cannot {verb} {uri}: {first_line(cause)}", remedy) from error


def _storage(kind: Any, place: RunFolder) -> Any:
    """torch's reader or writer of a folder, in an object store too."""
    files, path = open_store(place.uri)
    access = kind(path)
    if not isinstance(files, pafs.LocalFileSystem):
        access.fs, access.path, access.sync_files = _ArrowFileSystem(files), path, False
    return access


class _ArrowFileSystem(FileSystemBase):
    """What torch asks of a file system, answered by pyarrow's."""

    def __init__(self, files: pafs.FileSystem) -> None:
        self._files = files

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with self._files.open_output_stream(path) if "w" in mode else self._files.open_input_file(path) as stream:
            yield stream

    def concat_path(self, path: Any, suffix: str) -> str:
        return f"{path}/{suffix}"

    def rename(self, path: Any, new_path: Any) -> None:
        self._files.move(path, new_path)

    def init_path(self, path: Any) -> Any:
        return path

    def mkdir(self, path: Any) -> None:
        self._files.create_dir(path, recursive=True)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def exists(self, path: Any) -> bool:
        return bool(self._files.get_file_info(path).type != pafs.FileType.NotFound)

    def rm_file(self, path: Any) -> None:
        self._files.delete_file(path)
