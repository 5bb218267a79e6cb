"""Episodes of one environment, as metrics sum them up."""

from __future__ import annotations

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.types import Episode, StopReason

SPEC = EnvironmentSpec("maze", "in", 15, "success", "first")


def episode(
    task: int, reward: float, sample: int = 0, stop: StopReason = StopReason.DONE, progress: float = 0.0
) -> Episode:
    return Episode(
        f"maze/maze_{task}@{sample}+0",
        "maze",
        f"maze_{task}",
        "arm",
        sample,
        0,
        0,
        (),
        reward,
        reward,
        reward >= 1,
        progress,
        3,
        stop,
        error="broken" if stop.is_infrastructure else None,
    )
