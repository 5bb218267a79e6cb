"""AgentTraj-L's rows: `conversations` of `from`, `value`, `loss`; what has `loss: true` is a step."""

from __future__ import annotations

from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import kind
from atlas_ray.trajectories.formats.protocol import DataFormat, holds, read_turn, turns_of
from atlas_ray.types import Message


def _message(turn: Any, number: int) -> Message:
    role, content = read_turn(turn, number, "from", "value")
    loss = turn.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise DataError(f"turn {number}: loss is neither true, false nor null but {kind(loss)}")
    if role == "assistant" and loss is None:
        raise DataError(f"turn {number}: an assistant turn has no loss flag")
    return Message(role, content, bool(loss))


FORMAT = DataFormat(
    recognises=holds("conversations", "loss"),
    messages=lambda row: [_message(turn, number) for number, turn in enumerate(turns_of(row, "conversations"), 1)],
)
