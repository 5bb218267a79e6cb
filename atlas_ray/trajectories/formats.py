"""Rows of each format to trajectories: AgentTraj-L, ShareGPT, OpenAI messages and our own table.

Flows in: one decoded row; flows out: a `Trajectory` whose id is its task's or the row's own (the reader numbers
repetitions), or a `DataError` with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from atlas_ray.environments.agentgym.alfworld_mappings import game_of
from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_gold, check_messages, check_reward, check_text, kind
from atlas_ray.types import Message, Role, Trajectory

Format = Literal["agenttraj", "sharegpt", "openai", "atlas"]

# prefix of an item id -> environment; ALFWorld's ids start with the task's type
_ENVIRONMENTS = ["academia", "alfworld", "babyai", "blocksworld", "jericho", "maze", "movie", "pddl", "sciworld"]
_ENVIRONMENTS += ["sheet", "textcraft", "todo", "weather", "webshop", "wordle"]
NOT_PLAYED = ("sqlgym", "webarena", "searchqa")  # AgentGym's others: its data names them, and nothing here plays them
_PREFIXES = {name: name for name in _ENVIRONMENTS} | {
    "look_at_obj_in_light": "alfworld",
    "pick_and_place": "alfworld",
    "pick_clean_then_place": "alfworld",
    "pick_cool_then_place": "alfworld",
    "pick_heat_then_place": "alfworld",
    "pick_two_obj": "alfworld",
}
# AgentGym puts the collection before some names, and BabyAI's own ids begin with its own spelling
_PREFIX = re.compile(
    rf"(?:lmrlgym_|tool_)?({'|'.join(sorted([*_PREFIXES, 'BabyAI'], key=len, reverse=True))})(?![A-Za-z0-9])"
)
_NUMBER = re.compile(r"#[1-9][0-9]*$")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_COUNTED = re.compile(r"[_-]?\d.*$", re.DOTALL)  # what tells the tasks of an environment apart
_LONGEST = 60  # characters of an unknown name

# the answer to an opening instruction: nobody should learn it
_ACKNOWLEDGEMENT = re.compile(
    r"(?:ok(?:ay)?|sure|got it|understood|i understand|i(?:'m| am) ready)(?:[.,!;](?!.*Action:)[^\n]{0,80})?",
    re.IGNORECASE,
)

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class UnknownEnvironment(DataError):
    """A row of an environment that is not known here; `name` is what its id calls it."""

    def __init__(self, item_id: str) -> None:
        remedy = "rows of an environment of your own carry a key `env`"
        super().__init__(f"item id {item_id!r} names no known environment", remedy)
        self.name = (_COUNTED.sub("", item_id) or item_id)[:_LONGEST]


def environment_of(item_id: str) -> str:
    """The environment that an item id names, e.g. `maze` for `lmrlgym_maze_3`.

    Raises:
        UnknownEnvironment: If its prefix is unknown.
    """
    if found := _PREFIX.match(item_id):
        return _PREFIXES.get(found[1], found[1].lower())
    if game_of(item_id):  # in a folder, as ALFWorld's own files are
        return "alfworld"
    raise UnknownEnvironment(item_id)


def detect(row: Any) -> Format | None:
    """The format that a row is written in, or None where it shows none."""
    if not isinstance(row, Mapping):
        return None
    messages, conversations = row.get("messages"), row.get("conversations")
    if isinstance(messages, list) and messages:
        ours = any(isinstance(m, Mapping) and "trainable" in m for m in messages)
        return "atlas" if ours else "openai"
    if isinstance(conversations, list) and conversations:
        flagged = any(isinstance(t, Mapping) and "loss" in t for t in conversations)
        return "agenttraj" if flagged else "sharegpt"
    return None


def task_of(row: Any) -> tuple[str, str]:
    """Environment and item id of a row.

    Raises:
        UnknownEnvironment: If the id names an environment that is not known here, and no `env` says otherwise.
        DataError: If the row is not an object, or has no item id.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"the row is not an object but {kind(row)}")
    item_id = row.get("id") if row.get("item_id") is None else row["item_id"]
    if item_id is None:
        raise DataError("the row has no item_id", "name its task, e.g. maze_17")
    if isinstance(item_id, int):
        raise DataError(f"the item_id is a bare number, {item_id}", "name the task with its environment, e.g. maze_17")
    if not check_text(item_id, "item_id").strip():
        raise DataError("the item_id is empty")
    env = row.get("env")
    if env is None:
        return environment_of(item_id), item_id
    if not isinstance(env, str) or not _NAME.fullmatch(env):
        raise DataError(f"env {env!r} is not a lower-case name")
    return env, item_id


