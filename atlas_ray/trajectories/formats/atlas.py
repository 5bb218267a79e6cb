"""The rows of this package's own table of trajectories: `messages` of `role`, `content`, `trainable` and calls."""

from __future__ import annotations

from atlas_ray.trajectories.formats.turns import Turn, chat_format, holds, message_of
from atlas_ray.types import Message


def _message(turn: Turn, number: int) -> list[Message]:
    return [message_of(turn, number, "role", "content", turn.get("calls"), ("thought",))]


FORMAT = chat_format(
    "messages",
    _message,
    {"role", "content", "thought", "calls", "call_id"},
    recognises=lambda row: holds(row, "messages", lambda turn: "trainable" in turn),
    flagged=True,
)
