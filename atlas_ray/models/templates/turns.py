"""Messages as chat templates and endpoints read them: OpenAI's form.

Flows in: messages; flows out: dicts. Calls without an id get one, and results the ids and names of their calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from atlas_ray.types import Message


def as_turns(
    messages: Sequence[Message],
    arguments: Callable[[str], Any] = str,
    guard: Callable[[str], str] = str,
) -> Iterator[dict[str, Any]]:
    """Messages one by one, without thoughts.

    Args:
        messages: A conversation.
        arguments: What becomes of a call's arguments, a JSON object as text.
        guard: What becomes of texts.
    """
    asked = dict[str, str]()
    for place, m in enumerate(messages):
        turn: dict[str, Any] = {"role": m.role, "content": guard(m.content)}
        if m.calls:
            ids = [call.id or f"call{place:04}{n % 10}" for n, call in enumerate(m.calls)]
            functions = [{"name": c.name, "arguments": arguments(guard(c.arguments))} for c in m.calls]
            turn["tool_calls"] = [
                {"type": "function", "id": id_, "function": function}
                for id_, function in zip(ids, functions, strict=True)
            ]
            asked = {id_: call.name for id_, call in zip(ids, m.calls, strict=True)}
        if m.role == "tool":
            id_ = m.call_id or next(iter(asked), "")
            turn |= {"tool_call_id": id_, "name": asked.pop(id_, "")}
        yield turn
