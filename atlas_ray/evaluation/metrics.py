"""What episodes say about a model in one environment, with intervals. Flows in: episodes; flows out: one result."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.types import Episode, StopReason

OVERFLOW_MARKED = 0.1  # share of overflowed episodes from which a figure is marked: it says little of the policy
_RESAMPLES = 2000
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class EnvironmentResult:
    """One model in one environment. Rates and rewards lie in [0, 1] and are None where no episode counts.

    Samples of one task are averaged first, and the intervals are over tasks.

    Attributes:
        held: Whether the paper trains on the environment.
        metric: What the paper's tables print of it.
        n: Episodes that count.
        ci95: Wilson limits of `success`.
        reward_ci95, progress_ci95: Percentile bootstrap limits.
        excluded: Infrastructure failures by cause; they do not count.
        flagged: Whether too many were excluded, or episodes are missing.
        overflowed: Share of the episodes that count which ended because the conversation no longer fitted the model's
            context; None where none counts.
    """

    env: str
    held: Literal["in", "out"]
    metric: Literal["success", "reward", "progress"]
    n: int
    distinct_tasks: int
    success: float | None
    ci95: tuple[float, float] | None
    reward: float | None
    reward_ci95: tuple[float, float] | None
    progress: float | None
    progress_ci95: tuple[float, float] | None
    excluded: dict[str, int]
    flagged: bool
    overflowed: float | None = None

    @property
    def figure(self) -> tuple[float | None, tuple[float, float] | None]:
        """What the paper's tables print of the environment, with its limits."""
        limits = {"success": self.ci95, "reward": self.reward_ci95, "progress": self.progress_ci95}
        return getattr(self, self.metric), limits[self.metric]


def summarise(
    episodes: Sequence[Episode], spec: EnvironmentSpec, n_expected: int, max_excluded: float = 0.02
) -> EnvironmentResult:
    """Sums up the episodes of one model in one environment.

    Args:
        episodes: All that were played; infrastructure failures are excluded and counted.
        spec: The environment.
        n_expected: Episodes that were asked for.
        max_excluded: Share of them from which the result is flagged once more are excluded.
    """
    counted = [e for e in episodes if not e.stop_reason.is_infrastructure]
    excluded = Counter(str(e.stop_reason) for e in episodes if e.stop_reason.is_infrastructure)
    success, reward, progress = (list(by_task(counted, name).values()) for name in ("success", "reward", "progress"))
    return EnvironmentResult(
        env=spec.name,
        held=spec.held,
        metric=spec.metric,
        n=len(counted),
        distinct_tasks=len(success),
        success=fmean(success) if success else None,
        ci95=wilson(fmean(success), len(success)) if success else None,
        reward=fmean(reward) if reward else None,
        reward_ci95=bootstrap(reward, derive_seed("bootstrap", spec.name)) if reward else None,
        progress=fmean(progress) if progress else None,
        progress_ci95=bootstrap(progress, derive_seed("bootstrap", spec.name)) if progress else None,
        excluded=dict(sorted(excluded.items())),
        flagged=excluded.total() > max_excluded * n_expected or len(episodes) < n_expected,
        overflowed=overflowed(counted),
    )


def overflowed(counted: Sequence[Episode]) -> float | None:
    """Share of episodes that ended with a full context; None where there are none."""
    return fmean(e.stop_reason is StopReason.CONTEXT_OVERFLOW for e in counted) if counted else None


def many_overflowed(share: float | None) -> bool:
    """Whether so many episodes ended with a full context that a figure is to be read with care."""
    return share is not None and share >= OVERFLOW_MARKED


def wilson(rate: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a rate among `n` tasks (Wilson 1927); with several samples a task, of their mean."""
    centre = rate + _Z * _Z / (2 * n)
    half = _Z * math.sqrt(rate * (1 - rate) / n + _Z * _Z / (4 * n * n))
    scale = 1 + _Z * _Z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(values: Sequence[float], seed: int, resamples: int = _RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; the same for the same values and seed."""
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(resamples))
    tail = resamples // 40
    return means[tail], means[-1 - tail]


def by_task(episodes: Sequence[Episode], metric: Literal["success", "reward", "progress"]) -> dict[str, float]:
    """Mean over each task's samples, ordered by task; infrastructure failures say nothing."""
    tasks: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        if not episode.stop_reason.is_infrastructure:
            tasks[episode.item_id].append(float(getattr(episode, metric)))
    return {task: fmean(tasks[task]) for task in sorted(tasks)}
