"""Conversations as a list of turns under one key: what the formats of chat data have in common.

Flows in: a row; flows out: its messages, with the flags of its turns honoured. Without any, all assistant turns but an
opening "OK" are to be learnt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_json, check_text, kind
from atlas_ray.trajectories.formats.flags import FLAGS, flag_of, learnt
from atlas_ray.trajectories.formats.protocol import DataFormat, Row
from atlas_ray.trajectories.item_ids import task_of
from atlas_ray.types import Message, Role

NO_ENVIRONMENT = "chat"  # of rows that name no task
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_ROW_KEYS = {"id", "item_id", "env", "reward", "gold", *FLAGS}
_TEXT_PARTS = ("text", "input_text", "output_text")
# the answer to an opening instruction: nobody should learn it
_ACKNOWLEDGEMENT = re.compile(
    r"(?:ok(?:ay)?|sure|got it|understood|i understand|i(?:'m| am) ready)(?:[.,!;](?!.*Action:)[^\n]{0,80})?",
    re.IGNORECASE,
)
Turn = dict[str, Any]


def chat_format(
    key: str, read: Callable[[Turn, int], Message], turn_keys: set[str], flag: str | None = None, named: bool = False
) -> DataFormat:
    """A format whose rows hold turns under one key.

    Args:
        key: Of the turns.
        read: Makes a message of a turn, with its number from 1.
        turn_keys: The keys of a turn that `read` looks at.
        flag: The flag that every assistant turn has, by which rows are told from others.
        named: Whether every row names its task; else those without an id get one of their content.
    """
    return DataFormat(
        recognises=lambda row: _holds(row, key, flag),
        messages=lambda row: _messages(row, key, read, flag is not None),
        task=task_of if named else _task,
        unused=lambda row: _unused(row, key, turn_keys),
    )


def role_and_text(turn: Turn, number: int, role_key: str, content_key: str) -> tuple[Role, str]:
    """Role and text of a turn.

    Raises:
        DataError: If its role is unknown, or its content is no text.
    """
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"turn {number}: unknown {role_key} {role!r}")
    return _ROLES[role], text_of(turn.get(content_key), f"turn {number}: {content_key}")


def text_of(content: Any, what: str) -> str:
    """Content as one text: a string, or the text parts of a list, a line each.

    Raises:
        DataError: If it is neither, or has a part that is no text.
    """
    if not isinstance(content, list):
        return check_text(content, what)
    texts = []
    for part in content:
        form = part.get("type") if isinstance(part, dict) else kind(part)
        if form not in _TEXT_PARTS:
            raise DataError(f"{what} holds a part of type {form!r}, and only text is read", "leave such rows out")
        texts.append(check_text(part.get("text"), f"{what}: text"))
    return "\n".join(texts)


def _holds(row: Row, key: str, flag: str | None) -> bool:
    try:
        turns = json.loads(row[key]) if isinstance(row.get(key), str) else row.get(key)
    except ValueError:
        return False
    return isinstance(turns, list) and (flag is None or any(isinstance(t, dict) and flag in t for t in turns))


def _turns(row: Row, key: str) -> list[Turn]:
    """The turns under `key`; a list, or one as JSON text, as tables hold it.

    Raises:
        DataError: If there are none.
    """
    turns = row.get(key)
    if turns is None and key in row:
        raise DataError(
            f"the row names a task without a trajectory ({key} is null), as those of AgentEval do",
            "name such a data set in evaluate.items, and one with conversations here",
        )
    if key not in row:
        raise DataError(f"the row has no {key}", "a file has one format: write rows of another one into another file")
    turns = check_json(turns, key) if isinstance(turns, str) else turns
    if not isinstance(turns, list):
        raise DataError(f"{key} is not a list but {kind(turns)}")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"turn {number} is not an object but {kind(turn)}")
    return turns


def _messages(row: Row, key: str, read: Callable[[Turn, int], Message], flagged: bool) -> list[Message]:
    turns = _turns(row, key)
    messages = [read(turn, number) for number, turn in enumerate(turns, 1)]
    if flag_of(row, "the row") is False:
        raise DataError("the row is marked as not to be trained on")
    marks = learnt(turns, [m.role == "assistant" for m in messages], flagged)
    if marks is None:
        return _without_acknowledgement(messages)
    return [replace(message, trainable=mark) for message, mark in zip(messages, marks, strict=True)]


def _without_acknowledgement(messages: Sequence[Message]) -> list[Message]:
    first = next((i for i, m in enumerate(messages) if m.role == "assistant"), None)
    is_ok = first is not None and _ACKNOWLEDGEMENT.fullmatch(messages[first].content.strip())
    return [replace(m, trainable=m.role == "assistant" and not (is_ok and i == first)) for i, m in enumerate(messages)]


def _task(row: Row) -> tuple[str, str]:
    """As the row says; else of its content, so that a row has the same id wherever it stands."""
    if row.get("id") is not None or row.get("item_id") is not None:
        return task_of(row)
    env = NO_ENVIRONMENT if row.get("env") is None else row["env"]
    held = {key: value for key, value in row.items() if value is not None}
    digest = hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return task_of({"env": env, "id": f"{env}_{digest}"})


def _unused(row: Row, key: str, turn_keys: set[str]) -> Iterator[str]:
    yield from (name for name, value in row.items() if value is not None and name not in {*_ROW_KEYS, key})
    names = {name for turn in _turns(row, key) for name, value in turn.items() if value is not None}
    yield from (f"{key}.{name}" for name in sorted(names - turn_keys - set(FLAGS)))
