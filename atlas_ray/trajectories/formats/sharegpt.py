"""ShareGPT's rows: `conversations` of `from`, `value`; a `function_call` holds the call, or a list of them."""

from __future__ import annotations

from atlas_ray.trajectories.formats.turns import Turn, chat_format, message_of
from atlas_ray.types import Message

KEYS = {"from", "value"}


def message(turn: Turn, number: int) -> list[Message]:
    """One turn."""
    return [message_of(turn, number, "from", "value")]


# Calls in a row are made at once: nothing answers the first before the second.
FORMAT = chat_format("conversations", message, KEYS, belong=lambda last, m: bool(last.calls and m.calls))
