"""Ray around the worker: Ray Data renders, Ray Train runs the processes and starts them anew where one is lost.

Flows in: a configuration, trajectories and a selection; flows out: a run folder with `metrics.jsonl`, `model/` and
`finished.json`. Checkpoints lie below it while it is unfinished; a run of the same configuration and data goes on from
the last one that every worker completed. A SIGTERM, as `ray job stop` sends it, makes one and ends the run.

Ray Data streams trajectories through tasks that render them; the tokens come back shard by shard into Parquet, once for
all runs on the same data. The workers do not iterate over a dataset: each optimizer step draws from all trajectories by
seed, whatever the number of workers, and a resumed run begins in the midst of an epoch. They read the rows they want
from Arrow tables in Ray's object store, which a node holds once in shared memory.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa

from atlas_ray.address import below
from atlas_ray.cluster import placement
from atlas_ray.errors import AtlasError, Stopped, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.source import fetch_for_workers
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import Tracker, console
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.data.corpus import CHUNK, TOKENS, Corpus, detached, render
from atlas_ray.training.data.examples import read_selection, show
from atlas_ray.training.data.masking import Tokens
from atlas_ray.training.estimate import memory_lines
from atlas_ray.training.job import drop_checkpoints, figures_of, make_job, tokens_for
from atlas_ray.training.loggers import open_loggers
from atlas_ray.training.metrics import Follower, Progress
from atlas_ray.training.model.export import write_tokenizer
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.worker import STATES, STOP, Job, StopFile, run_worker
from atlas_ray.types import Selection, Trajectory


def train_agent(config: TrainConfig, clean: bool = False) -> dict[str, Any]:
    """The training stage: reads, trains, and shows how it goes. A finished run returns at once.

    Args:
        clean: Start anew where the run folder holds an earlier run.

    Returns:
        The run's figures, as in `finished.json`.

    Raises:
        UserError: If data, selection or model are unusable.
        AtlasError: If training fails.
    """
    from atlas_ray.trajectories.readers import Rejected, read_trajectories, write_rejected

    folder = RunFolder(config.run)
    folder.begin(config, stage="train", clean=clean)
    if folder.finished is not None:
        drop_checkpoints(config)
        return folder.finished
    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    write_rejected(folder, rejected)
    selections = None if config.selection is None else read_selection(config.selection)

    tracker: Tracker | None = None

    def follow(metrics: dict[str, Any]) -> None:
        nonlocal tracker
        if tracker is None:
            tracker = Tracker("train", metrics["total_steps"], done=metrics["step"] - 1).__enter__()
        speed = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        tracker.advance(note=speed)

    try:
        return train(config, trajectories, selections, follow)
    finally:
        if tracker is not None:
            tracker.__exit__(None, None, None)


def train(
    config: TrainConfig,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model with loss on the chosen steps only, and writes the run folder.

    Args:
        selections: One per trajectory; None chooses all steps. A trajectory without one is left out and counted.
        progress: Called with the metrics of each optimizer step, soon after it.

    Returns:
        The run's figures, as in `finished.json`.

    Raises:
        UserError: If the selection or the model do not fit the data.
        AtlasError: If training fails more than `max_failures` times, or the loss is no longer finite.
    """
    from atlas_ray.cluster.connection import connect

    begun = time.monotonic()
    chat = ChatFormat.load(config.model, template=config.chat_template)
    corpus = tokens_for(config, trajectories, chat, partial(render_on_ray, config, chat))
    prepared, job = make_job(config, chat, corpus, trajectories, selections)
    show(prepared, chat)
    for line in memory_lines(config):
        console.print(line)
    total = total_steps(len(job.examples), config.global_batch, config.epochs)
    folder = RunFolder(config.run)
    with open_loggers(config) as log:

        def follow(metrics: dict[str, Any]) -> None:
            log(metrics)
            if progress is not None:
                progress(metrics)

        connect(config.ray)
        fetch_for_workers(config.model)
        with Follower(folder, follow):
            reached = _fit(job, corpus)
    if reached < total:
        raise Stopped(f"training stopped at step {reached} of {total} (SIGTERM)", "the same command goes on from there")
    write_tokenizer(folder, chat.tokenizer)
    figures = figures_of(prepared, job, folder) | {"seconds": time.monotonic() - begun}
    folder.finish(**figures)
    drop_checkpoints(config)
    return figures


def render_tokens(config: TrainConfig) -> None:
    """Renders what several trainings on the same data share, before they begin.

    Raises:
        UserError: If data or chat template are unusable.
    """
    from atlas_ray.trajectories.readers import read_trajectories

    chat = ChatFormat.load(config.model, template=config.chat_template)
    tokens_for(config, read_trajectories(config.data), chat, partial(render_on_ray, config, chat))


