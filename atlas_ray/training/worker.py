"""The work of one training process, whatever started it (Ray Train, torchrun): loads, trains, saves, exports. No Ray.

Flows in: a job, the same in every process; flows out: checkpoints, metrics and the model, in the run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from atlas_ray.models.source import local_model
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.data.examples import Example
from atlas_ray.training.metrics import Meter, MetricsLog, best_step
from atlas_ray.training.settings import TrainConfig

if TYPE_CHECKING:
    import torch

CHECKPOINTS = "checkpoints"


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

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(len(self.examples), self.config.global_batch_size, self.config.epochs)


def backend(cuda: bool, offload: bool) -> str:
    """What processes exchange tensors by; with `offload` GPU workers have some in their hosts' memory too."""
    return ("cpu:gloo,cuda:nccl" if offload else "nccl") if cuda else "gloo"


def run_worker(job: Job, device: torch.device, stop: Callable[[], bool]) -> int:
    """Trains from the last checkpoint on and writes the model, unless `stop`, as in `loop.fit`, ends it before.

    Returns:
        Optimizer steps done.

    Raises:
        UserError: If model and settings do not fit together, or the device is too small for them.
        AtlasError: If the loss is no longer finite, or a checkpoint cannot be written.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from atlas_ray.training import loop
    from atlas_ray.training.checkpoints import Checkpoints
    from atlas_ray.training.memory_check import check_memory
    from atlas_ray.training.model.export import export_model
    from atlas_ray.training.model.loading import load_model
    from atlas_ray.training.model.precision import with_dtype

    disable_progress_bar()
    config = job.config
    rank, world = loop.rank_and_world()
    check_memory(config, [example.length for example in job.examples], device)
    model, weights = load_model(local_model(config.model))
    dtype = model.dtype
    config = with_dtype(config, model.config.get_text_config().hidden_size, device)
    if config.quantized:
        from atlas_ray.training.model.quantized import load_in_4bit

        computed = torch.bfloat16 if config.in_bfloat16(device.type == "cuda") else torch.float32
        model, weights = load_in_4bit(local_model(config.model), computed, device), None
    if config.lora is not None:
        from atlas_ray.training.model.lora import add_adapters

        add_adapters(model, config.lora, config.seed)
    meter = Meter(device, world, config.in_bfloat16(device.type == "cuda"))
    module = loop.place_model(model, config, device, weights)
    optimizers = loop.make_optimizers(module, config)

    folder = RunFolder(config.run)
    log, checkpoints = MetricsLog(folder if rank == 0 else None), Checkpoints(folder.child(CHECKPOINTS, job.digest))
    done, written = checkpoints.restore(module, optimizers)
    if done:
        log.restore(written)

    def export() -> None:
        export_model(folder, module, config, dtype, job.stop_ids)

    def on_step(metrics: dict[str, Any]) -> None:
        log.add(meter.complete(metrics))
        # Before the checkpoint of this step: a run that goes on from there finds the model in its place.
        if config.keep == "best" and best_step(log.steps) is log.steps[-1]:
            export()

    def save(step: int) -> None:
        log.flush()
        checkpoints.save(step, module, optimizers, log.text, partial(log.saved, step))

    hooks: Any = {"stop": stop, "on_step": on_step, "on_checkpoint": save}
    reached = loop.fit(module, optimizers, job.examples, config, device, done, job.validation, **hooks)
    if config.keep == "last" and reached == job.total_steps:
        export()
    checkpoints.wait()
    return reached
