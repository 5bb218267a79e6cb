"""Conversations with a vLLM engine: kept as token ids where the chat template only appends, else rendered anew.

Flows in: replies and observations; flows out: the token ids that the engine goes on from, the same as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.models.stops import STOP
from atlas_ray.types import Message, Usage


class Engine(Protocol):
    """What draws replies (`atlas_ray.models.engine:VllmPolicy`)."""

    async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
        """What follows a prompt, as vLLM gives it."""
        ...


class EngineConversation:
    """One conversation, kept as token ids: the history is never rendered or tokenized again."""

    def __init__(self, policy: Engine, chat: ChatFormat, ids: list[int], sampling: Sampling) -> None:
        self._policy, self.chat, self._ids, self._sampling = policy, chat, ids, sampling

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends the ids as sampled.

        Raises:
            ContextOverflow: If the conversation no longer fits.
            ModelFailure: If the engine fails.
        """
        made, usage = await self._policy.generate(self._ids, self._sampling, seed)
        ids = list(made.token_ids)
        if made.stop_reason == STOP:
            ids = self.chat.reply(made.text)
        elif not ids or ids[-1] not in self.chat.stop_ids:
            ids.append(self.chat.stop_ids[0])
        self._ids += ids
        return Reply(made.text, usage, "length" if made.finish_reason == "length" else "stop")

    def append_reply(self, reply: str) -> None:
        """Appends a given reply."""
        self._ids += self.chat.reply(reply)

    def append_observation(self, observation: str) -> None:
        """Appends the environment's answer."""
        self._ids += self.chat.observation(observation)


class RenderedConversation:
    """One conversation whose chat template writes earlier turns anew: each prompt is rendered as a whole."""

    def __init__(self, policy: Engine, chat: ChatFormat, opening: Sequence[Message], sampling: Sampling) -> None:
        self._policy, self.chat, self._messages, self._sampling = policy, chat, list(opening), sampling

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends it.

        Raises:
            ContextOverflow: If the conversation no longer fits.
            ModelFailure: If the engine fails.
        """
        made, usage = await self._policy.generate(self.chat.opening(self._messages), self._sampling, seed)
        self.append_reply(made.text)
        return Reply(made.text, usage, "length" if made.finish_reason == "length" else "stop")

    def append_reply(self, reply: str) -> None:
        """Appends a given reply."""
        self._messages.append(Message("assistant", reply))

    def append_observation(self, observation: str) -> None:
        """Appends the environment's answer."""
        self._messages.append(Message("user", observation))
