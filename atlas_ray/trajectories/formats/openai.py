"""OpenAI's rows: `messages` of `role`, `content`, `tool_calls`; thoughts as the servers of open models write them.

Rows that are written say on each assistant turn whether it is learnt, in one of two dialects. OpenAI's own is strict:
`weight` 0 or 1, thoughts in `<think>` before the text, and no key that its schema does not know. The open trainers' has
`train`, `reasoning_content`, the names of tools that answer, and the trajectory's id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from atlas_ray.trajectories.formats.turns import Turn, chat_format, ids_of, inline_thought, message_of
from atlas_ray.types import Message, ToolCall, Trajectory, with_call_ids

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def _message(turn: Turn, number: int) -> list[Message]:
    calls = turn.get("tool_calls") or turn.get("function_call")
    return [message_of(turn, number, "role", "content", calls, _THOUGHTS)]


FORMAT = chat_format(
    "messages", _message, {"role", "content", "tool_calls", "function_call", "tool_call_id", *_THOUGHTS}
)


def to_openai_row(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as a row of OpenAI's fine-tuning: it reads back equal, but for its id."""
    turns = [
        {"role": m.role, "content": inline_thought(m.thought, m.content)}
        | _called(m)
        | ({"weight": int(m.trainable)} if m.role == "assistant" else {})
        for m in with_call_ids(trajectory.messages)
    ]
    return {"messages": turns} | ({} if trajectory.tools is None else {"tools": json.loads(trajectory.tools)})


def to_open_row(trajectory: Trajectory, *, inline: bool = False) -> dict[str, Any]:
    """A trajectory as a row of open trainers, which reads back equal.

    Args:
        trajectory: Any.
        inline: Whether thoughts stand in `<think>` before the text, for chat templates that know none.

    Parameters of tools stand there as JSON text, as arguments of calls do: a table would give every object all keys
    that any other has.
    """
    tools = json.loads(trajectory.tools or "[]")
    for tool in tools:
        if "parameters" in tool["function"]:
            tool["function"]["parameters"] = json.dumps(tool["function"]["parameters"], ensure_ascii=False)
    return (
        ids_of(trajectory) | {"messages": list(_open_turns(trajectory, inline))} | ({"tools": tools} if tools else {})
    )


def _open_turns(trajectory: Trajectory, inline: bool) -> Iterator[Turn]:
    names = dict[str, str]()
    for m in with_call_ids(trajectory.messages):
        names |= {call.id: call.name for call in m.calls}
        content = inline_thought(m.thought, m.content) if inline else m.content
        turn: Turn = {"role": m.role, "content": content} | _called(m)
        if m.role == "assistant":
            turn["train"] = m.trainable
        if m.thought and not inline:
            turn["reasoning_content"] = m.thought
        if m.role == "tool":
            turn["name"] = names.get(m.call_id, "")
        yield turn


def _called(message: Message) -> Turn:
    calls = {"tool_calls": [_tool_call(call) for call in message.calls]} if message.calls else {}
    return calls | ({"tool_call_id": message.call_id} if message.call_id else {})


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
