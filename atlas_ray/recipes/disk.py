"""What a recipe's training takes where its run folders lie. Flows in: a recipe's trainings; flows out: bytes.

No weights are loaded: a model in a folder is counted from its configuration, any other is as large as
`assume.parameters` says, and written in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import BASE
from atlas_ray.training.estimate import Disk, ModelShape, disk_of, meta_model
from atlas_ray.training.settings import TrainConfig

_WRITTEN, _STATE = 2, 12  # bytes of a weight: exported; in float32 with Adam's moments


def disks_of(recipe: Recipe, trainings: Iterable[TrainConfig]) -> list[Disk]:
    """Of each training; none of tiny models."""
    if BASE in recipe.tiny:
        return []
    known: dict[tuple[str, bool], ModelShape] = {}
    return [_disk(c, recipe.config.assume.parameters, known) for c in trainings]


def _disk(config: TrainConfig, assumed: float, known: dict[tuple[str, bool], ModelShape]) -> Disk:
    if not Path(config.model).is_dir():  # adapters and their checkpoints are taken for nothing
        alone = config.lora is not None and config.lora.export == "adapter"
        state = 0 if config.lora is not None else _STATE * assumed
        return Disk(0 if alone else _WRITTEN * assumed, state, config.keep_checkpoint)
    key = config.model, config.lora is not None
    if key not in known:
        known[key] = ModelShape.of(meta_model(config))
    return disk_of(config, known[key])


def at_most(disks: Iterable[Disk], at_once: int = 1) -> float:
    """Bytes while the last ones train and all others lie there, finished."""
    found = list(disks)
    beside = sorted((disk.peak - disk.finished for disk in found), reverse=True)
    return sum(disk.finished for disk in found) + sum(beside[:at_once])


def disk_line(recipe: Recipe, at_once: int) -> Iterable[str]:
    """A line of the plan, for so many trainings at a time."""
    if disks := disks_of(recipe, recipe.train.values()):
        finished, checkpoint = sum(disk.finished for disk in disks), max(disk.checkpoint for disk in disks)
        trains = f"{at_once} x what trains" if at_once > 1 else "what trains"
        yield (
            f"disk: at most {at_most(disks, at_once) / 1e9:,.0f} GB = {finished / 1e9:,.0f} GB of {len(disks)} trained "
            f"models (they stay) + {trains} has beside its model: two checkpoints of {checkpoint / 1e9:,.0f} GB"
        )
