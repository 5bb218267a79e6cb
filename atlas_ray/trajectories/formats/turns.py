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
from atlas_ray.trajectories.formats.calls import calls_of, tools_of
from atlas_ray.trajectories.formats.flags import FLAGS, flag_of, learnt
from atlas_ray.trajectories.formats.protocol import DataFormat, Row
from atlas_ray.trajectories.item_ids import task_of
from atlas_ray.types import Message, Role, Trajectory

NO_ENVIRONMENT = "chat"  # of rows that name no task
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
CALLING = ("function_call", "tool_call")  # roles whose content is calls
_TOOLS = ("tools", "functions")
_ROW_KEYS = {"id", "item_id", "env", "reward", "gold", *_TOOLS, *FLAGS}
_THINK = "<think>"
_TEXT_PARTS = ("text", "input_text", "output_text")
# the answer to an opening instruction: nobody should learn it
_ACKNOWLEDGEMENT = re.compile(
    r"(?:ok(?:ay)?|sure|got it|understood|i understand|i(?:'m| am) ready)(?:[.,!;](?!.*Action:)[^\n]{0,80})?",
    re.IGNORECASE,
)
Turn = dict[str, Any]


def chat_format(
    key: str,
    read: Callable[[Turn, int], Sequence[Message]],
    turn_keys: set[str],
    recognises: Callable[[Row], bool] | None = None,
    flagged: bool = False,
    task: Callable[[Row], tuple[str, str]] | None = None,
    system: str = "system",
    belong: Callable[[Message, Message], bool] = lambda last, m: False,
) -> DataFormat:
    """A format whose rows hold turns under one key, and a system prompt under another where they have one.

    Args:
        key: Of the turns.
        read: Makes the messages of a turn, with its number from 1.
        turn_keys: The keys of a turn that `read` looks at.
        recognises: Tells its rows from others; None: they have the key.
        flagged: Whether every assistant turn has a flag.
        task: Environment and item id of a row; None: rows without an id get one of their content.
        system: Key of the system prompt.
        belong: Whether two assistant messages in a row are parts of one turn.
    """
    return DataFormat(
        recognises=recognises or (lambda row: holds(row, key)),
        messages=lambda row: _joined(_messages(row, key, read, flagged, system), belong),
        task=task or _task,
        tools=lambda row: tools_of(next((row[name] for name in _TOOLS if row.get(name)), None)),
        unused=lambda row: _unused(row, {key, system}, key, turn_keys),
    )


def message_of(
    turn: Turn, number: int, role_key: str, content_key: str, calls: Any = None, thoughts: Sequence[str] = ()
) -> Message:
    """A turn of a role and a text, calls and thoughts.

    Args:
        calls: As `calls_of` reads them.
        thoughts: Keys under which thoughts may stand; in the text they stand first, in `<think>`.

    Raises:
        DataError: If its role is unknown, its content is no text, or it has two different thoughts.
    """
    role, where = turn.get(role_key), f"turn {number}"
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"{where}: unknown {role_key} {role!r}")
    content = turn.get(content_key)
    made = calls_of(calls, where)
    text = "" if content is None and made else text_of(content, f"{where}: {content_key}")
    said = {key: check_text(turn[key], f"{where}: {key}") for key in thoughts if turn.get(key)}
    if _ROLES[role] == "assistant" and text.lstrip().startswith(_THINK):
        inside, end, rest = text.lstrip().removeprefix(_THINK).partition("</think>")
        if not end:
            raise DataError(f"{where}: <think> has no end", "leave such rows out")
        said["<think>"], text = inside, rest.lstrip("\n")
    found = {thought.strip() for thought in said.values() if thought.strip()}
    if len(found) > 1:
        raise DataError(f"{where} has different thoughts: {', '.join(said)}", "leave the one that is meant")
    if _ROLES[role] == "assistant" and role in CALLING:
        made, text = calls_of(text, where), ""
    call_id = (turn.get("tool_call_id") or turn.get("call_id")) if _ROLES[role] == "tool" else None
    return Message(_ROLES[role], text, thought="".join(found), calls=made, call_id=str(call_id or ""))


def ids_of(trajectory: Trajectory) -> Turn:
    """The keys of a row that is written beside its conversation: by them it is the same trajectory when it is read."""
    own = {} if trajectory.id == trajectory.task.id else {"id": trajectory.id}
    reward = {} if trajectory.reward is None else {"reward": trajectory.reward}
    return own | {"item_id": trajectory.item_id, "env": trajectory.env} | reward


def inline_thought(thought: str, text: str) -> str:
    """A reply that says its thought first, as models write it and `message_of` reads it."""
    return f"{_THINK}\n{thought}\n</think>\n\n{text}" if thought else text


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


def holds(row: Row, key: str, shows: Callable[[Turn], bool] | None = None) -> bool:
    """Whether a row has turns under `key`, of which some turn shows something where that is asked for."""
    try:
        turns = json.loads(row[key]) if isinstance(row.get(key), str) else row.get(key)
    except ValueError:
        return False
    return isinstance(turns, list) and (shows is None or any(isinstance(turn, dict) and shows(turn) for turn in turns))


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


def _messages(
    row: Row, key: str, read: Callable[[Turn, int], Sequence[Message]], flagged: bool, system: str
) -> list[Message]:
    turns = _turns(row, key)
    made = [list(read(turn, number)) for number, turn in enumerate(turns, 1)]
    if flag_of(row, "the row") is False:
        raise DataError("the row is marked as not to be trained on")
    marks = learnt(turns, [any(m.role == "assistant" for m in messages) for messages in made], flagged)
    found = [Message("system", text_of(row[system], system))] if row.get(system) else []
    for number, messages in enumerate(made):
        found += [replace(m, trainable=marks[number]) if marks else m for m in messages]
    return found if marks else _without_acknowledgement(found)


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


def _unused(row: Row, read: set[str], key: str, turn_keys: set[str]) -> Iterator[str]:
    yield from (name for name, value in row.items() if value is not None and name not in _ROW_KEYS | read)
    names = {name for turn in _turns(row, key) for name, value in turn.items() if value is not None}
    yield from (f"{key}.{name}" for name in sorted(names - turn_keys - set(FLAGS)))


def _joined(messages: Sequence[Message], belong: Callable[[Message, Message], bool]) -> list[Message]:
    """Messages with neighbours of one assistant turn put together.

    Raises:
        DataError: If one of them is to be learnt and another not.
    """
    found: list[Message] = []
    for m in messages:
        last = found[-1] if found else None
        if last is None or last.role != "assistant" or m.role != "assistant" or not belong(last, m):
            found.append(m)
            continue
        if last.trainable != m.trainable:
            raise DataError("parts of one assistant turn are marked differently", "mark them alike")
        pairs = (last.thought, m.thought), (last.content, m.content)
        thought, content = ("\n".join(filter(None, pair)) for pair in pairs)
        found[-1] = replace(last, thought=thought, content=content, calls=last.calls + m.calls)
    return found
