"""What a data format is: how its rows are told from others, and how one becomes a checked trajectory.

Flows in: one decoded row; flows out: a `Trajectory` whose id is its task's or the row's own (the reader numbers
repetitions), or a `DataError` with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_gold, check_messages, check_reward, check_text, kind
from atlas_ray.trajectories.item_ids import own_id, task_of
from atlas_ray.types import Message, Role, Trajectory

Row = Mapping[str, Any]

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
# the answer to an opening instruction: nobody should learn it
_ACKNOWLEDGEMENT = re.compile(
    r"(?:ok(?:ay)?|sure|got it|understood|i understand|i(?:'m| am) ready)(?:[.,!;](?!.*Action:)[^\n]{0,80})?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class DataFormat:
    """One form of rows. Whatever its functions return is checked (`atlas_ray.trajectories.checks`).

    Attributes:
        recognises: Whether a row is written in it, for `data.format: auto`.
        messages: The conversation of a row; a `DataError` refuses it.
        task: Environment and item id of a row; rows of environments that are not asked for are read no further.
        reward: The final reward in [0, 1] of a row, or None.
        gold: The expert's annotation as rows of step, rank and category, or None.
    """

    recognises: Callable[[Row], bool]
    messages: Callable[[Row], Sequence[Message]]
    task: Callable[[Row], tuple[str, str]] = task_of
    reward: Callable[[Row], Any] = lambda row: row.get("reward")
    gold: Callable[[Row], Any] = lambda row: row.get("gold")

    def read_task(self, row: Any) -> tuple[str, str]:
        """Environment and item id of a decoded value.

        Raises:
            DataError: If it is no object, or names no task.
        """
        if not isinstance(row, dict):
            raise DataError(f"the row is not an object but {kind(row)}")
        return _guarded(self.task, row)

    def read(self, row: Any) -> Trajectory:
        """One checked trajectory.

        Raises:
            DataError: With the reason why the row is unusable.
        """
        env, item_id = self.read_task(row)
        messages = tuple(_guarded(self.messages, row))
        check_messages(messages)
        gold = check_gold(_guarded(self.gold, row), sum(m.trainable for m in messages))
        reward = check_reward(_guarded(self.reward, row))
        return Trajectory(own_id(row, env, item_id), env, item_id, messages, reward, gold)


def _guarded(read: Callable[[Row], Any], row: Row) -> Any:
    """What a format's function gives; where it is not made for such a row, that costs the row alone."""
    try:
        return read(row)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the row does not fit its format: {type(error).__name__}: {error}") from None


def holds(row: Row, key: str, flag: str | None = None) -> bool:
    """Whether a row has a conversation under `key`, of which some turn has `flag` where one is given."""
    turns = row[key] if isinstance(row.get(key), list) else []
    return any(flag is None or (isinstance(turn, dict) and flag in turn) for turn in turns)


def conversation(row: Row, key: str, read: Callable[[Any, int], Message]) -> list[Message]:
    """The turns under `key`, each read with its number from 1.

    Raises:
        DataError: If there is none.
    """
    turns = row.get(key)
    if turns is None and key in row:
        raise DataError(
            f"the row names a task without a trajectory ({key} is null), as those of AgentEval do",
            "name such a data set in evaluate.items, and one with conversations here",
        )
    if not isinstance(turns, list):
        raise DataError(f"{key} is not a list but {kind(turns)}" if key in row else f"the row has no {key}")
    return [read(turn, number) for number, turn in enumerate(turns, 1)]


def read_turn(turn: Any, number: int, role_key: str, content_key: str) -> tuple[Role, str]:
    """Role and text of a turn.

    Args:
        number: From 1, for messages.

    Raises:
        DataError: If it is no object, its role is unknown, or its content is no text.
    """
    if not isinstance(turn, dict):
        raise DataError(f"turn {number} is not an object but {kind(turn)}")
    role = turn.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(f"turn {number}: unknown {role_key} {role!r}")
    return _ROLES[role], check_text(turn.get(content_key), f"turn {number}: {content_key}")


def without_acknowledgement(messages: Sequence[Message]) -> list[Message]:
    """Takes the opening "OK" out of training where the data has no flags of its own."""
    first = next((i for i, m in enumerate(messages) if m.role == "assistant"), None)
    if first is None or not _ACKNOWLEDGEMENT.fullmatch(messages[first].content.strip()):
        return list(messages)
    return [*messages[:first], Message("assistant", messages[first].content), *messages[first + 1 :]]
