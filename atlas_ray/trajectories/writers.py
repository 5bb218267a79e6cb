"""Trajectories to AgentTraj-L's JSON form, with our keys `gold` and `reward`.

Two more keys appear only where reading could not infer them: `env` beside an item id that does not name it, and `id`
where earlier trajectories of the task are missing. Flows in: trajectories; flows out: rows or a file that
`read_trajectories` reads back as they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from atlas_ray.errors import DataError, UserError
from atlas_ray.trajectories.item_ids import UniqueIds, environment_of
from atlas_ray.types import Message, Trajectory

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


def write_agenttraj(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Writes a `.json` file whole or not at all.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(to_agenttraj(trajectories), ensure_ascii=False, indent=1) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None


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
