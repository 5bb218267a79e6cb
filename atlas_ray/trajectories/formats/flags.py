"""Which turns are to be learnt, as tools of the field say it: a flag on the turn, or on the row.

A flag that is known is honoured. A key that speaks of loss in any other way refuses the row, for left aside it would
change what is trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_ray.errors import DataError

FLAGS = ("loss", "trainable", "train", "training", "weight")
_EXPLICIT = {"loss", "trainable"}  # stand on all assistant turns; without the others a turn is learnt
_WORDS = "loss|mask|masks|masked|train|trainable|training|weights?|labels?|chosen|rejected|kto"
_SHAPING = re.compile(rf"(?:.*_)?(?:{_WORDS})(?:_.*)?", re.IGNORECASE)


def flag_of(holder: Mapping[str, Any], where: str) -> bool | None:
    """What the flags of a turn or a row say, or None where it has none.

    Raises:
        DataError: If they contradict each other, or one says neither yes nor no, or a key shapes training otherwise.
    """
    said = {key: value for key, value in holder.items() if value is not None and _SHAPING.fullmatch(key)}
    for key, value in said.items():
        if key not in FLAGS:
            remedy = "mark each assistant turn with `loss: true` or `false` instead, or take the key out"
            raise DataError(f"{where} has the key {key!r}, which shapes training and is not read", remedy)
        if value not in (True, False):  # 1 and 0 too
            raise DataError(f"{where}: {key} {value!r} is neither true nor false", "learn a turn or not")
    if len(set(map(bool, said.values()))) > 1:
        raise DataError(f"{where}: {' and '.join(said)} contradict each other", "leave the one that is meant")
    return bool(next(iter(said.values()))) if said else None


def learnt(turns: Sequence[Mapping[str, Any]], is_reply: Sequence[bool], required: bool) -> list[bool] | None:
    """Which turns their flags mark as to be learnt, or None where no turn has a flag.

    Args:
        turns: Of one conversation.
        is_reply: Whether each is an assistant's.
        required: Whether every one of these needs a flag.

    Raises:
        DataError: If one has none where it needs one, or as `flag_of`.
    """
    flags = [flag_of(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    if not required and all(flag is None for flag in flags):
        return None
    explicit = required or any(turn.get(key) is not None for turn in turns for key in _EXPLICIT)
    for number, (flag, reply) in enumerate(zip(flags, is_reply, strict=True), 1):
        if reply and explicit and flag is None:
            raise DataError(f"turn {number}: an assistant turn has no loss flag", "mark all or none")
    return [reply if flag is None else flag for flag, reply in zip(flags, is_reply, strict=True)]
