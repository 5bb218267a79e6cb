"""The work of one training process, whatever started it (Ray Train, torchrun): loads, trains, saves, exports. No Ray.

Flows in: a job, the same in every process, and a place for checkpoints; flows out: checkpoints, metrics and the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from atlas_ray.errors import AtlasError, UserError
from atlas_ray.models.source import local_model, weights
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.masking import Example
from atlas_ray.training.metrics import METRICS, Meter, MetricsLog, best_step
from atlas_ray.training.settings import TrainConfig

if TYPE_CHECKING:
    import torch

STOP = "stop"
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of a run is given.

    Attributes:
        examples: To train on.
        validation: Held back.
        stop_ids: Tokens that end a reply.
    """

    config: TrainConfig
    examples: Sequence[Example]
    validation: Sequence[Example]
    stop_ids: tuple[int, ...]


class Checkpoints(Protocol):
    """Where states are kept. Every process calls every method."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """The last state that every process completed, as a local folder."""

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Keeps what `write` puts into a folder, as the state after `step`: whole or not at all."""


class StopFile:
    """Whether a file named `stop` lies in the run folder: how whoever may not stop a process asks it to stop.

    Args:
        folder: Where to look, beside the training; None in processes that leave it to another one.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self._folder, self._closed, self._found = folder, threading.Event(), False
        if folder is not None:
            threading.Thread(target=self._look, args=(folder,), daemon=True).start()

    def __call__(self) -> bool:
        return self._found

    def close(self) -> None:
        """Looks no longer."""
        self._closed.set()

    def _look(self, folder: RunFolder) -> None:
        while not self._found and not self._closed.wait(_LOOK_SECONDS):
            with suppress(AtlasError, OSError):  # a store that does not answer now
                self._found = folder.has(STOP)


def run_worker(job: Job, checkpoints: Checkpoints, device: torch.device, stop: Callable[[], bool]) -> int:
    """Trains from the last checkpoint on and writes the model, unless it is asked to stop before the end.

    Args:
        stop: As in `loop.fit`.

    Returns:
        Optimizer steps done.

    Raises:
        UserError: If model and settings do not fit together, or the device is too small for them.
        AtlasError: If the loss is no longer finite.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from atlas_ray.training import loop
    from atlas_ray.training.estimate import refuse_what_cannot_fit
    from atlas_ray.training.export import export_model

    disable_progress_bar()
    config = job.config
    rank, world = loop.rank_and_world()
    refuse_what_cannot_fit(config, device)
    place = local_model(config.model)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", **weights())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {config.model!r}: {str(error).splitlines()[0]}", "check the model") from None
    dtype = model.dtype
    if config.lora is not None:
        from atlas_ray.training.lora import add_adapters

        add_adapters(model, config.lora, config.seed)
    meter = Meter(device, world, config.dtype)
    module = loop.prepare(model, config, device)
    optimizers = loop.make_optimizers(module, config)

    folder = RunFolder(config.run)
    log, done = MetricsLog(folder if rank == 0 else None), 0
    with checkpoints.latest() as path:
        if path is not None:
            done = loop.load_state(path, module, optimizers)
            log.restore((path / METRICS).read_text())

    def export() -> None:
        export_model(folder, module, config, dtype, job.stop_ids)

    def note(metrics: dict[str, Any]) -> None:
        log.add(meter.complete(metrics))
        # Before the checkpoint of this step: a run that goes on from there finds the model in its place.
        if config.keep == "best" and best_step(log.steps) is log.steps[-1]:
            export()

    def save(step: int) -> None:
        log.flush()

        def write(path: Path) -> None:
            loop.save_state(path, module, optimizers, step)
            if rank == 0:
                (path / METRICS).write_text(log.text)

        begun = time.monotonic()
        checkpoints.save(step, write)
        if rank == 0:
            log.saved(step, time.monotonic() - begun)

    reached = loop.fit(
        module,
        optimizers,
        job.examples,
        config,
        device,
        done=done,
        validation=job.validation,
        stop=stop,
        on_step=note,
        on_checkpoint=save,
    )
    if config.keep == "last" and reached == loop.total_steps(len(job.examples), config.global_batch, config.epochs):
        export()
    return reached
