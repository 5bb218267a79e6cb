"""Anthropic's rows: `messages` whose content is a text or blocks: text, thinking, tool_use, tool_result."""

from __future__ import annotations

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.calls import calls_of
from atlas_ray.trajectories.formats.turns import Turn, chat_format, holds, message_of, text_of
from atlas_ray.types import Message

_BLOCKS = {"thinking", "tool_use", "tool_result"}


def _is_theirs(turn: Turn) -> bool:
    content = turn.get("content")
    return isinstance(content, list) and any(isinstance(part, dict) and part.get("type") in _BLOCKS for part in content)


def _messages(turn: Turn, number: int) -> list[Message]:
    if not _is_theirs(turn):
        return [message_of(turn, number, "role", "content")]
    where, role = f"turn {number}", turn.get("role")
    blocks = {kind: [part for part in turn["content"] if part.get("type") == kind] for kind in _BLOCKS}
    rest = [part for part in turn["content"] if part.get("type") not in _BLOCKS]
    if role == "assistant" and not blocks["tool_result"]:
        thought = "\n".join(str(part.get("thinking") or "") for part in blocks["thinking"])
        calls = calls_of(blocks["tool_use"], where)
        return [Message("assistant", text_of(rest, where), thought=thought, calls=calls)]
    if role != "user" or blocks["tool_use"] or blocks["thinking"]:
        raise DataError(f"{where}: a block of {role!r} that only the other side writes", "leave such rows out")
    results = [
        Message("tool", text_of(part.get("content") or "", where), call_id=str(part.get("tool_use_id") or ""))
        for part in blocks["tool_result"]
    ]
    return results + ([Message("user", text_of(rest, where))] if rest else [])


FORMAT = chat_format(
    "messages", _messages, {"role", "content"}, recognises=lambda row: holds(row, "messages", _is_theirs)
)
