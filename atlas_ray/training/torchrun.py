"""Training without Ray, under torchrun: the same worker, data and run folder, checkpoints in the folder itself.

    torchrun --nproc-per-node 4 -m atlas_ray.training.torchrun --config train.yaml --set run=runs/mine

Flows in: the configuration of `atlas train`; flows out: what `atlas train` writes. `workers` is torchrun's to say. The
run folder must be a path that all nodes share. A SIGTERM to torchrun makes a checkpoint and ends the run; the same
command goes on from there.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import typer

from atlas_ray.cli import Config, Set
from atlas_ray.config import load
from atlas_ray.errors import AtlasError, Stopped, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.units import show_units
from atlas_ray.training.batching import total_steps
from atlas_ray.training.corpus import render
from atlas_ray.training.examples import show
from atlas_ray.training.export import write_tokenizer
from atlas_ray.training.job import figures_of, make_job, read_selection, run_name, tokens_for
from atlas_ray.training.loop import local_device
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.worker import run_worker
from atlas_ray.trajectories.readers import read_trajectories

_KEPT = 2


class FolderCheckpoints:
    """States in a folder that all processes share, the last two of them; one counts once it bears its final name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """The newest state."""
        dist.barrier()
        yield next(reversed(self._states()), None)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Writes beside the final name, and renames once every process is through."""
        partial = self._folder / f"{step:08d}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(self._folder / f"{step:08d}", ignore_errors=True)
            partial.rename(self._folder / f"{step:08d}")
            for old in self._states()[:-_KEPT]:
                shutil.rmtree(old)
        dist.barrier()

    def _states(self) -> list[Path]:
        return sorted(p for p in self._folder.glob("*") if p.name.isdigit())


def train_here(config: TrainConfig) -> None:
    """One process of a run.

    Raises:
        UserError: If data, selection, model or run folder are unusable.
        Stopped: If a SIGTERM ended it before the end.
    """
    if "://" in config.run:
        raise UserError(f"torchrun keeps its checkpoints in the run folder, and {config.run} is no path", "use a path")
    begun, folder, first = time.monotonic(), RunFolder(config.run), dist.get_rank() == 0
    if first:
        folder.begin(config, stage="train")
    dist.barrier()
    if folder.finished is not None:
        return
    selections = None if config.selection is None else read_selection(config.selection)
    trajectories, chat = read_trajectories(config.data), ChatFormat.load(config.model, template=config.chat_template)
    if not first:
        dist.barrier()  # the first process renders
    corpus = tokens_for(config, trajectories, chat, partial(render, chat=chat))
    if first:
        dist.barrier()
    prepared, job = make_job(config, chat, corpus, trajectories, selections)
    if first:
        show(prepared, chat)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    checkpoints = FolderCheckpoints(Path(config.run) / run_name(config, job.examples))
    reached = run_worker(job, checkpoints, local_device(_gpu(config)), lambda: bool(stopping))
    total = total_steps(len(job.examples), config.global_batch, config.epochs)
    if reached < total:
        raise Stopped(f"training stopped at step {reached} of {total} (SIGTERM)", "the same command goes on from there")
    if first:
        write_tokenizer(folder, chat.tokenizer)
        folder.finish(**figures_of(prepared, job, folder), seconds=time.monotonic() - begun)


def _gpu(config: TrainConfig) -> bool:
    return torch.cuda.is_available() if config.use_gpu is None else config.use_gpu


def main(config: Config = None, set_: Set = None) -> None:
    """Fine-tune a model with loss on the selected steps only, in the processes that torchrun started."""
    settings = load(TrainConfig, config, set_ or [])
    show_units()
    torch.set_num_threads(settings.cpus_per_worker)
    dist.init_process_group("nccl" if _gpu(settings) else "gloo")
    try:
        train_here(settings)
    except AtlasError as error:
        if dist.get_rank() == 0:
            typer.secho(f"atlas: {error}", fg="red", err=True)
        sys.exit(error.exit_code)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
