"""The rows of this package's own table of trajectories: `messages` of `role`, `content`, `trainable`."""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.protocol import DataFormat, conversation, holds, read_turn
from atlas_ray.types import Message


def _message(turn: Any, number: int) -> Message:
    role, content = read_turn(turn, number, "role", "content")
    if not isinstance(turn.get("trainable"), bool):
        raise DataError(f"turn {number}: trainable is neither true nor false")
    return Message(role, content, turn["trainable"])


FORMAT = DataFormat(
    recognises=lambda row: holds(row, "messages", "trainable"),
    messages=lambda row: conversation(row, "messages", _message),
)