def render_on_ray(
    config: TrainConfig, chat: ChatFormat, trajectories: Sequence[Trajectory]
) -> Generator[pa.Table, None, None]:
    """Renders in tasks, a chunk of trajectories in each; a single chunk here, for it needs no other process.

    Yields:
        Tables of the schema of `TOKENS`, in any order.

    Raises:
        UserError: If the chat template cannot be masked.
    """
    if len(trajectories) <= CHUNK:
        yield from render(trajectories, chat)
        return
    from atlas_ray.cluster.connection import connect

    connect(config.ray)
    import ray
    from ray.data import from_arrow_refs

    chunks = (trajectories[i : i + CHUNK] for i in range(0, len(trajectories), CHUNK))
    refs: Any = [ray.put(TRAJECTORIES.to_table(chunk)) for chunk in chunks]
    rendered = from_arrow_refs(refs).map_batches(
        _render,  # type: ignore[arg-type]
        fn_kwargs={"model": reachable(config.model), "template": config.chat_template},
        batch_size=None,
        batch_format="pyarrow",
    )
    table: Any
    try:
        for table in rendered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for error in table["error"].drop_null().to_pylist():
                raise UserError(*json.loads(error))
            yield table.drop_columns(["error"])
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]
        raise AtlasError(
            f"rendering failed: {why}", "run the same command again; ATLAS_RAY_LOGS=1 shows more"
        ) from error


def _render(table: pa.Table, model: str, template: str | None) -> pa.Table:
    """One task's chunk; an error of our own travels as a row, for Ray Data would hand on its text alone."""
    try:
        rendered, error = pa.concat_tables(render(TRAJECTORIES.from_table(table), _chat_format(model, template))), None
    except AtlasError as failure:
        nothing = np.zeros(0, np.int32)
        rendered, error = TOKENS.to_table([Tokens("", nothing, nothing)]), json.dumps([failure.what, failure.remedy])
    return rendered.append_column("error", pa.array([error] * rendered.num_rows, pa.string()))


@cache
def _chat_format(model: str, template: str | None) -> ChatFormat:
    """Loaded once in a process, which runs many tasks."""
    return ChatFormat.load(model, template=template)


def _fit(job: Job, corpus: Corpus) -> int:
    """Runs the workers; returns the number of optimizer steps done."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    config = job.config
    # Ray Train looks at its workers every 2 s otherwise, which is most of a small model's training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if len(ray.nodes()) == 1:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for nodes that may be taken away
    use_gpu = placement.gpus() > 0 if config.use_gpu is None else config.use_gpu
    need = {"CPU": config.cpus_per_worker, "GPU": int(use_gpu)}
    remedy = f"lower workers or cpus_per_worker{', leave use_gpu out' if config.use_gpu else ''}, or add nodes"
    labels = placement.labels_for(placement.TRAIN, config.label_selector)
    placement.require(need, config.workers, "training workers", remedy, labels)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json") | {"run": reachable(config.run), "model": reachable(config.model)},
            "examples": ray.put((detached(job.examples), detached(job.validation))),
            "tokens": [ray.put(table) for table in corpus.tables],
            "stop_ids": job.stop_ids,
            "digest": job.digest,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
            label_selector=labels or None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(
            name=job.digest,
            storage_path=below(reachable(config.run), STATES),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )
    # Ray's own handler of SIGINT exits with 0 or 1 and stays for good: here Ctrl-C is a KeyboardInterrupt, as elsewhere
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]
    folder = RunFolder(config.run)
    folder.remove(STOP)
    try:
        with (
            _on_sigterm(lambda: folder.write_bytes(STOP, b"")),
            placement.watched(need, config.workers, "training workers", labels=labels),
        ):
            ended = trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        raise _explained(error, config) from error
    finally:
        folder.remove(STOP)
    if isinstance(ended, AtlasError):
        raise ended
    return int(ended)


@contextmanager
def _on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM calls `act`, a second one does what it does otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        console.print("SIGTERM: training stops behind this step, with a checkpoint", style="yellow")
        act()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _explained(error: Exception, config: TrainConfig) -> AtlasError:
    """Ray's account of a failure in one line, with a remedy."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = sorted(failures.items())[0]
    text = str(cause).strip()
    line = text.splitlines()[-1] if text else type(cause).__name__
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        remedy = f"lower micro_batch_tokens ({config.micro_batch_tokens}) or max_length, or add workers"
    elif "died" in text or "ActorDied" in type(cause).__name__:
        remedy = "look for a lost node or a lack of memory, then run again: training goes on from the last checkpoint"
    else:
        remedy = "run again to go on from the last checkpoint; -v shows the traceback"
    return AtlasError(f"training failed on worker {rank} after {config.max_failures} restarts: {line}", remedy)


def _work(given: dict[str, Any]) -> int | AtlasError:
    """One worker. Failures that a restart would only repeat are returned, all others raised.

    Returns:
        Optimizer steps done, or what is wrong.
    """
    import ray
    import ray.train.torch
    import torch

    config = TrainConfig.model_validate(given["config"])
    torch.set_num_threads(config.cpus_per_worker)
    corpus = Corpus(ray.get(given["tokens"]))
    examples, validation = map(corpus.attach, ray.get(given["examples"]))
    stop = StopFile(RunFolder(config.run) if ray.train.get_context().get_world_rank() == 0 else None)
    try:
        job = Job(config, examples, validation, given["stop_ids"], given["digest"])
        return run_worker(job, ray.train.torch.get_device(), stop)
    except AtlasError as error:
        return error
    finally:
        stop.close()
