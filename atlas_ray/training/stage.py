"""The training stage: reads and renders data, has it trained on by the workers of Ray Train, writes down how it ended.

Flows in: a configuration; flows out: a run folder with `metrics.jsonl`, `model/` and `finished.json`. Checkpoints lie
below it while it is unfinished; a run of the same configuration and data goes on from the last one that every worker
completed. A SIGTERM, as `ray job stop` sends it, makes one and ends the run.

The workers do not iterate over a dataset: each optimizer step draws from all trajectories by seed, whatever the number
of workers, and a resumed run begins in the midst of an epoch. They read the rows they want from Arrow tables in Ray's
object store, which a node holds once in shared memory.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from atlas_ray.address import below
from atlas_ray.cluster import placement
from atlas_ray.errors import AtlasError, Stopped
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.source import fetch_for_workers
from atlas_ray.runs.failures import failure_recorded
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import Tracker, console
from atlas_ray.training import estimate
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.data.corpus import Corpus, Render, open_corpus, render_on_ray, unknown_words
from atlas_ray.training.data.examples import (
    ExampleSet,
    build_examples,
    hold_back,
    read_selection,
    trajectories_of,
    with_ids,
    without_ids,
)
from atlas_ray.training.loggers import open_loggers
from atlas_ray.training.memory_check import check_memory
from atlas_ray.training.metrics import Follower, Progress, best_step, read_metrics
from atlas_ray.training.model.export import write_tokenizer
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.stopping import STOP, StopFile, on_sigterm
from atlas_ray.training.view import show
from atlas_ray.training.worker import CHECKPOINTS, Job, backend, run_worker
from atlas_ray.types import Selection, Trajectory

_SAMPLE = 300  # trajectories tokenized for a count
_MFU = 0.4
_PAPERS_GPU = "A100"


def plan_lines(config: TrainConfig) -> list[str]:
    """What a run will do and need; nothing is loaded but the tokenizer.

    Raises:
        UserError: If data or model cannot be read, or the model cannot fit.
    """
    import torch

    from atlas_ray.trajectories.readers import read_trajectories

    lines, selections = list[str](), None
    if config.selection is not None and RunFolder(config.selection).finished is not None:
        selections = read_selection(config.selection)
    elif config.selection is not None:
        lines.append(f"{config.selection} is not finished: counted as if all steps were chosen")
    training, held = hold_back(read_trajectories(config.data), config.validation_fraction, config.seed)
    sample = training[:: max(1, len(training) // _SAMPLE)]
    chat = ChatFormat.load(config.model, template=config.chat_template)
    corpus = Corpus.of(sample, chat)
    prepared = build_examples(config, corpus, sample, selections)
    examples, epochs = prepared.examples, config.passes(prepared.statistics.loss_token_fraction)
    scale, about = len(training) / len(sample), "about " if len(sample) < len(training) else ""
    count, sequences = (round(scale * n) for n in (trajectories_of(examples), len(examples)))
    tokens, loss_tokens = (scale * sum(n) for n in zip(*((e.length, e.loss_tokens) for e in examples), strict=True))
    lines.append(
        f"{about}{count} trajectories, {len(held)} held back; {about}{tokens:,.0f} tokens an epoch, "
        f"{loss_tokens:,.0f} of them with loss"
    )
    if sequences > count:
        lines.append(f"the chat template writes earlier turns anew: {about}{sequences} sequences")
    if unknown := unknown_words(corpus, sample, chat):
        lines.append(unknown)
    model = estimate.meta_model(config)
    flops = estimate.Flops.of(model)
    operations = epochs * scale * sum(flops.of_example(e.length, e.loss_tokens) for e in examples)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _PAPERS_GPU
    if (peak := estimate.peak_flops(device)) is None:
        device, peak = _PAPERS_GPU, estimate.PEAK_FLOPS[_PAPERS_GPU]
    optimizer_steps = total_steps(sequences, config.global_batch_size, epochs)
    lines.append(
        f"{optimizer_steps} optimizer steps in {epochs:.3g} epochs: "
        f"{operations:.3g} operations, {estimate.gpu_hours(operations, peak, _MFU):.2g} GPU-hours if an MFU of "
        f"{_MFU:.0%} is reached ({device}, {peak / 1e12:.0f} TFLOP/s)"
    )
    disk = estimate.disk_of(config, estimate.ModelShape.of(model))
    memory = check_memory(config, [example.length for example in examples])
    return [*lines, memory, str(disk)]


def train_agent(config: TrainConfig, clean: bool = False, *, sample: bool = True) -> dict[str, Any]:
    """The training stage: reads, trains, and shows how it goes. A finished run returns at once.

    Args:
        clean: Start anew where the run folder holds an earlier run.
        sample: Shows a trajectory with its loss tokens, and what memory is needed.

    Returns and raises what `train` does.
    """
    folder = RunFolder(config.run)
    if (figures := begin(config, clean)) is not None:
        return figures
    with failure_recorded(folder):
        return _train_agent(config, folder, sample)


def _train_agent(config: TrainConfig, folder: RunFolder, sample: bool) -> dict[str, Any]:
    from atlas_ray.trajectories.readers import read_trajectories
    from atlas_ray.trajectories.rejected import Rejected, write_rejected

    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    write_rejected(folder, rejected)
    selections = None if config.selection is None else read_selection(config.selection)
    with ExitStack() as stack:
        tracker: Tracker | None = None

        def show_step(metrics: dict[str, Any]) -> None:
            nonlocal tracker
            if tracker is None:
                tracker = stack.enter_context(Tracker("train", metrics["total_steps"], done=metrics["step"] - 1))
            tracker.advance(note=f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s")

        return train(config, trajectories, selections, show_step, sample=sample)


def begin(config: TrainConfig, clean: bool = False) -> dict[str, Any] | None:
    """Opens the run folder; returns the figures of a run that is finished already."""
    folder = RunFolder(config.run)
    folder.begin(config, stage="train", clean=clean)
    if (figures := folder.finished) is not None:
        delete_checkpoints(config)
    return figures


def train(
    config: TrainConfig,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
    progress: Progress | None = None,
    *,
    sample: bool = False,
) -> dict[str, Any]:
    """Fine-tunes a model with loss on the chosen steps only, and writes the run folder.

    Args:
        selections: One per trajectory; None chooses all steps. A trajectory without one is left out and counted.
        progress: Called with the metrics of each optimizer step, soon after it.
        sample: Shows a trajectory with its loss tokens, and what memory is needed.

    Returns:
        The run's figures, as in `finished.json`.

    Raises:
        UserError: If the selection or the model do not fit the data.
        AtlasError: If training fails more than `max_failures` times, or the loss is no longer finite.
    """
    from atlas_ray.cluster.connection import connect

    begun = time.monotonic()
    chat = ChatFormat.load(config.model, template=config.chat_template)

    def render(missing: Sequence[Trajectory]) -> Any:
        return render_on_ray(missing, chat, config.model, config.chat_template, config.ray)

    corpus = corpus_of(config, trajectories, chat, render)
    prepared, job = make_job(config, chat, corpus, trajectories, selections)
    show(prepared, chat, unknown_words(corpus, trajectories, chat), sample=sample)
    memory = check_memory(config, [example.length for example in job.examples])
    if sample:
        console.print(memory)
    with open_loggers(config) as log:

        def on_step(metrics: dict[str, Any]) -> None:
            log(metrics)
            if progress is not None:
                progress(metrics)

        connect(config.ray)
        fetch_for_workers(config.model)
        with Follower(RunFolder(config.run), on_step):
            reached = _run_workers(job, corpus)
    return finish(prepared, job, chat, reached, begun)


def render_tokens(config: TrainConfig) -> None:
    """Renders what several trainings on the same data share, before they begin.

    Raises:
        UserError: If data or chat template are unusable.
    """
    from atlas_ray.trajectories.readers import read_trajectories

    chat = ChatFormat.load(config.model, template=config.chat_template)

    def render(missing: Sequence[Trajectory]) -> Any:
        return render_on_ray(missing, chat, config.model, config.chat_template, config.ray)

    corpus_of(config, read_trajectories(config.data), chat, render)


def corpus_of(config: TrainConfig, trajectories: Sequence[Trajectory], chat: ChatFormat, by: Render) -> Corpus:
    """The run's tokens, rendered where no run on the same data has done so."""
    return open_corpus(config.rendered or below(config.run, "rendered"), trajectories, chat, by)


