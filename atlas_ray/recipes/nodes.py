"""The nodes at hand: of the cluster that is named, else this machine. Ray is asked only where a cluster is named."""

from __future__ import annotations

import os
from pathlib import Path

from atlas_ray.cluster import placement
from atlas_ray.cluster.connection import connect, local_cpus
from atlas_ray.config import RayConfig
from atlas_ray.recipes.scheduling import Node

_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA's GPUs, of AMD's, of either in Windows


def named(config: RayConfig) -> bool:
    """Whether a cluster is named, by the settings or by RAY_ADDRESS."""
    return bool(config.address or os.environ.get("RAY_ADDRESS"))


def nodes_at_hand(config: RayConfig) -> list[Node]:
    """What there is, and what the cluster's autoscaler may add.

    Raises:
        AtlasError: If the cluster does not answer.
    """
    if not named(config):
        return [Node({"CPU": local_cpus(config), "GPU": gpus_here()})]
    connect(config)
    return [Node(resources, labels) for resources, labels in placement.nodes_at_most()]


def gpus_here() -> int:
    """GPUs of this machine."""
    if not any(Path(driver).exists() for driver in _DRIVERS):
        return 0  # torch would say the same, a second later
    import torch

    return torch.cuda.device_count()
