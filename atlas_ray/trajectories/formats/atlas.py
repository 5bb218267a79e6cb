"""The rows of this package's own table of trajectories: `messages` of `role`, `content`, `trainable`."""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.protocol import DataFormat, holds, read_turn, turns_of
from atlas_ray.types import Message


def _message(turn: Any, number: int) -> Message:
    role, content = read_turn(turn, number, "role", "content")
    if not isinstance(turn.get("trainable"), bool):
        raise DataError(f"turn {number}: trainable is neither true nor false")
    return Message(role, content, turn["trainable"])


FORMAT = DataFormat(
    recognises=holds("messages", "trainable"),
    messages=lambda row: [_message(turn, number) for number, turn in enumerate(turns_of(row, "messages"), 1)],
)
