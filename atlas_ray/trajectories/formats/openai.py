"""OpenAI's rows: `messages` of `role`, `content`; steps by `weight`, without any as in ShareGPT."""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.protocol import (
    DataFormat,
    Row,
    conversation,
    holds,
    read_turn,
    without_acknowledgement,
)
from atlas_ray.types import Message


def _message(turn: Any, number: int) -> Message:
    if isinstance(turn, dict):
        if turn.get("tool_calls") or turn.get("function_call") or turn.get("role") in ("tool", "function"):
            raise DataError(f"turn {number} is a tool call", "write calls as text: `Action: ...`")
        if turn.get("weight") not in (None, 0, 1):
            raise DataError(f"turn {number}: weight {turn['weight']!r} is neither 0 nor 1")
    role, content = read_turn(turn, number, "role", "content")
    return Message(role, content, role == "assistant" and turn.get("weight") != 0)


def _messages(row: Row) -> list[Message]:
    messages = conversation(row, "messages", _message)
    flagged = any(turn.get("weight") is not None for turn in row["messages"])
    return messages if flagged else without_acknowledgement(messages)


FORMAT = DataFormat(recognises=lambda row: holds(row, "messages"), messages=_messages)
