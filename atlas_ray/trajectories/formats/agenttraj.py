"""AgentTraj-L's rows: `conversations` of `from`, `value`, `loss`; what has `loss: true` is a step.

Rows that are written have `gold` and `reward` too, and where reading could not infer them `env`, beside an item id that
does not name it, and `id`, where earlier trajectories of the task are missing: they read back as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.sharegpt import KEYS, message
from atlas_ray.trajectories.formats.turns import chat_format, holds
from atlas_ray.trajectories.item_ids import UniqueIds, environment_of, task_of
from atlas_ray.types import Message, Trajectory

FORMAT = chat_format(
    "conversations",
    message,
    KEYS,
    recognises=lambda row: holds(row, "conversations", lambda turn: "loss" in turn),
    flagged=True,
    task=task_of,
)
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def to_agenttraj(trajectories: Iterable[Trajectory]) -> list[dict[str, Any]]:
    """Rows in the order given."""
    rows, ids = [], UniqueIds()
    for trajectory in trajectories:
        row = _row(trajectory)
        if ids.free(trajectory.task.id) != trajectory.id:
            row["id"] = trajectory.id
        ids.take(trajectory.env, trajectory.id)
        rows.append(row)
    return rows


def _row(trajectory: Trajectory) -> dict[str, Any]:
    row: dict[str, Any] = {
        "conversations": [_turn(m) for m in trajectory.messages],
        "item_id": trajectory.item_id,
    }
    if _env_in(trajectory.item_id) != trajectory.env:
        row["env"] = trajectory.env
    if trajectory.reward is not None:
        row["reward"] = trajectory.reward
    if trajectory.gold is not None:
        row["gold"] = [{"step": g.step, "rank": g.rank, "category": g.category.value} for g in trajectory.gold]
    return row


def _turn(message: Message) -> dict[str, Any]:
    loss = message.trainable if message.role == "assistant" else None
    return {"from": _SPEAKERS[message.role], "loss": loss, "value": message.content}


def _env_in(item_id: str) -> str | None:
    try:
        return environment_of(item_id)
    except DataError:
        return None
