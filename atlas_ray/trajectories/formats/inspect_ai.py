"""Samples of inspect_ai's logs: `.eval` files, or the `samples` of a log that is JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats.protocol import Row
from atlas_ray.trajectories.formats.turns import NO_ENVIRONMENT, Turn, chat_format, holds, message_of
from atlas_ray.trajectories.item_ids import task_of

_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partly so, incorrect, no answer
_CHAT = chat_format(
    "messages",
    lambda turn, number: [
        message_of(turn, number, "role", "content", turn.get("tool_calls"), thoughts=("reasoning_content",))
    ],
    {"role", "content"},
)


def _turns(row: Row) -> Iterator[Turn]:
    """Messages in OpenAI's words: thoughts are parts of the content there, and a call's function is its name."""
    if error := row.get("error"):
        raise DataError(f"the sample failed: {error.get('message')}", "leave such rows out")
    for message in row["messages"]:
        turn = {key: message[key] for key in ("role", "content", "tool_call_id") if message.get(key) is not None}
        if isinstance(parts := turn.get("content"), list):
            thoughts = [part["reasoning"] for part in parts if part.get("type") == "reasoning"]
            turn["content"] = [part for part in parts if part.get("type") != "reasoning"]
            turn["reasoning_content"] = "\n".join(thoughts)
        if calls := message.get("tool_calls"):
            turn["tool_calls"] = [
                {"id": call.get("id"), "name": call["function"], "arguments": call.get("arguments")} for call in calls
            ]
        yield turn


def _tools(row: Row) -> Any:
    events = row.get("events") or ()
    return next((e["tools"] for e in events if e.get("event") == "model" and e.get("tools")), None)


def _reward(row: Row) -> float | None:
    """Of a sample that one scorer has scored; of several nothing says which counts."""
    given = [score["value"] for score in (row.get("scores") or {}).values()]
    value = _GRADES.get(given[0], given[0]) if len(given) == 1 and isinstance(given[0], str) else (given or [None])[0]
    is_one = len(given) == 1 and isinstance(value, int | float)
    return float(value) if is_one else None


FORMAT = replace(
    _CHAT,
    recognises=lambda row: "scores" in row and "epoch" in row and holds(row, "messages"),
    messages=lambda row: _CHAT.messages({"messages": list(_turns(row))}),
    task=lambda row: task_of({"env": NO_ENVIRONMENT, "item_id": f"{NO_ENVIRONMENT}_{row['id']}"}),
    reward=_reward,
    tools=lambda row: _CHAT.tools({"tools": _tools(row)}),
    unused=lambda row: (),  # what the log says of the run
)
