"""Values of trajectories by rollouts that a test plays itself."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.selection.value.stage import value_steps
from atlas_ray.types import Episode, Selection, Trajectory


class FakePool:
    """Plays requests, and gives them back in another order."""

    def __init__(self, play: Callable[[EpisodeRequest], Episode], seed: int = 0) -> None:
        self.play, self.rng = play, random.Random(seed)
        self.requests: list[EpisodeRequest] = []

    async def result(self, request: EpisodeRequest) -> Episode:
        """An episode, sooner or later."""
        self.requests.append(request)
        for _ in range(self.rng.randrange(20)):
            await asyncio.sleep(0)
        return self.play(request)


def estimate_values(
    pool: FakePool,
    selector: ValueSelector,
    trajectories: Sequence[Trajectory],
    seed: int,
    environments: EnvironmentsConfig | None = None,
) -> list[Selection]:
    """Selections in the order of their completion."""

    async def estimate() -> list[Selection]:
        values = [value_steps(t, pool.result, selector, seed, environments) for t in trajectories]
        return [await one for one in asyncio.as_completed(values)]

    return asyncio.run(estimate())
