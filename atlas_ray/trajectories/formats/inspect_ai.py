"""Samples of inspect_ai's logs: `.eval` files, or the `samples` of a log that is JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats import openai
from atlas_ray.trajectories.formats.protocol import Row
from atlas_ray.trajectories.formats.turns import NO_ENVIRONMENT, Turn, holds
from atlas_ray.trajectories.item_ids import task_of

_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partly so, incorrect, no answer


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
    values = [score["value"] for score in (row.get("scores") or {}).values()]
    if len(values) != 1:
        return None
    value = _GRADES.get(values[0]) if isinstance(values[0], str) else values[0]
    return float(value) if isinstance(value, int | float) else None


FORMAT = replace(
    openai.FORMAT,
    recognises=lambda row: "scores" in row and "epoch" in row and holds(row, "messages"),
    messages=lambda row: openai.FORMAT.messages({"messages": list(_turns(row))}),
    task=lambda row: task_of({"env": NO_ENVIRONMENT, "item_id": f"{NO_ENVIRONMENT}_{row['id']}"}),
    reward=_reward,
    tools=lambda row: openai.FORMAT.tools({"tools": _tools(row)}),
    unused=lambda row: (),  # what the log says of the run
)
