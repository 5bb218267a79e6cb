"""What a data format is: how its rows are told from others, and how one becomes a checked trajectory.

Flows in: one decoded row; flows out: a `Trajectory` whose id is its task's or the row's own (the reader numbers
repetitions), or a `DataError` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_gold, check_messages, check_reward, kind
from atlas_ray.trajectories.item_ids import own_id, task_of
from atlas_ray.types import Message, Trajectory

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DataFormat:
    """One form of rows. Whatever its functions return is checked (`atlas_ray.trajectories.checks`).

    Attributes:
        recognises: Whether a row is written in it, for `data.format: auto`.
        messages: The conversation of a row; a `DataError` refuses it.
        task: Environment and item id of a row; rows of environments that are not asked for are read no further.
        reward: The final reward in [0, 1] of a row, or None.
        gold: The expert's annotation as rows of step, rank and category, or None.
        tools: Schemas of the tools that could be called, as a JSON list of OpenAI's form, or None.
        unused: The keys of a row that are left aside; they are counted, and named once.
    """

    recognises: Callable[[Row], bool]
    messages: Callable[[Row], Sequence[Message]]
    task: Callable[[Row], tuple[str, str]] = task_of
    reward: Callable[[Row], Any] = lambda row: row.get("reward")
    gold: Callable[[Row], Any] = lambda row: row.get("gold")
    tools: Callable[[Row], str | None] = lambda row: None
    unused: Callable[[Row], Iterable[str]] = lambda row: ()

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
        tools = _guarded(self.tools, row)
        return Trajectory(own_id(row, env, item_id), env, item_id, messages, reward, gold, tools)


def _guarded(read: Callable[[Row], Any], row: Row) -> Any:
    """What a format's function gives; where it is not made for such a row, that costs the row alone."""
    try:
        return read(row)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the row does not fit its format: {type(error).__name__}: {error}") from None
