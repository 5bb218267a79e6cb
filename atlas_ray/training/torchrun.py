"""Training without Ray, under torchrun: the same worker, data, run folder and checkpoints.

    torchrun --nproc-per-node 4 -m atlas_ray.training.torchrun --config train.yaml --set run=runs/mine

Flows in: the configuration of `atlas train`; flows out: what `atlas train` writes. `num_workers` is torchrun's to say.
The run folder must be a URI, or a path that all nodes share. A SIGTERM to torchrun makes a checkpoint and ends the run;
the same command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from functools import partial

import torch
import torch.distributed as dist

from atlas_ray.config import load
from atlas_ray.errors import AtlasError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.units import show_units
from atlas_ray.training.data.corpus import render, unknown_words
from atlas_ray.training.data.examples import read_selection
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.stage import begin, corpus_of, finish, make_job
from atlas_ray.training.view import show
from atlas_ray.training.worker import backend, run_worker
from atlas_ray.trajectories.readers import read_trajectories


def train_here(config: TrainConfig, device: torch.device) -> None:
    """One process of a run.

    Raises:
        UserError: If data, selection, model or run folder are unusable.
        Stopped: If a SIGTERM ended it before the end.
    """
    begun, first = time.monotonic(), dist.get_rank() == 0
    if first:
        begin(config)
    dist.barrier()
    if RunFolder(config.run).finished is not None:
        return
    selections = None if config.selection is None else read_selection(config.selection)
    trajectories, chat = read_trajectories(config.data), ChatFormat.load(config.model, template=config.chat_template)
    if not first:
        dist.barrier()  # the first process renders
    corpus = corpus_of(config, trajectories, chat, partial(render, chat=chat))
    if first:
        dist.barrier()
    prepared, job = make_job(config, chat, corpus, trajectories, selections)
    if first:
        show(prepared, chat, unknown_words(corpus, trajectories, chat), sample=True)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    reached = run_worker(job, device, lambda: bool(stopping))
    if first or reached < job.total_steps:
        finish(prepared, job, chat, reached, begun)


def main() -> None:
    """Fine-tunes a model with loss on the selected steps only, in the processes that torchrun started."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", "-c", metavar="FILE", help="YAML file with the keys of `atlas train`")
    parser.add_argument("--set", "-s", metavar="KEY=VALUE", action="append", default=[], help="override a key: a.b=c")
    given = parser.parse_args()
    show_units()
    try:
        config = load(TrainConfig, given.config, [*given.set, f"num_workers={os.environ['WORLD_SIZE']}"])
    except AtlasError as error:
        parser.exit(error.exit_code, f"atlas: {error}\n")
    torch.set_num_threads(config.cpus_per_worker)
    device = torch.device("cpu")
    if torch.cuda.is_available() if config.use_gpu is None else config.use_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group(backend(device.type == "cuda", config.offload))
    try:
        train_here(config, device)
    except AtlasError as error:
        if dist.get_rank() == 0:
            print(f"atlas: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
