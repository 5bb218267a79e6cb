"""A conversation with a vLLM engine: kept as token ids where the chat template only appends, else rendered anew.

Flows in: replies and observations; flows out: the token ids that the engine goes on from, the same as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.protocol import STOP, Reply, Sampling
from atlas_ray.models.templates.parser import ReplyParser
from atlas_ray.text import split_thoughts
from atlas_ray.types import Message, Usage


class Engine(Protocol):
    """What draws replies (`atlas_ray.models.engine:VllmPolicy`)."""

    async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
        """What follows a prompt, as vLLM gives it."""
        ...


class EngineConversation:
    """One conversation. As long as it is text of a template that only appends, no turn is tokenized a second time."""

    def __init__(
        self,
        policy: Engine,
        chat: ChatFormat,
        opening: Sequence[Message],
        sampling: Sampling,
        parser: ReplyParser | None = None,
    ) -> None:
        self._policy, self.chat, self._sampling, self._parser = policy, chat, sampling, parser
        self._messages = list(opening)
        self._ids = chat.opening(opening) if sampling.tools is None and chat.appends(opening) else None

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends it, as ids as they were sampled where ids are kept.

        Raises:
            ContextOverflow: If the conversation no longer fits.
            ModelFailure: If the engine fails.
        """
        prompt = self.chat.opening(self._messages, self._sampling.tools) if self._ids is None else self._ids
        made, usage = await self._policy.generate(prompt, self._sampling, seed)
        reply = self._reply(made, usage)
        message = reply.message
        if self._ids is not None and not message.thought:
            self._messages.append(message)
            self._ids += self._sampled(made)
        else:
            self.append(message)
        return reply

    def append(self, message: Message) -> None:
        """Appends a given reply, or what the environment answers."""
        self._messages.append(message)
        if self._ids is None:
            return
        if message.thought or message.calls or message.role == "tool":
            self._ids = None  # templates have rules for these
        elif message.role == "assistant":
            self._ids += self.chat.reply(message.content)
        else:
            self._ids += self.chat.observation(message.content)

    def _reply(self, made: Any, usage: Usage) -> Reply:
        """A reply, its calls read behind its thoughts."""
        text = f"<think>\n{made.text}" if self.chat.template.opens_thought else made.text
        finish: Literal["stop", "length"] = "length" if made.finish_reason == "length" else "stop"
        if self._parser is None or self._sampling.tools is None:
            return Reply(text, usage, finish)
        thought, said = split_thoughts(text)
        said, calls = self._parser.parse(said, self._sampling.tools)
        return Reply(said, usage, finish, thought=thought, calls=calls)

    def _sampled(self, made: Any) -> list[int]:
        ids = list(made.token_ids)
        if made.stop_reason == STOP:
            return self.chat.reply(made.text)
        if not ids or ids[-1] not in self.chat.stop_ids:
            ids.append(self.chat.stop_ids[0])
        return ids
