"""Items of OpenAI's Responses API: messages, reasoning, function calls and their outputs, as `items`, or as `input` and
`output`.
"""

from __future__ import annotations

from dataclasses import replace

from atlas_ray.trajectories.formats.calls import calls_of
from atlas_ray.trajectories.formats.protocol import Row
from atlas_ray.trajectories.formats.turns import Turn, chat_format, holds, message_of, text_of
from atlas_ray.types import Message

_OWN = ("function_call", "function_call_output", "reasoning")
_LISTS = ("items", "input", "output")


def _messages(item: Turn, number: int) -> list[Message]:
    where, kind = f"turn {number}", item.get("type")
    if kind == "reasoning":
        parts = [*(item.get("content") or ()), *(item.get("summary") or ())]
        return [Message("assistant", "", thought="\n".join(str(part.get("text") or "") for part in parts))]
    if kind == "function_call":
        return [Message("assistant", "", calls=calls_of([item], where))]
    if kind == "function_call_output":
        return [Message("tool", text_of(item.get("output"), where), call_id=str(item.get("call_id") or ""))]
    return [message_of(item, number, "role", "content")]


# What an assistant thinks, says and calls without a word from outside is one turn.
_CHAT = chat_format(
    "items",
    _messages,
    {"type", "role", "content", "summary", "call_id", "name", "arguments", "output", "id", "status"},
    system="instructions",
    belong=lambda last, m: True,
)


def _in_one_list(row: Row) -> Row:
    question = row.get("input")
    lists = {"input": [{"role": "user", "content": question}]} if isinstance(question, str) else {}
    items = [item for key in _LISTS for item in lists.get(key) or row.get(key) or ()]
    return {key: value for key, value in row.items() if key not in _LISTS} | {"items": items}


FORMAT = replace(
    _CHAT,
    recognises=lambda row: any(holds(row, key, lambda item: item.get("type") in _OWN) for key in _LISTS),
    messages=lambda row: _CHAT.messages(_in_one_list(row)),
    unused=lambda row: _CHAT.unused(_in_one_list(row)),
)
