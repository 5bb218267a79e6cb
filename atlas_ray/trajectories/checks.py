"""What makes a trajectory usable: the checks that every row passes, whatever its format.

Flows in: messages, reward and gold as read; flows out: the same with their types settled, or a `DataError` that says
what is wrong in words for `rejected.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.types import Category, GoldStep, Message


def check_messages(messages: Sequence[Message]) -> None:
    """Checks the shape of a conversation; turns of one role may follow each other, and nobody need answer the last one.

    Raises:
        DataError: If turns are missing, empty or out of turn, or no assistant turn is trainable.
    """
    if not messages:
        raise DataError("the conversation is empty")
    first, called = messages[0].role == "system", set[str]()
    for turn, message in enumerate(messages, 1):
        if message.role == "system" and turn > 1:
            raise DataError(f"turn {turn} is by 'system', which may only open a conversation")
        if turn == 1 + first and message.role != "user":
            raise DataError(f"turn {turn} is by {message.role!r} where 'user' must speak")
        if not message.content.strip() and not message.calls and message.role != "tool":
            raise DataError(f"turn {turn} ({message.role}) is empty")
        if message.role == "assistant":
            called = {call.id for call in message.calls} or called
            continue
        if message.trainable:
            raise DataError(f"turn {turn} ({message.role}) is marked for training")
        if message.calls or message.thought:
            raise DataError(f"turn {turn} ({message.role}) has calls or thoughts, which are an assistant's")
        if message.call_id and message.call_id not in called:
            raise DataError(f"turn {turn} answers the call {message.call_id!r}, which the assistant did not make")
    if not any(m.trainable for m in messages):
        raise DataError("no assistant turn is trainable")


class RepeatedKey(ValueError):
    """A JSON object that names a key twice; the standard library would let the last one win."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, as `json` hands it to its `object_pairs_hook`.

    Raises:
        RepeatedKey: If a key stands in it twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))
        raise RepeatedKey(f"the key {key!r} stands twice in one object; leave the one that is meant")
    return found


def check_json(text: str, what: str) -> Any:
    """The value of a JSON text that a row holds.

    Raises:
        DataError: If it is none, or an object of it names a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except RepeatedKey as error:
        raise DataError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is text that is not valid JSON: {error}") from None


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
