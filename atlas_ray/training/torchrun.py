"""Training without Ray, under torchrun: the same worker, data, run folder and checkpoints.

    torchrun --nproc-per-node 4 -m atlas_ray.training.torchrun --config train.yaml --set run=runs/mine

Flows in: the configuration of `atlas train`; flows out: what `atlas train` writes. `num_workers` is torchrun's to say.
The run folder must be a URI, or a path that all nodes share. A SIGTERM to torchrun makes a checkpoint and ends the run;
the same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

import torch
import torch.distributed as dist
import typer

from atlas_ray.cli.main import Config, Set
from atlas_ray.config import load
from atlas_ray.errors import AtlasError, Stopped
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.units import show_units
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.data.corpus import render
from atlas_ray.training.data.examples import read_selection, show
from atlas_ray.training.job import drop_checkpoints, figures_of, make_job, tokens_for
from atlas_ray.training.loop import local_device
from atlas_ray.training.model.export import write_tokenizer
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.worker import run_worker
from atlas_ray.trajectories.readers import read_trajectories


def train_here(config: TrainConfig) -> None:
    """One process of a run.

    Raises:
        UserError: If data, selection, model or run folder are unusable.
        Stopped: If a SIGTERM ended it before the end.
    """
    begun, folder, first = time.monotonic(), RunFolder(config.run), dist.get_rank() == 0
    if first:
        folder.begin(config, stage="train")
    dist.barrier()
    if folder.finished is not None:
        if first:
            drop_checkpoints(config)
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
    reached = run_worker(job, local_device(_gpu(config)), lambda: bool(stopping))
    total = total_steps(len(job.examples), config.global_batch_size, config.epochs)
    if reached < total:
        raise Stopped(f"training stopped at step {reached} of {total} (SIGTERM)", "the same command goes on from there")
    if first:
        write_tokenizer(folder, chat.tokenizer)
        folder.finish(**figures_of(prepared, job, folder), seconds=time.monotonic() - begun)
        drop_checkpoints(config)


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