def make_job(
    config: TrainConfig,
    chat: ChatFormat,
    corpus: Corpus,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
) -> tuple[ExampleSet, Job]:
    """Holds tasks back and makes examples of all; raises what `build_examples` and `hold_back` do."""
    training, held = hold_back(trajectories, config.validation_fraction, config.seed)
    prepared = build_examples(config, corpus, training, selections)
    validation = build_examples(config, corpus, held, selections).examples if held else []
    digest = hashlib.sha256(RunFolder(config.run).digest(config).encode())  # of all that shapes a checkpoint
    for example in prepared.examples:
        digest.update(example.ids.tobytes() + example.loss_mask.tobytes())
    passes = config.passes(prepared.statistics.loss_token_fraction)
    trained = config.model_copy(update={"epochs": passes, "match_loss_tokens": False})
    return prepared, Job(trained, prepared.examples, validation, tuple(chat.stop_ids), digest.hexdigest()[:12])


def finish(prepared: ExampleSet, job: Job, chat: ChatFormat, reached: int, begun: float) -> dict[str, Any]:
    """Writes what a run has beside its weights, deletes its checkpoints, and returns its figures.

    Raises:
        Stopped: If a SIGTERM ended it before the last step: `reached` is less than all.
    """
    if reached < job.total_steps:
        what = f"training stopped at step {reached} of {job.total_steps} (SIGTERM)"
        raise Stopped(what, "the same command goes on from there")
    folder = RunFolder(job.config.run)
    write_tokenizer(folder, chat.tokenizer)
    figures = figures_of(prepared, job) | {"seconds": time.monotonic() - begun}
    folder.finish(**figures)
    delete_checkpoints(job.config)
    return figures


