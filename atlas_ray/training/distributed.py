"""Ray Train around the loop: workers, checkpoints, resume, the model folder.

Flows in: a configuration, trajectories and a selection; flows out: a run folder with `metrics.jsonl`, `model/` and
`finished.json`. Ray Train's own folder below it holds the checkpoints; a run of the same configuration and data goes on
from the last one that every worker completed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.folder import RunFolder, config_digest, reachable
from atlas_ray.runs.progress import Tracker, console
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.training.batching import total_steps
from atlas_ray.training.examples import Prepared, prepare, show
from atlas_ray.training.masking import Example
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Selection, Trajectory

METRICS = "metrics.jsonl"
Progress = Callable[[dict[str, Any]], None]


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
        return folder.finished
    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    write_rejected(folder, rejected)
    selections = None if config.selection is None else _read_selection(config.selection)

    tracker: Tracker | None = None

    def follow(metrics: dict[str, Any]) -> None:
        nonlocal tracker
        if tracker is None:
            tracker = Tracker("train", metrics["total_steps"], done=metrics["step"] - 1).__enter__()
        speed = f"loss {metrics['loss']:.4f}, {metrics['tokens_per_second']:,.0f} tokens/s"
        tracker.advance(note=speed)

    try:
        return train(config, trajectories, selections, follow, show)
    finally:
        if tracker is not None:
            tracker.__exit__(None, None, None)


def train(
    config: TrainConfig,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
    progress: Progress | None = None,
    announce: Callable[[Prepared], None] | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model with loss on the chosen steps only, and writes the run folder.

    Args:
        selections: One per trajectory; None chooses all steps. A trajectory without one is left out and counted.
        progress: Called with the metrics of each optimizer step, soon after it.
        announce: Called once with what will be trained on.

    Returns:
        The run's figures, as in `finished.json`.

    Raises:
        UserError: If the selection or the model do not fit the data.
        AtlasError: If training fails more than `max_failures` times, or the loss is no longer finite.
    """
    from atlas_ray.runs.cluster import connect

    begun = time.monotonic()
    prepared = prepare(config, trajectories, selections)
    if announce is not None:
        announce(prepared)
    connect(config.ray)
    folder = RunFolder(config.run)
    with _Follower(folder, progress):
        _fit(config, prepared)
    with tempfile.TemporaryDirectory() as path:
        prepared.chat.tokenizer.save_pretrained(path)
        _copy(path, folder)
    statistics = prepared.statistics
    figures = {
        "train_steps": total_steps(len(prepared.examples), config.global_batch, config.epochs),
        "trajectories": len(prepared.examples),
        "dropped": statistics.dropped + prepared.unselected,
        "steps_lost": statistics.steps_lost,
        "step_fraction": statistics.step_fraction,
        "loss_tokens": statistics.loss_tokens,
        "loss_token_fraction": statistics.loss_token_fraction,
        "tokens": statistics.tokens,
        "seconds": time.monotonic() - begun,
    }
    folder.finish(**figures)
    return figures


def _read_selection(uri: str) -> list[Selection]:
    folder = RunFolder(uri)
    if not folder.exists:
        raise UserError(f"{uri} holds no selection", "run `atlas select` first, or correct `selection`")
    if folder.finished is None:
        raise UserError(f"the selection in {uri} is not finished", "finish it: run its `atlas select` again")
    return folder.read(SELECTIONS)


