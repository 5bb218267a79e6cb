"""What makes a trajectory usable: the checks that every row passes, whatever its format.

Flows in: messages, reward and gold as read; flows out: the same with their types settled, or a `DataError` that says
what is wrong in words for `rejected.jsonl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.types import Category, GoldStep, Message


def check_messages(messages: Sequence[Message]) -> None:
    """Checks the shape of a conversation; it may end with an observation that nobody answers.

    Raises:
        DataError: If turns are missing, empty or out of turn, or no assistant turn is trainable.
    """
    if not messages:
        raise DataError("the conversation is empty")
    expected = "system" if messages[0].role == "system" else "user"
    for turn, message in enumerate(messages, 1):
        if message.role != expected:
            raise DataError(f"turn {turn} is by {message.role!r} where {expected!r} must speak")
        if not message.content.strip():
            raise DataError(f"turn {turn} ({message.role}) is empty")
        if message.trainable and message.role != "assistant":
            raise DataError(f"turn {turn} ({message.role}) is marked for training")
        expected = "assistant" if message.role == "user" else "user"
    if not any(m.trainable for m in messages):
        raise DataError("no assistant turn is trainable")


def check_text(value: Any, what: str) -> str:
    """A string that can be written as UTF-8.

    Raises:
        DataError: For anything else, a lone surrogate included.
    """
    if not isinstance(value, str):
        raise DataError(f"{what} is not a string but {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{what} holds half a surrogate pair, which is no text") from None
    return value


def check_reward(value: Any) -> float | None:
    """A final reward in [0, 1], or None where the data does not say.

    Raises:
        DataError: For anything else, NaN included.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"the reward is not a number but {kind(value)}")
    if not 0 <= value <= 1:  # nor is NaN, and a whole number of any length compares
        raise DataError(f"the reward {value} is not in [0, 1]")
    return float(value)


def check_gold(rows: Any, n_steps: int) -> tuple[GoldStep, ...] | None:
    """The expert's annotation: rows of step (1..`n_steps`), rank (from 1) and category, or None where there is none.

    Raises:
        DataError: If a row is malformed, a step is out of range or annotated twice, or a category is unknown.
    """
    if rows is None:
        return None
    if not isinstance(rows, list):
        raise DataError(f"gold is not a list but {kind(rows)}")
    gold = tuple(_gold_step(row, n_steps) for row in rows)
    if len({g.step for g in gold}) < len(gold):
        raise DataError("gold annotates a step twice")
    return gold


def _gold_step(row: Any, n_steps: int) -> GoldStep:
    if not isinstance(row, dict) or row.keys() != {"step", "rank", "category"}:
        raise DataError("a gold entry must hold exactly step, rank and category")
    for key in ("step", "rank"):
        if isinstance(row[key], bool) or not isinstance(row[key], int) or not 1 <= row[key] < 2**31:
            raise DataError(f"gold {key} {row[key]!r} is not a whole number from 1")
    if row["step"] > n_steps:
        raise DataError(f"gold step {row['step']} does not exist; the trajectory has {n_steps} steps")
    try:
        return GoldStep(row["step"], row["rank"], Category(row["category"]))
    except ValueError:
        raise DataError(
            f"gold category {row['category']!r} is none of {', '.join(c.value for c in Category)}"
        ) from None


def kind(value: Any) -> str:
    """A JSON value's type, in words."""
    names = {type(None): "null", bool: "a boolean", dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")
