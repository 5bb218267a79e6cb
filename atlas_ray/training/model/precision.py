"""What all workers of a training compute in. Flows in: a configuration; flows out: the same, settled."""

from __future__ import annotations

import torch
import torch.distributed as dist

from atlas_ray.models.source import fast_in_bfloat16
from atlas_ray.training.settings import TrainConfig


def with_dtype(config: TrainConfig, width: int, device: torch.device) -> TrainConfig:
    """The configuration with `dtype: auto` settled: bfloat16 where every worker's device is fast in it.

    Args:
        width: Of the model's layers.
        device: This worker's.
    """
    if config.dtype != "auto":
        return config
    fast = torch.tensor(float(device.type == "cuda" or fast_in_bfloat16(width)), device=device)
    if dist.is_initialized():
        dist.all_reduce(fast, dist.ReduceOp.MIN)
    return config.model_copy(update={"dtype": "bfloat16" if fast.item() else "float32"})
