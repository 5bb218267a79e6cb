"""A model behind an OpenAI-compatible endpoint as a policy. Flows in: turns as messages; flows out: replies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from atlas_ray.config import EndpointConfig, EngineConfig
from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.client import ChatClient
from atlas_ray.models.policies import ModelConfig
from atlas_ray.models.protocol import STOP, Reply, Sampling
from atlas_ray.models.request import ChatMessages, CompletionRequest, shortest
from atlas_ray.models.templates.turns import THOUGHTS, as_turns
from atlas_ray.types import Message, Task, Usage


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What a replica needs to reach an endpoint. The key is read from the environment of its process.

    Attributes:
        repeats_calls: What fails has been tried again, and another attempt at the episode would only repeat that.
    """

    name: str
    model: str
    config: EndpointConfig
    gpus: int = 0
    repeats_calls: ClassVar[bool] = True

    async def build(self) -> EndpointPolicy:
        """Opens the client and asks for one token: what every call would meet is met once.

        Raises:
            UserError: If the key is missing or can be none, or key or model are refused.
            ModelFailure: If the endpoint does not answer, or not in sense.
        """
        policy = EndpointPolicy(self)
        try:
            await policy.complete(shortest().messages, Sampling(0.0, 1), 0)
        except BaseException as error:
            await policy.close()
            if isinstance(error, UserError) or not isinstance(error, AtlasError):
                raise
            raise ModelFailure(error.what, error.remedy) from None  # of this model alone: others may be elsewhere
        return policy


class EndpointModel(ModelConfig):
    """A name that an OpenAI-compatible endpoint gives a model."""

    policy: str = "endpoint"
    endpoint: EndpointConfig

    def spec(self, name: str, engine: EngineConfig) -> EndpointSpec:
        """A client of the endpoint."""
        return EndpointSpec(name, self.path, self.endpoint)

    def pool(self, engine: EngineConfig) -> EngineConfig:
        """One replica, with as many calls at once as the endpoint's settings allow."""
        return engine.model_copy(update={"replicas": 1, "episodes_in_flight": self.endpoint.concurrency})


class EndpointPolicy:
    """Conversations that share one client.

    Attributes:
        usage: Of all replies so far.
    """

    dead = False

    def __init__(self, spec: EndpointSpec) -> None:
        self.spec, self.usage = spec, Usage()
        self._client = ChatClient(spec.model, spec.config)

    @property
    def name(self) -> str:
        """Stands in every episode's record."""
        return self.spec.name

    @property
    def refused(self) -> AtlasError | None:
        """Why no further reply can be had, once the endpoint has said so: no episode would fare better."""
        return self._client.stopped

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> EndpointConversation:
        """Starts a conversation."""
        return EndpointConversation(self, opening, sampling)

    async def complete(self, messages: ChatMessages, sampling: Sampling, seed: int) -> Reply:
        """Asks for the next reply.

        Raises:
            ContextOverflow: If the endpoint says that the conversation is too long.
            UserError: If it refuses the key or knows no such model.
            AtlasError: If it does not answer at all, or is out of credit.
            ModelFailure: If the call fails after its retries, or is answered with no completion.
        """
        request = CompletionRequest(
            *(list(messages), sampling.temperature, sampling.max_tokens, seed),
            top_p=sampling.top_p,
            stop=() if sampling.tools is not None else (STOP,),
            tools=json.loads(sampling.tools or "[]"),
        )
        try:
            done = await self._client.complete(request)
        except ModelFailure as error:
            raise ModelFailure(f"{self._client.address} failed: {error.what}") from None
        self.usage += done.usage
        finish: Literal["stop", "length"] = "length" if done.finish == "length" else "stop"
        text, calls = done.text, done.calls
        if not all(call.is_well_formed for call in calls):  # no server takes such calls back
            text, calls = "\n".join(filter(None, [text, *map(str, calls)])), ()
        return Reply(text, done.usage, finish, thought=done.thought, calls=calls)

    async def close(self) -> None:
        """Closes connections."""
        await self._client.close()


class EndpointConversation:
    """One conversation, as chat messages."""

    def __init__(self, policy: EndpointPolicy, opening: Sequence[Message], sampling: Sampling) -> None:
        self._policy, self._sampling = policy, sampling
        self._messages = list(opening)

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends it.

        Raises:
            ContextOverflow: If the conversation no longer fits the model.
            ModelFailure: If the endpoint fails.
        """
        turns: ChatMessages = list(as_turns(self._messages))
        for message, turn in zip(self._messages, turns, strict=True):
            if message.thought:
                turn.update(dict.fromkeys(THOUGHTS, message.thought))
        reply = await self._policy.complete(turns, self._sampling, seed)
        self.append(reply.message)
        return reply

    def append(self, message: Message) -> None:
        """Appends a given reply, or what the environment answers."""
        self._messages.append(message)
