"""What a training run will take before anything is loaded: memory, disk, optimizer steps, tokens, operations, hours.

Flows in: a configuration, and the model's own without its weights; flows out: lines for people, and a refusal of what
cannot fit. Activations are counted for layers like Llama's, and so are an estimate; weights, gradients and moments are
exact.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.flops import Flops, peak_flops
from atlas_ray.training.settings import LoraConfig, TrainConfig
from atlas_ray.training.shape import ModelShape, outline

if TYPE_CHECKING:
    import torch

_GB = 2**30
_SAMPLE = 300  # trajectories tokenized for a count
_MFU = 0.4
_LOGIT_ROWS = 2048  # as in the loss
_PAPERS_GPU = "A100"
_PROCESS_ON_CPU = 0.7 * _GB  # torch, transformers and Ray themselves
_MOST_WORKERS = 256
_SURELY = 1.1  # activations are an estimate: what is this far above a GPU's memory is refused, what is less is told


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one worker's device at the worst moment of a step.

    Attributes:
        weights, gradients, moments: This worker's share, for the whole run.
        casts: Weights gathered from other workers or cast to bfloat16, with the gradients that leave again.
        activations: What a forward pass keeps for the backward one.
        logits: One chunk of the head's output, and its gradient.
        checkpoint: The copy of weights and moments that is written while training goes on; a GPU's is in the host's
            memory.
    """

    weights: float
    gradients: float
    moments: float
    casts: float
    activations: float
    logits: float
    checkpoint: float
    process: float

    @property
    def states(self) -> float:
        """What no setting of the batch changes."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ((f.name, getattr(self, f.name) / _GB) for f in fields(self))
        return ", ".join(f"{name} {size:.2f}" for name, size in parts if size >= 0.005)


def memory_of(config: TrainConfig, shape: ModelShape, cuda: bool) -> Memory:
    """Estimates the memory of one worker.

    Args:
        cuda: Whether workers have GPUs, where layers are recomputed unless the configuration says otherwise.
    """
    each = 2 if config.dtype == "bfloat16" else 4
    frozen, workers = shape.parameters - shape.trained, config.num_workers
    moments = _moments(config, shape)
    recomputed = recomputes(config, cuda)
    sharded = workers > 1 or (cuda and config.optimizer == "adam")
    if sharded:  # the embedding and the head stay for the pass; of the layers one computes while the next one comes
        gathered = shape.tables + 2 * shape.layer
        casts = each * gathered + (4 + each) * gathered * shape.trained / shape.parameters
    else:  # the head's gradient before it is added, and weights in bfloat16 for as long as a backward pass wants them
        casts = 4 * shape.head * shape.trained / shape.parameters
        casts += 0 if each == 4 else 2 * (shape.head + shape.layer * (1 if recomputed else shape.layers))
    tokens = max(config.micro_batch_tokens, config.max_length)
    heads = 3 * shape.attention + 2 * shape.cached  # queries, output and its copy by heads; keys and values
    layer = tokens * (each * (2 * shape.hidden + heads + 4 * shape.inner) + 4 * 4 * shape.hidden)
    boundary = tokens * shape.hidden * (each if sharded else 4)
    activations = shape.layers * boundary + layer if recomputed else shape.layers * layer
    return Memory(
        weights=(4 * shape.trained + each * frozen) / workers,
        gradients=4 * shape.trained / workers,
        moments=moments / workers,
        casts=casts,
        activations=activations,
        logits=min(_LOGIT_ROWS, tokens) * shape.vocabulary * (4 if each == 4 else 8),
        checkpoint=0.0 if cuda else _state(config, shape) / workers,
        process=0.0 if cuda else _PROCESS_ON_CPU,
    )


def _moments(config: TrainConfig, shape: ModelShape) -> float:
    """Bytes of the optimizers' moments: two of Adam's, one of Muon's."""
    matrices = shape.trained - shape.tables if config.optimizer == "muon" else 0
    return 8 * shape.trained - 4 * matrices


