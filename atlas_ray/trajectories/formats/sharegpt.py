"""ShareGPT's rows: `conversations` of `from`, `value`; all assistant turns but an opening "OK" are steps."""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.protocol import (
    DataFormat,
    conversation,
    holds,
    read_turn,
    without_acknowledgement,
)
from atlas_ray.types import Message


def _message(turn: Any, number: int) -> Message:
    role, content = read_turn(turn, number, "from", "value")
    if turn.get("loss") is not None:
        raise DataError(f"turn {number} has a loss flag, which ShareGPT has not", "set `format: agenttraj`")
    return Message(role, content, role == "assistant")


FORMAT = DataFormat(
    recognises=lambda row: holds(row, "conversations"),
    messages=lambda row: without_acknowledgement(conversation(row, "conversations", _message)),
)
