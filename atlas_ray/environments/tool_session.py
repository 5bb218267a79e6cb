"""Sessions that take calls of tools as they are, and how calls are played one by one.

Flows in: a reply with calls; flows out: how the episode stands, with each call's result as a turn.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from atlas_ray.environments.protocol import Opening, Session, StepResult
from atlas_ray.types import Message, Task, ToolCall

NO_CALL = "Error: the reply must call one of the tools."
NOT_CALLED = "Not called: the task has ended."


class ToolSession(Session, Protocol):
    """A session that also takes calls of tools, which are known once a task is started."""

    async def reset_for_calls(self, task: Task) -> Opening:
        """Starts the task for an agent that calls tools; the opening holds their schemas.

        Raises:
            UserError: If it has none.
            EnvironmentFailure: If the server cannot.
        """
        ...

    async def call(self, reply: Message) -> StepResult:
        """Plays a reply's calls in their order, or what it says where it calls nothing.

        Raises:
            EnvironmentFailure: If the server fails.
        """
        ...


async def play_calls(
    reply: Message, result: StepResult, play: Callable[[ToolCall], Awaitable[StepResult]]
) -> StepResult:
    """Plays calls one after the other, each with a result of its own; a reply without any is told so.

    Args:
        result: How the episode stands before.
        play: What answers one call.

    Returns:
        How it stands after the last call that was played: what is called after its end is not.
    """
    turns = [] if reply.calls else [Message("user", NO_CALL)]
    for call in reply.calls:
        told = NOT_CALLED
        if not result.done:
            result = await play(call)
            told = result.observation
        turns.append(Message("tool", told, call_id=call.id))
    return replace(result, turns=tuple(turns))
