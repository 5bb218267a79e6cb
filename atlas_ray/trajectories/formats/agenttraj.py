"""AgentTraj-L's rows: `conversations` of `from`, `value`, `loss`; what has `loss: true` is a step.

Rows that are written have `gold` and `reward` too, `env` beside an item id that does not name it, and `id` where the
trajectory is not the first of its task: they read back as they were. Tools, calls and thoughts stand in them as in
ShareGPT's.
"""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.sharegpt import KEYS, message, turn_of
from atlas_ray.trajectories.formats.turns import Turn, chat_format, holds, ids_of
from atlas_ray.trajectories.item_ids import environment_of, task_of
from atlas_ray.types import Message, Trajectory

FORMAT = chat_format(
    "conversations",
    message,
    KEYS,
    recognises=lambda row: holds(row, "conversations", lambda turn: "loss" in turn),
    flagged=True,
    task=task_of,
)


def to_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a row.

    Raises:
        DataError: If there is no place for a part of it.
    """
    row = ids_of(trajectory) | {"conversations": [_turn(m) for m in trajectory.messages]}
    if _env_in(trajectory.item_id) == trajectory.env:
        del row["env"]
    if trajectory.tools is not None:
        row["tools"] = trajectory.tools
    if trajectory.gold is not None:
        row["gold"] = [{"step": g.step, "rank": g.rank, "category": g.category.value} for g in trajectory.gold]
    return row


def _turn(message: Message) -> Turn:
    turn = turn_of(message)
    return {"from": turn.pop("from"), "loss": message.trainable if message.role == "assistant" else None} | turn


def _env_in(item_id: str) -> str | None:
    try:
        return environment_of(item_id)
    except DataError:
        return None