def figures_of(prepared: ExampleSet, job: Job) -> dict[str, Any]:
    """What `finished.json` says, but for the time."""
    statistics = prepared.statistics
    figures = {
        "train_steps": job.total_steps,
        "trajectories": len({e.trajectory_id for e in job.examples}),
        **asdict(statistics),
    }
    figures["dropped"] += prepared.unselected
    steps = read_metrics(RunFolder(job.config.run))
    kept = best_step(steps) if job.config.keep == "best" else steps[-1]
    if kept is not None and "validation_loss" in kept:
        figures |= {
            "validation_trajectories": trajectories_of(job.validation),
            "kept_step": kept["step"],
            "validation_loss": kept["validation_loss"],
        }
    return figures


def delete_checkpoints(config: TrainConfig) -> None:
    """Deletes the checkpoints of a finished run, unless they are to be kept."""
    if not config.keep_checkpoint:
        RunFolder(config.run).child(CHECKPOINTS).delete()


def _run_workers(job: Job, corpus: Corpus) -> int:
    """Runs the workers, and starts them anew where one is lost; returns the number of optimizer steps done."""
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
    remedy = f"lower num_workers or cpus_per_worker{', leave use_gpu out' if config.use_gpu else ''}, or add nodes"
    labels = placement.labels_for(placement.TRAIN, config.label_selector)
    placement.require(need, config.num_workers, "training workers", remedy, labels)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json") | {"run": reachable(config.run), "model": reachable(config.model)},
            "examples": ray.put((without_ids(job.examples), without_ids(job.validation))),
            "tokens": [ray.put(table) for table in corpus.tables],
            "stop_ids": job.stop_ids,
            "digest": job.digest,
        },
        torch_config=TorchConfig(backend=backend(use_gpu, config.offload)),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
            label_selector=labels or None,  # type: ignore[call-arg]
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=job.digest,
            storage_path=below(reachable(config.run), CHECKPOINTS),
            failure_config=FailureConfig(max_failures=config.max_failures),
            # Threads that spin as long as they do by default do a tenth of the work beside anything else.
            worker_runtime_env={"env_vars": {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000")}},
        ),
    )
    # Ray's own handler of SIGINT exits with 0 or 1 and stays for good: here Ctrl-C is a KeyboardInterrupt, as elsewhere
    trainer._register_sigint_handler = lambda controller: None  # type: ignore[attr-defined]
    folder = RunFolder(config.run)
    folder.remove(STOP)
    try:
        with (
            on_sigterm(lambda: folder.write_bytes(STOP, b"")),
            placement.watched(need, config.num_workers, "training workers", labels=labels),
        ):
            ended = trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        raise _explained(error, config) from error
    finally:
        folder.remove(STOP)
    if isinstance(ended, AtlasError):
        raise ended
    return int(ended)


def _explained(error: Exception, config: TrainConfig) -> AtlasError:
    """Ray's account of a failure in one line, with a remedy."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, cause = sorted(failures.items())[0]
    text = str(cause).strip()
    line = text.splitlines()[-1] if text else type(cause).__name__
    if "out of memory" in text.lower() or "OutOfMemory" in text:
        remedy = f"lower micro_batch_tokens ({config.micro_batch_tokens}) or max_length, or raise num_workers"
    elif "died" in text or "ActorDied" in type(cause).__name__:
        remedy = "look for a lost node or a lack of memory, then run again: training goes on from the last checkpoint"
    else:
        remedy = "run again to go on from the last checkpoint; -v shows the traceback"
    return AtlasError(f"training failed on worker {rank} after {config.max_failures} restarts: {line}", remedy)


def _work(given: dict[str, Any]) -> int | AtlasError:
    """One worker: returns its steps, or a failure that a restart would only repeat; all others are raised."""
    import ray
    import ray.train.torch
    import torch

    config = TrainConfig.model_validate(given["config"])
    torch.set_num_threads(config.cpus_per_worker)
    corpus = Corpus(ray.get(given["tokens"]))
    examples, validation = (with_ids(part, corpus) for part in ray.get(given["examples"]))
    stop = StopFile(RunFolder(config.run) if ray.train.get_context().get_world_rank() == 0 else None)
    try:
        job = Job(config, examples, validation, given["stop_ids"], given["digest"])
        return run_worker(job, ray.train.torch.get_device(), stop)
    except AtlasError as error:
        return error
    finally:
        stop.close()
