"""A model behind an OpenAI-compatible endpoint as a policy. Flows in: turns as messages; flows out: replies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_ray.config import EndpointConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure, UserError
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.models.stops import STOP, cut_reply
from atlas_ray.text import storable
from atlas_ray.types import Message, Task, Usage

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_OVERFLOW = ("context_length_exceeded", "maximum context length", "max_model_len")


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What a replica needs to reach an endpoint. The key is read from the environment of its process."""

    name: str
    model: str
    config: EndpointConfig
    gpus: int = 0

    async def build(self) -> EndpointPolicy:
        """Opens the client and asks for one token: what every call would meet is met once.

        Raises:
            UserError: If the variable that should hold the key is not set, or key or model are refused.
            ModelFailure: If the endpoint does not answer.
        """
        policy = EndpointPolicy(self)
        try:
            await policy.complete([{"role": "user", "content": "Say OK."}], Sampling(0.0, 1), 0)
        except BaseException:
            await policy.close()
            raise
        return policy


class EndpointPolicy:
    """Speakers that share one client, which retries with back-off by itself.

    Attributes:
        usage: Of all replies so far.
    """

    dead = False

    def __init__(self, spec: EndpointSpec) -> None:
        from openai import AsyncOpenAI

        config = spec.config
        key = os.environ.get(config.api_key_env)
        if not key:
            raise UserError(
                f"the environment variable {config.api_key_env} is not set",
                f"export {config.api_key_env}=... where Ray starts its workers (any word where no key is wanted)",
            )
        self.spec, self.usage = spec, Usage()
        self._client: AsyncOpenAI = AsyncOpenAI(
            base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=config.max_retries
        )

    @property
    def name(self) -> str:
        """Stands in every episode's record."""
        return self.spec.name

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> EndpointConversation:
        """Starts a conversation."""
        return EndpointConversation(self, opening, sampling)

    async def complete(self, messages: Sequence[Any], sampling: Sampling, seed: int) -> Reply:
        """Asks for the next reply.

        Raises:
            ContextOverflow: If the endpoint says that the conversation is too long.
            UserError: If it refuses the key or knows no such model.
            ModelFailure: If the call fails after its retries, or is answered with no completion.
        """
        import openai

        try:
            answer = await self._client.chat.completions.create(
                model=self.spec.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=seed,
                stop=[STOP],
            )
            choice, used = answer.choices[0], answer.usage
            if not isinstance(text := choice.message.content or "", str):
                raise TypeError(f"the reply is no text but {text!r:.100}")
            usage = Usage(calls=1)
            if used is not None:
                cached = used.prompt_tokens_details.cached_tokens if used.prompt_tokens_details else 0
                usage = Usage.reported(used.prompt_tokens, cached, used.completion_tokens)
        except openai.BadRequestError as error:
            if any(sign in error.response.text for sign in _OVERFLOW):
                raise ContextOverflow("the endpoint says that the conversation is too long") from None
            raise self._failure(error) from None
        except (openai.OpenAIError, LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise self._failure(error) from None
        self.usage += usage
        return Reply(cut_reply(storable(text)), usage, "length" if choice.finish_reason == "length" else "stop")

    def _failure(self, error: Exception) -> AtlasError:
        endpoint, status = self.spec.config, getattr(error, "status_code", None)
        if status in (401, 403):
            return UserError(
                f"{endpoint.base_url} refuses the key in {endpoint.api_key_env} (HTTP {status})",
                f"export a valid {endpoint.api_key_env}, or name another variable in endpoint.api_key_env",
            )
        if status == 404:
            return UserError(
                f"{endpoint.base_url} knows no model {self.spec.model!r} (HTTP 404)",
                "check the model's path and endpoint.base_url (it usually ends in /v1)",
            )
        # some endpoints repeat a refused key
        words = f"{type(error).__name__}: {error}".replace(self._client.api_key, "***")
        return ModelFailure(f"{endpoint.base_url} failed: {words[:500]}")

    async def close(self) -> None:
        """Closes connections."""
        await self._client.close()


class EndpointConversation:
    """One conversation, as chat messages."""

    def __init__(self, policy: EndpointPolicy, opening: Sequence[Message], sampling: Sampling) -> None:
        self._policy, self._sampling = policy, sampling
        self._messages = [{"role": m.role, "content": m.content} for m in opening]

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends it.

        Raises:
            ContextOverflow: If the conversation no longer fits the model.
            ModelFailure: If the endpoint fails.
        """
        reply = await self._policy.complete(self._messages, self._sampling, seed)
        self.append_reply(reply.text)
        return reply

    def append_reply(self, reply: str) -> None:
        """Appends a given reply."""
        self._messages.append({"role": "assistant", "content": reply})

    def append_observation(self, observation: str) -> None:
        """Appends the environment's answer."""
        self._messages.append({"role": "user", "content": observation})
