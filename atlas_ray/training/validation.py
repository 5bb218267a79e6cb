"""Validation: tasks held back from training; `loop.validation_loss` takes the loss on their trajectories.

Flows in: trajectories; flows out: those to train on and those held back, by task, so that no task stands in both. The
draw knows only the run's seed and the tasks, so that all arms of a recipe hold back the same ones. Test tasks have no
part in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from atlas_ray.errors import UserError
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.types import Trajectory


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
