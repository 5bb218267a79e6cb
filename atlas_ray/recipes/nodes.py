"""The nodes at hand: of the cluster that is named, else this machine. Ray is asked only where a cluster is named."""

from __future__ import annotations

import os

from atlas_ray.cluster import placement
from atlas_ray.cluster.connection import connect, local_cpus
from atlas_ray.config import RayConfig
from atlas_ray.recipes.scheduling import Node


def named(config: RayConfig) -> bool:
    """Whether a cluster is named, by the settings or by RAY_ADDRESS."""
    return bool(config.address or os.environ.get("RAY_ADDRESS"))


def nodes_at_hand(config: RayConfig) -> list[Node]:
    """What there is, and what the cluster's autoscaler may add.

    Raises:
        AtlasError: If the cluster does not answer.
    """
    if not named(config):
        import torch

        return [Node({"CPU": local_cpus(config), "GPU": torch.cuda.device_count()})]
    connect(config)
    return [Node(resources, labels) for resources, labels in placement.nodes_at_most()]
