"""ShareGPT's rows: `conversations` of `from`, `value`; a `function_call` holds the call, or a list of them.

Rows that are written say `train: true` or `false` on each assistant turn, and hold a thought in `<think>` before what
is said or called.
"""

from __future__ import annotations

import json
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.turns import Turn, chat_format, ids_of, inline_thought, message_of
from atlas_ray.types import Message, ToolCall, Trajectory

KEYS = {"from", "value", "tool_call_id"}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def message(turn: Turn, number: int) -> list[Message]:
    """One turn."""
    return [message_of(turn, number, "from", "value")]


# Calls in a row are made at once: nothing answers the first before the second.
FORMAT = chat_format("conversations", message, KEYS, belong=lambda last, m: bool(last.calls and m.calls))


def turn_of(message: Message) -> Turn:
    """A message as a turn without a flag.

    Raises:
        DataError: If it holds a text beside calls, for which there is no place.
    """
    who, value = _SPEAKERS[message.role], message.content
    if message.calls:
        if message.content.strip():
            raise DataError("an assistant turn holds a text beside its calls, and ShareGPT's form has no place for it")
        calls = [_call(call) for call in message.calls]
        who, value = "function_call", json.dumps(calls if len(calls) > 1 else calls[0], ensure_ascii=False)
    turn = {"from": who, "value": inline_thought(message.thought, value)}
    return turn | ({"tool_call_id": message.call_id} if message.call_id else {})


def _call(call: ToolCall) -> dict[str, Any]:
    named = {"name": call.name, "arguments": json.loads(call.arguments)}
    return named | ({"id": call.id} if call.id else {})


def to_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a row that reads back equal, but for how the JSON of calls is spaced.

    Raises:
        DataError: If there is no place for a part of it.
    """
    turns = [turn_of(m) | ({"train": m.trainable} if m.role == "assistant" else {}) for m in trajectory.messages]
    tools = {} if trajectory.tools is None else {"tools": trajectory.tools}
    return ids_of(trajectory) | {"conversations": turns} | tools
