"""Messages as chat templates and endpoints read them: OpenAI's form.

Flows in: messages; flows out: dicts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from atlas_ray.types import Message, with_call_ids

THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys under which templates and servers look for a thought


def as_turns(
    messages: Sequence[Message],
    arguments: Callable[[str], Any] = str,
    guard: Callable[[str], str] = str,
) -> Iterator[dict[str, Any]]:
    """Messages one by one, without thoughts; calls without an id get one, and results the ids and names of their calls.

    Args:
        messages: A conversation.
        arguments: What becomes of a call's arguments, a JSON object as text.
        guard: What becomes of texts.
    """
    asked = dict[str, str]()
    for m in with_call_ids(messages):
        turn: dict[str, Any] = {"role": m.role, "content": guard(m.content)}
        if m.calls:
            asked = {call.id: call.name for call in m.calls}
            functions = [{"name": c.name, "arguments": arguments(guard(c.arguments))} for c in m.calls]
            turn["tool_calls"] = [
                {"type": "function", "id": call.id, "function": function}
                for call, function in zip(m.calls, functions, strict=True)
            ]
        if m.role == "tool":
            turn |= {"tool_call_id": m.call_id, "name": asked.get(m.call_id, "")}
        yield turn
