"""OpenAI's rows: `messages` of `role`, `content`, `tool_calls`; thoughts as the servers of open models write them."""

from __future__ import annotations

from atlas_ray.trajectories.formats.turns import Turn, chat_format, message_of
from atlas_ray.types import Message

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def _message(turn: Turn, number: int) -> list[Message]:
    calls = turn.get("tool_calls") or turn.get("function_call")
    return [message_of(turn, number, "role", "content", calls, _THOUGHTS)]


FORMAT = chat_format(
    "messages", _message, {"role", "content", "tool_calls", "function_call", "tool_call_id", *_THOUGHTS}
)
