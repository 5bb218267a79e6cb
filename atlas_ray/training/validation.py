"""Validation: tasks held back from training, and the loss on their trajectories.

Flows in: trajectories; flows out: those to train on and those held back, by task, so that no task stands in both. The
draw knows only the run's seed and the tasks, so that all arms of a recipe hold back the same ones. Test tasks have no
part in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_ray.errors import UserError
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.batching import collate, plan
from atlas_ray.training.masking import Example
from atlas_ray.training.objective import units
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Trajectory

if TYPE_CHECKING:
    import torch

    from atlas_ray.training.loop import StepLoss


def hold_back(
    trajectories: Sequence[Trajectory], fraction: float, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Splits trajectories by task.

    Args:
        fraction: Of the tasks; at least one is held back where it is above 0.

    Returns:
        Those to train on, and those held back.

    Raises:
        UserError: If nothing would be left to train on.
    """
    tasks = {(t.env, t.item_id) for t in trajectories}
    count = max(1, round(fraction * len(tasks))) if fraction else 0
    if count >= len(tasks) > 0:
        raise UserError(
            f"validation_fraction {fraction:g} holds back all {len(tasks)} tasks", "lower it, or set it to 0"
        )
    held = set(sorted(tasks, key=lambda task: (derive_seed(seed, "validation", *task), task))[:count])
    return (
        [t for t in trajectories if (t.env, t.item_id) not in held],
        [t for t in trajectories if (t.env, t.item_id) in held],
    )


def validation_loss(module: StepLoss, examples: Sequence[Example], config: TrainConfig, device: torch.device) -> float:
    """The loss, in nats, of all examples as one batch, as training counts it; every process takes part."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule

    from atlas_ray.training.loop import autocast, rank_and_world

    rank, world = rank_and_world()
    nll = torch.zeros((), dtype=torch.float64, device=device)
    module.eval()
    with torch.no_grad():
        lengths = [example.length for example in examples]
        for micro_batch in plan(range(len(examples)), lengths, lengths, world, config.micro_batch_tokens)[rank]:
            packed = collate([examples[i] for i in micro_batch], config.loss).to(device)
            with autocast(module, config, device):
                nll += module(packed)
    module.train()
    if isinstance(module, FSDPModule):
        module.reshard()  # without a backward pass behind it nothing else does
    if world > 1:
        dist.all_reduce(nll)
    return nll.item() / units(examples, config.loss)
