"""Whether a training run fits its workers' memory, and which settings would make it fit.

Flows in: a configuration and the lengths of its examples; flows out: a line for people, or a refusal that names keys,
values and the memory that they take.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import UserError
from atlas_ray.training.estimate import Memory, ModelShape, memory_of, meta_model, recomputes
from atlas_ray.training.settings import LoraConfig, TrainConfig

if TYPE_CHECKING:
    import torch

_GB = 2**30
_MAX_WORKERS = 256
_REFUSED_ABOVE = 1.1  # of a GPU's memory: activations are an estimate, and what may not fit is told, not refused


def remedy(config: TrainConfig, cuda: bool, have: float, lengths: Collection[int] = ()) -> str:
    """Which keys to change, and to what, so that a worker fits `have` bytes, with what it takes then.

    The batch alone where that is enough. Else, each with the batch that it needs: more workers, or workers that share
    sequences; moments in 8 bits; offload; both; LoRA; LoRA on a base of 4 bits.
    """

    def need(changes: dict[str, Any]) -> Memory:
        changed = config.model_copy(update=changes)
        return memory_of(changed, full if "lora" not in changes else lean, cuda, lengths)

    def first_fit(options: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The first option that fits, with the first batch that it fits with."""
        tried = (batch | option for option in options for batch in batches)
        return next((changes for changes in tried if need(changes).total <= have), None)

    full = lean = ModelShape.of(meta_model(config))
    batches = [{}, *_smaller_batches(config, cuda)]
    found = [first_fit([{}])]
    if found[0] is None and config.optimizer != "muon":
        ways: list[list[dict[str, Any]]] = [list(_more_workers(config))]
        if config.optimizer == "adam":
            ways.append([{"optimizer": "adam8bit"}])
        if cuda and not config.offload and not config.quantized:
            ways += [[{"offload": True}], [{"offload": True, "optimizer": "adam8bit"}]]
        if config.lora is None:
            lean = ModelShape.of(meta_model(config.model_copy(update={"lora": LoraConfig()})))
            ways.append([{"lora": LoraConfig()}])
        if not config.quantized:
            alone = {"offload": False, "optimizer": "adam"}
            lora = (config.lora or LoraConfig()).model_copy(update={"base": "4bit"})
            ways.append([{"lora": lora} | {k: v for k, v in alone.items() if getattr(config, k) != v}])
        found = [first_fit(way) for way in ways]
        if found[-1] is None and config.lora is None:
            found.pop()
    options = [_words(config, changes, need(changes)) for changes in found if changes]
    return "set " + "; or ".join(options) if options else "use a smaller model, or a device with more memory"


def _words(config: TrainConfig, changes: dict[str, Any], need: Memory) -> str:
    said = {k: str(v).lower() for k, v in changes.items() if k != "lora"}
    if (lora := changes.get("lora")) is not None:
        said["lora"] = f"{{rank: {lora.rank}{', base: 4bit' if lora.base == '4bit' else ''}}}"
    keys = ", ".join(f"{key}: {value}" for key, value in said.items())
    host = f" and {need.host / _GB:.1f} GB of its host's memory" if need.host else ""
    return f"{keys} ({need.total / _GB:.1f} GB a worker{host})"


def _more_workers(config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Numbers of workers, and of those that share each sequence, the fewest first."""
    workers = config.num_workers
    while workers <= _MAX_WORKERS:
        sharing = config.context_parallel
        while workers % sharing == 0:
            settings = {"num_workers": workers, "context_parallel": sharing}
            if changes := {key: value for key, value in settings.items() if getattr(config, key) != value}:
                yield changes
            sharing *= 2
        workers *= 2


def _smaller_batches(config: TrainConfig, cuda: bool) -> Iterator[dict[str, Any]]:
    """Changes of the batch that save memory, the cheapest first; the last one saves all that there is to save."""
    recompute: dict[str, Any] = {} if recomputes(config, cuda) else {"activation_checkpointing": True}
    sizes: list[int] = []
    least = math.ceil(config.max_length / config.context_parallel)
    while (size := (sizes or [config.micro_batch_tokens])[-1]) > least:
        sizes.append(max(size // 2, least))
    yield from ({"micro_batch_tokens": size} for size in sizes)
    yield recompute
    yield from (recompute | {"micro_batch_tokens": size} for size in sizes)


def check_memory(config: TrainConfig, lengths: Collection[int] = (), device: torch.device | None = None) -> str:
    """Says in a line whether a worker fits its device, as far as this process can know it.

    Args:
        lengths: Of the examples, in tokens; micro-batches are taken to be full where there are none.
        device: The worker's own; None in a process that is no worker.

    Raises:
        UserError: If weights, gradients and moments alone do not fit, or on a GPU the peak is far above it.
    """
    import torch

    if device is None:
        cuda = torch.cuda.is_available() if config.use_gpu is None else config.use_gpu
        device = torch.device("cuda" if cuda else "cpu")
    cuda, have = device.type == "cuda", _device_memory(config, device)
    need = memory_of(config, ModelShape.of(meta_model(config)), cuda, lengths)
    host = f", and {need.host / _GB:.1f} GB of its host's memory" if need.host else ""
    line = f"memory of a worker: about {need.total / _GB:.1f} GB ({need}){host}"
    if have is None:
        return f"{line}; set memory_gb to have it checked against a device"
    workers = f"each of {config.num_workers} worker(s)"
    if need.states > have:
        raise UserError(
            f"{config.model} needs {need.states / _GB:.1f} GB on {workers} for weights, gradients and moments alone, "
            f"and has {have / _GB:.1f} GB",
            remedy(config, cuda, have, lengths),
        )
    if cuda and need.total > _REFUSED_ABOVE * have:
        raise UserError(
            f"{config.model} needs about {need.total / _GB:.1f} GB on {workers} at the worst moment of a step "
            f"({need}), and has {have / _GB:.1f} GB",
            f"{remedy(config, cuda, have, lengths)}; or set memory_gb to what you know to be enough",
        )
    if need.total > have:
        return f"{line} of {have / _GB:.1f} GB: may not fit; {remedy(config, cuda, have, lengths)}"
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