def _state(config: TrainConfig, shape: ModelShape) -> float:
    """Bytes of a checkpoint, all workers' parts together."""
    return 4 * shape.trained + _moments(config, shape)


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of a run where it lies.

    Attributes:
        model: As it is exported.
        checkpoint: Of one; a second one is there while it is written.
        kept: Whether the last one stays.
    """

    model: float
    checkpoint: float
    kept: bool

    @property
    def peak(self) -> float:
        """While it trains."""
        return self.model + 2 * self.checkpoint

    @property
    def finished(self) -> float:
        """What stays."""
        return self.model + (self.checkpoint if self.kept else 0)

    def __str__(self) -> str:
        return (
            f"disk: at most {self.peak / _GB:.1f} GB (the model, {self.model / _GB:.1f}, and two checkpoints of "
            f"{self.checkpoint / _GB:.1f}; one being written is in the hosts' memory too), "
            f"{self.finished / _GB:.1f} GB when it is finished"
        )


def disk_of(config: TrainConfig, shape: ModelShape) -> Disk:
    """What a run takes on the disk or in the store that its folder is in, without its tokens and metrics."""
    adapters = shape.trained if config.lora is not None else 0
    alone = config.lora is not None and config.lora.export == "adapter"
    model = 4 * adapters if alone else shape.width * (shape.parameters - adapters)
    return Disk(model, _state(config, shape), config.keep_checkpoint)


def recomputes(config: TrainConfig, cuda: bool) -> bool:
    """Whether layers are computed again in the backward pass instead of kept."""
    return cuda if config.activation_checkpointing is None else config.activation_checkpointing


def remedy(config: TrainConfig, cuda: bool, have: float) -> str:
    """Which keys to change, and to what, so that a worker fits `have` bytes: the batch first, then workers, or LoRA."""

    def fits(changes: dict[str, Any]) -> bool:
        changed = config.model_copy(update=changes)
        shape = lean if "lora" in changes else full
        return memory_of(changed, shape, cuda).total <= have

    def words(changes: dict[str, Any]) -> str:
        return ", ".join(f"{k}: {v if k != 'lora' else '{rank: 16}'}" for k, v in changes.items()).lower()

    full = ModelShape.of(outline(config))
    batches = list(_smaller_batches(config, cuda))
    found = [next((b for b in batches if fits(b)), None)]
    if found[0] is None and config.optimizer == "adam":
        more = [batches[-1] | {"num_workers": w} for w in _doublings(config.num_workers)]
        found = [next((m for m in more if fits(m)), None)]
        if config.lora is None:
            lora = {"lora": LoraConfig()}
            lean = ModelShape.of(outline(config.model_copy(update=lora)))
            found.append(next((b | lora for b in batches if fits(b | lora)), None))
    options = [words(changes) for changes in found if changes]
    return "set " + "; or ".join(options) if options else "use a smaller model, or a device with more memory"


def _smaller_batches(config: TrainConfig, cuda: bool) -> Iterator[dict[str, Any]]:
    """Changes of the batch that save memory, the cheapest first; the last one saves all that there is to save."""
    keep: dict[str, Any] = {} if recomputes(config, cuda) else {"activation_checkpointing": True}
    sizes: list[int] = []
    while (size := (sizes or [config.micro_batch_tokens])[-1]) > config.max_length:
        sizes.append(max(size // 2, config.max_length))
    yield from ({"micro_batch_tokens": size} for size in sizes)
    yield keep
    yield from (keep | {"micro_batch_tokens": size} for size in sizes)


def _doublings(workers: int) -> Iterator[int]:
    while (workers := 2 * workers) <= _MOST_WORKERS:
        yield workers


def memory_lines(config: TrainConfig) -> list[str]:
    """One line on whether a worker fits its device, as far as this process can know it.

    Raises:
        UserError: If weights, gradients and moments alone do not fit, or on a GPU the peak is far above it.
    """
    import torch

    cuda = torch.cuda.is_available() if config.use_gpu is None else config.use_gpu
    have = _device_memory(config, torch.device("cuda" if cuda else "cpu"))
    return [_judge(config, cuda, have)]


def refuse_what_cannot_fit(config: TrainConfig, device: torch.device) -> None:
    """The same on the worker itself, which knows its device.

    Raises:
        UserError: If weights, gradients and moments alone do not fit, or on a GPU the peak is far above it.
    """
    _judge(config, device.type == "cuda", _device_memory(config, device))


def _judge(config: TrainConfig, cuda: bool, have: float | None) -> str:
    need = memory_of(config, ModelShape.of(outline(config)), cuda)
    line = f"memory of a worker: about {need.total / _GB:.1f} GB ({need})"
    if have is None:
        return f"{line}; set memory_gb to have it checked against a device"
    if need.states > have:
        raise UserError(
            f"{config.model} needs {need.states / _GB:.1f} GB on each of {config.num_workers} worker(s) for weights, "
            f"gradients and moments alone, and has {have / _GB:.1f} GB",
            remedy(config, cuda, have),
        )
    if cuda and need.total > _SURELY * have:
        raise UserError(
            f"{config.model} needs about {need.total / _GB:.1f} GB on each of {config.num_workers} worker(s) at the "
            f"worst moment of a step ({need}), and has {have / _GB:.1f} GB",
            f"{remedy(config, cuda, have)}; or set memory_gb to what you know to be enough",
        )
    if need.total > have:
        return f"{line} of {have / _GB:.1f} GB: may not fit; {remedy(config, cuda, have)}"
    return f"{line} of {have / _GB:.1f} GB: fits"


def _device_memory(config: TrainConfig, device: torch.device) -> float | None:
    """Bytes that one worker may use; None where this process cannot know."""
    import torch

    if config.memory_gb is not None:
        return config.memory_gb * _GB
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) if torch.cuda.is_available() else None
    here = os.environ.get("LOCAL_WORLD_SIZE")
    if here is None and (config.ray.address or os.environ.get("RAY_ADDRESS")):
        return None  # the workers' machines are others
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / int(here or config.num_workers)


def estimate_lines(config: TrainConfig) -> list[str]:
    """What a run will do and need; nothing is loaded but the tokenizer.

    Raises:
        UserError: If data or model cannot be read, or the model cannot fit.
    """
    import torch

    from atlas_ray.models.chat import ChatFormat
    from atlas_ray.training.data.corpus import Corpus
    from atlas_ray.training.data.examples import prepare, read_selection
    from atlas_ray.training.validation import hold_back
    from atlas_ray.trajectories.readers import read_trajectories

    lines = []
    selections = None
    if config.selection is not None and RunFolder(config.selection).finished is not None:
        selections = read_selection(config.selection)
    elif config.selection is not None:
        lines.append(f"{config.selection} is not finished: counted as if all steps were chosen")
    training, held = hold_back(read_trajectories(config.data), config.validation_fraction, config.seed)
    sample = training[:: max(1, len(training) // _SAMPLE)]
    chat = ChatFormat.load(config.model, template=config.chat_template)
    prepared = prepare(config, Corpus.of(sample, chat), sample, selections)
    scale, about = len(training) / len(sample), "about " if len(sample) < len(training) else ""
    count = round(scale * len(prepared.examples))
    tokens = scale * sum(example.length for example in prepared.examples)
    loss_tokens = scale * sum(example.loss_tokens for example in prepared.examples)
    lines.append(
        f"{about}{count} trajectories, {len(held)} held back; {about}{tokens:,.0f} tokens an epoch, "
        f"{loss_tokens:,.0f} of them with loss"
    )
    model = outline(config)
    flops = Flops.of(model)
    operations = config.epochs * scale * sum(flops.of_example(e.length, e.loss_tokens) for e in prepared.examples)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _PAPERS_GPU
    if (peak := peak_flops(device)) is None:
        device, peak = _PAPERS_GPU, peak_flops(_PAPERS_GPU) or math.nan
    hours = operations / (_MFU * peak) / 3600
    lines.append(
        f"{total_steps(count, config.global_batch_size, config.epochs)} optimizer steps in {config.epochs:g} epochs: "
        f"{operations:.3g} operations, {hours:.2g} GPU-hours if an MFU of {_MFU:.0%} is reached "
        f"({device}, {peak / 1e12:.0f} TFLOP/s)"
    )
    return [*lines, *memory_lines(config), str(disk_of(config, ModelShape.of(model)))]
