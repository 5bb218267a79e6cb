"""Commands that take a while at little cost, for tests that take something away meanwhile.

`python -m tests.support.slow_stages VERB ...` is `atlas --log-units VERB ...` with any data large enough for Ray's
workers, and a script in place of models.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.scripted import ScriptedConversation, ScriptedPolicy
from atlas_ray.types import Message, Task, Trajectory


def first_step(trajectory: Trajectory) -> list[int]:
    """A rule that takes its time."""
    time.sleep(1.0)
    return [1]


class SlowExpert(ScriptedPolicy):
    """An expert that thinks about each reply."""

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> ScriptedConversation:
        conversation = super().open(task, opening, sampling)
        generate = conversation.generate

        async def slowly(seed: int) -> Reply:
            await asyncio.sleep(0.3)
            return await generate(seed)

        conversation.generate = slowly  # type: ignore[method-assign]
        return conversation


if __name__ == "__main__":
    from atlas_ray.cli.main import main
    from atlas_ray.models import engine
    from atlas_ray.trajectories import index

    index.SMALL = -1
    engine.EngineSpec = lambda *_, **__: FixedSpec(SlowExpert("expert"))  # type: ignore[assignment,misc]
    main(["--log-units", *sys.argv[1:]])
