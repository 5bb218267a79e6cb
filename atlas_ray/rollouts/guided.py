"""A policy whose turns are partly given: where it sees what an expert saw before a step, it says what the expert said.

Flows in: a policy and given turns; flows out: a policy. Its replies count as turns, at no tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlas_ray.environments.replay import same_answer
from atlas_ray.models.protocol import Conversation, Policy, Reply, Sampling
from atlas_ray.types import Message, Task, last_seen


@dataclass(frozen=True, slots=True)
class GivenTurn:
    """What is said after an observation."""

    observation: str
    reply: Message


class GivenTurns:
    """Given turns in order, each once; one that is passed over is not gone back to."""

    def __init__(self, turns: Sequence[GivenTurn]) -> None:
        self._left = list(turns)

    def after(self, observation: str) -> Message | None:
        """The reply that is given after an observation, if any."""
        for place, turn in enumerate(self._left):
            if same_answer(turn.observation, observation):
                self._left = self._left[place + 1 :]
                return turn.reply
        return None


class Guided:
    """Another policy with given turns."""

    def __init__(self, policy: Policy, turns: Sequence[GivenTurn]) -> None:
        self._policy, self._turns = policy, turns

    @property
    def name(self) -> str:
        """The other policy's."""
        return self._policy.name

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Conversation:
        """Starts a conversation."""
        inner = self._policy.open(task, opening, sampling)
        return _GuidedConversation(inner, GivenTurns(self._turns), opening)


class _GuidedConversation:
    def __init__(self, inner: Conversation, turns: GivenTurns, opening: Sequence[Message]) -> None:
        self._inner, self._turns, self._messages = inner, turns, list(opening)

    async def generate(self, seed: int) -> Reply:
        """The given reply, or the policy's own."""
        given = self._turns.after(last_seen(self._messages))
        if given is None:
            reply = await self._inner.generate(seed)
            self._messages.append(reply.message)
            return reply
        self.append(given)
        return Reply(given.content, thought=given.thought, calls=given.calls)

    def append(self, message: Message) -> None:
        """Appends a given reply, or what the environment answers."""
        self._messages.append(message)
        self._inner.append(message)