def to_trajectory(row: Any, form: Format) -> Trajectory:
    """One checked trajectory.

    Raises:
        DataError: With the reason why the row is unusable.
    """
    env, item_id = task_of(row)
    key = "messages" if form in ("openai", "atlas") else "conversations"
    turns = row.get(key)
    if turns is None and key in row:
        raise DataError(
            f"the row names a task without a trajectory ({key} is null), as those of AgentEval do",
            "name such a data set in evaluate.items, and one with conversations here",
        )
    if not isinstance(turns, list):
        raise DataError(f"{key} is not a list but {kind(turns)}" if key in row else f"the row has no {key}")
    messages = tuple(_TURNS[form](turn, number) for number, turn in enumerate(turns, 1))
    if form == "sharegpt" or (form == "openai" and all(t.get("weight") is None for t in turns)):
        messages = _without_acknowledgement(messages)
    check_messages(messages)
    gold = check_gold(row.get("gold"), sum(m.trainable for m in messages))
    return Trajectory(_id(row, env, item_id), env, item_id, messages, check_reward(row.get("reward")), gold)


class Ids:
    """The ids in use in one data set."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._number: dict[str, int] = {}

    def free(self, wanted: str) -> str:
        """`wanted`, or the first of its task's ids (`#2`, `#3`, ...) that is not in use."""
        if wanted not in self._used:
            return wanted
        task = _NUMBER.sub("", wanted)
        number = self._number.get(task, 2)
        while f"{task}#{number}" in self._used:
            number += 1
        self._number[task] = number
        return f"{task}#{number}"

    def use(self, taken: str) -> None:
        """Marks an id as in use."""
        self._used.add(taken)


def _id(row: Mapping[str, Any], env: str, item_id: str) -> str:
    """The row's own id where it is one of ours for this task (ShareGPT's `id` is the item's), else the task's."""
    task, given = f"{env}/{item_id}", row.get("id")
    ours = isinstance(given, str) and given.startswith(f"{task}#") and _NUMBER.sub("", given) == task
    return str(given) if ours else task


def _agenttraj(turn: Any, number: int) -> Message:
    role, content = _role_and_content(turn, number, "from", "value")
    loss = turn.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise DataError(f"turn {number}: loss is neither true, false nor null but {kind(loss)}")
    if role == "assistant" and loss is None:
        raise DataError(f"turn {number}: an assistant turn has no loss flag")
    return Message(role, content, bool(loss))


def _sharegpt(turn: Any, number: int) -> Message:
    role, content = _role_and_content(turn, number, "from", "value")
    if turn.get("loss") is not None:
        raise DataError(f"turn {number} has a loss flag, which ShareGPT has not", "set `format: agenttraj`")
    return Message(role, content, role == "assistant")


def _openai(turn: Any, number: int) -> Message:
    if isinstance(turn, Mapping):
        if turn.get("tool_calls") or turn.get("function_call") or turn.get("role") in ("tool", "function"):
            raise DataError(f"turn {number} is a tool call", "write calls as text: `Action: ...`")
        if turn.get("weight") not in (None, 0, 1):
            raise DataError(f"turn {number}: weight {turn['weight']!r} is neither 0 nor 1")
    role, content = _role_and_content(turn, number, "role", "content")
    return Message(role, content, role == "assistant" and turn.get("weight") != 0)


def _atlas(turn: Any, number: int) -> Message:
    role, content = _role_and_content(turn, number, "role", "content")
    if not isinstance(turn.get("trainable"), bool):
        raise DataError(f"turn {number}: trainable is neither true nor false")
    return Message(role, content, turn["trainable"])


_TURNS = {"agenttraj": _agenttraj, "sharegpt": _sharegpt, "openai": _openai, "atlas": _atlas}


def _role_and_content(turn: Any, number: int, role_key: str, content_key: str) -> tuple[Role, str]:
    if not isinstance(turn, Mapping):
        raise DataError(f"turn {number} is not an object but {kind(turn)}")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"turn {number}: unknown {role_key} {role!r}")
    return _ROLES[role], check_text(turn.get(content_key), f"turn {number}: {content_key}")


def _without_acknowledgement(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Takes the opening "OK" out of training where the data has no flags of its own."""
    for position, message in enumerate(messages):
        if message.role == "assistant":
            if _ACKNOWLEDGEMENT.fullmatch(message.content.strip()):
                spoken = Message("assistant", message.content)
                return (*messages[:position], spoken, *messages[position + 1 :])
            break
    return messages
