"""The work of one training process, whatever started it (Ray Train, torchrun): loads, trains, saves, exports. No Ray.

Flows in: a job, the same in every process; flows out: checkpoints, metrics and the model, in the run folder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import AtlasError
from atlas_ray.models.source import local_model
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.data.masking import Example
from atlas_ray.training.metrics import Meter, MetricsLog, best_step
from atlas_ray.training.settings import TrainConfig

if TYPE_CHECKING:
    import torch

STOP = "stop"
STATES = "checkpoints"
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of a run is given.

    Attributes:
        examples: To train on.
        validation: Held back.
        stop_ids: Tokens that end a reply.
        digest: Of configuration and data: what bears it goes on from the same checkpoints.
    """

    config: TrainConfig
    examples: Sequence[Example]
    validation: Sequence[Example]
    stop_ids: tuple[int, ...]
    digest: str


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


def run_worker(job: Job, device: torch.device, stop: Callable[[], bool]) -> int:
    """Trains from the last checkpoint on and writes the model, unless it is asked to stop before the end.

    Args:
        stop: As in `loop.fit`.

    Returns:
        Optimizer steps done.

    Raises:
        UserError: If model and settings do not fit together, or the device is too small for them.
        AtlasError: If the loss is no longer finite, or a checkpoint cannot be written.
    """
    from transformers.utils.logging import disable_progress_bar

    from atlas_ray.training import loop
    from atlas_ray.training.checkpoints import Checkpoints
    from atlas_ray.training.estimate import refuse_what_cannot_fit
    from atlas_ray.training.model.export import export_model
    from atlas_ray.training.model.loading import load_model

    disable_progress_bar()
    config = job.config
    rank, world = loop.rank_and_world()
    refuse_what_cannot_fit(config, device)
    model, weights = load_model(local_model(config.model))
    dtype = model.dtype
    if config.lora is not None:
        from atlas_ray.training.model.lora import add_adapters

        add_adapters(model, config.lora, config.seed)
    meter = Meter(device, world, config.dtype)
    module = loop.prepare(model, config, device, weights)
    optimizers = loop.make_optimizers(module, config)

    folder = RunFolder(config.run)
    log, checkpoints = MetricsLog(folder if rank == 0 else None), Checkpoints(folder.child(STATES, job.digest))
    done, written = checkpoints.restore(module, optimizers)
    if done:
        log.restore(written)

    def export() -> None:
        export_model(folder, module, config, dtype, job.stop_ids)

    def note(metrics: dict[str, Any]) -> None:
        log.add(meter.complete(metrics))
        # Before the checkpoint of this step: a run that goes on from there finds the model in its place.
        if config.keep == "best" and best_step(log.steps) is log.steps[-1]:
            export()

    def save(step: int) -> None:
        log.flush()
        checkpoints.save(step, module, optimizers, log.text, partial(log.saved, step))

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
    if config.keep == "last" and reached == loop.total_steps(
        len(job.examples), config.global_batch_size, config.epochs
    ):
        export()
    checkpoints.wait()
    return reached
