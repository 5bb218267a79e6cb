"""ShareGPT's rows: `conversations` of `from`, `value`."""

from __future__ import annotations

from atlas_ray.trajectories.formats.turns import Turn, chat_format, role_and_text
from atlas_ray.types import Message

KEYS = {"from", "value"}


def message(turn: Turn, number: int) -> Message:
    """One turn."""
    return Message(*role_and_text(turn, number, "from", "value"))


FORMAT = chat_format("conversations", message, KEYS)