def _fit(config: TrainConfig, prepared: Prepared) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    # Ray Train looks at its workers every 2 s otherwise, which is most of a small model's training.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    if len(ray.nodes()) == 1:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for nodes that may be taken away
    have = ray.cluster_resources()
    use_gpu = have.get("GPU", 0) > 0 if config.use_gpu is None else config.use_gpu
    need = {"CPU": config.workers * config.cpus_per_worker} | ({"GPU": config.workers} if use_gpu else {})
    for resource, amount in need.items():
        if have.get(resource, 0) < amount:
            console.print(
                f"waiting for {amount} {resource}: the cluster has {have.get(resource, 0):g} now; stop with Ctrl-C and "
                "lower `workers` or `cpus_per_worker` if it will not grow",
                style="yellow",
            )
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]
        train_loop_config={
            "config": config.model_dump(mode="json") | {"run": reachable(config.run), "model": reachable(config.model)},
            "examples": ray.put(prepared.examples),
            "stop_ids": list(prepared.chat.stop_ids),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=use_gpu, resources_per_worker={"CPU": config.cpus_per_worker}
        ),
        run_config=RunConfig(
            name=_run_name(config, prepared.examples),
            storage_path=_storage(config.run)[1] if "://" not in config.run else config.run,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        refused = trainer.fit().return_value  # type: ignore[attr-defined]
    except TrainingFailedError as error:
        raise _explained(error, config) from error
    if refused:
        raise AtlasError(*refused)


def _run_name(config: TrainConfig, examples: Sequence[Example]) -> str:
    """Ray Train resumes what bears the same name: so configuration and data are in it."""
    digest = hashlib.sha256(config_digest(config).encode())
    for example in examples:
        digest.update(example.ids.tobytes() + example.loss_mask.tobytes())
    return f"checkpoints-{digest.hexdigest()[:12]}"


def _storage(uri: str) -> tuple[pafs.FileSystem, str]:
    return pafs.FileSystem.from_uri(uri if "://" in uri else str(Path(uri).resolve()))


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


def _work(job: dict[str, Any]) -> tuple[str, str] | None:
    """One worker. Failures that a restart would only repeat are returned, all others raised.

    Returns:
        What is wrong and the remedy, or None.
    """
    try:
        _train_and_export(job)
    except AtlasError as error:
        return error.what, error.remedy
    return None


def _train_and_export(job: dict[str, Any]) -> None:
    import ray
    import ray.train.torch
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from atlas_ray.training import loop

    disable_progress_bar()
    config = TrainConfig.model_validate(job["config"])
    device = ray.train.torch.get_device()
    torch.set_num_threads(config.cpus_per_worker)
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype="auto")
    dtype = model.dtype
    module = loop.prepare(model, config, device)
    optimizers = loop.make_optimizers(module, config)

    folder, rank = RunFolder(config.run), ray.train.get_context().get_world_rank()
    log, done = _MetricsLog(folder if rank == 0 else None), 0
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as path:
            done = loop.load_state(path, module, optimizers)
            log.restore(Path(path, METRICS).read_text())

    def save(step: int) -> None:
        log.flush()
        with tempfile.TemporaryDirectory() as path:
            loop.save_state(path, module, optimizers, step)
            if rank == 0:
                Path(path, METRICS).write_text(log.text)
            # Ray Train puts all workers' files into one folder, which counts once every worker has come this far.
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(path))

    examples = ray.get(job["examples"])
    loop.fit(module, optimizers, examples, config, device, done=done, on_step=log.add, on_checkpoint=save)

    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    model.generation_config.eos_token_id = list(dict.fromkeys([*job["stop_ids"], *known]))
    with tempfile.TemporaryDirectory() as path:
        loop.export_model(path, module, dtype)
        if rank == 0:
            _copy(path, folder)


def _copy(path: str, folder: RunFolder) -> None:
    for file in sorted(Path(path).iterdir()):
        folder.write_bytes(f"model/{file.name}", file.read_bytes())


class _MetricsLog:
    """One line per optimizer step, in order, no step twice: a checkpoint carries the lines up to its step."""

    _SECONDS = 1.0

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder, self._lines, self._written = folder, [], 0.0  # type: ignore[var-annotated]

    @property
    def text(self) -> str:
        return "".join(self._lines)

    def restore(self, text: str) -> None:
        self._lines = text.splitlines(keepends=True)
        self.flush()

    def add(self, metrics: dict[str, Any]) -> None:
        self._lines.append(json.dumps(metrics) + "\n")
        if time.monotonic() - self._written > self._SECONDS:
            self.flush()

    def flush(self) -> None:
        """The whole file anew: object stores cannot append, and a reader never meets half a line."""
        self._written = time.monotonic()
        if self._folder is not None:
            self._folder.write_bytes(METRICS, self.text.encode())


class _Follower:
    """Reads the metrics that the workers write, and passes each step on once."""

    def __init__(self, folder: RunFolder, progress: Progress | None) -> None:
        self._fs, root = _storage(folder.uri)
        self._path, self._progress = f"{root.rstrip('/')}/{METRICS}", progress
        self._last, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        if self._progress is not None:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(0.5)
            for metrics in self._read():
                if metrics["step"] > self._last and self._progress is not None:
                    self._last = metrics["step"]
                    self._progress(metrics)

    def _read(self) -> list[dict[str, Any]]:
        try:
            with self._fs.open_input_stream(self._path) as stream:
                return [json.loads(line) for line in stream.read().decode().splitlines()]
        except OSError:
            return []
