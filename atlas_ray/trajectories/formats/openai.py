"""OpenAI's rows: `messages` of `role`, `content`."""

from __future__ import annotations

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.turns import Turn, chat_format, role_and_text
from atlas_ray.types import Message

KEYS = {"role", "content"}


def message(turn: Turn, number: int) -> Message:
    """One turn."""
    if turn.get("tool_calls") or turn.get("function_call") or turn.get("role") in ("tool", "function"):
        raise DataError(f"turn {number} is a tool call", "write calls as text: `Action: ...`")
    for key in ("reasoning_content", "reasoning", "thinking"):
        if turn.get(key):
            raise DataError(f"turn {number} has thoughts apart from its content ({key})", "write them as text")
    return Message(*role_and_text(turn, number, "role", "content"))


FORMAT = chat_format("messages", message, KEYS)
