"""One model behind an OpenAI-compatible endpoint: key, retries, prices, and errors told apart.

Flows in: chat messages; flows out: a reply with its usage.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.selection.asker import Completion, Question
from atlas_ray.selection.settings import LlmSelector
from atlas_ray.types import Usage

if TYPE_CHECKING:
    import openai

_CHECK_SECONDS = 10.0
_NO_KEY = "none"


class ChatClient:
    """Asks one model for chat completions. Retries and back-off are the openai client's own.

    The key is read from the environment when the first call is due, and appears in no error.
    """

    def __init__(self, config: LlmSelector) -> None:
        self._config = config
        self._client: openai.AsyncOpenAI | None = None
        self._key = ""
        self._opening = asyncio.Lock()

    @property
    def address(self) -> str:
        """The endpoint's base URL."""
        return self._config.endpoint.base_url

    async def complete(self, question: Question) -> Completion:
        """One reply.

        Raises:
            UserError: If the key is missing or refused, or the model unknown.
            AtlasError: If the endpoint is dead or the account is out of credit: no other call would do better.
            ModelFailure: If this one call fails after its retries.
        """
        import openai

        client = await self._opened()
        config = self._config
        try:
            answer: Any = await client.chat.completions.create(
                model=config.model,
                messages=question.messages,  # type: ignore[arg-type]
                temperature=question.temperature,
                max_tokens=question.max_tokens,
            )
        except openai.APITimeoutError:
            raise ModelFailure(f"no reply within {config.endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            await self._check(client)
            raise ModelFailure(f"connection lost: {self._short(error)}") from None
        except openai.APIStatusError as error:
            self._explain(error)
        except (openai.OpenAIError, ValueError) as error:
            raise ModelFailure(self._short(error)) from None
        try:
            choice = answer.choices[0]
            text = choice.message.content or ""
        except (AttributeError, IndexError, TypeError):
            raise ModelFailure("the endpoint answered with something that is no chat completion") from None
        return Completion(text, choice.finish_reason or "stop", _usage(config.model, answer.usage))

    async def close(self) -> None:
        """Closes connections."""
        if self._client is not None:
            await self._client.close()

    async def _opened(self) -> openai.AsyncOpenAI:
        async with self._opening:
            if self._client is None:
                import openai

                endpoint = self._config.endpoint
                self._key = _key(endpoint.api_key_env, endpoint.base_url)
                client = openai.AsyncOpenAI(
                    base_url=endpoint.base_url,
                    api_key=self._key,
                    timeout=endpoint.timeout_s,
                    max_retries=endpoint.max_retries,
                )
                await self._check(client)
                self._client = client
        return self._client

    async def _check(self, client: openai.AsyncOpenAI) -> None:
        """Makes sure that the endpoint answers at all, at no cost; any HTTP status is an answer.

        Raises:
            AtlasError: If it does not.
            UserError: If it refuses the key.
        """
        import openai

        try:
            await client.with_options(max_retries=1, timeout=_CHECK_SECONDS).models.list()
        except openai.APIConnectionError as error:
            raise AtlasError(
                f"cannot reach the endpoint {self._config.endpoint.base_url}: {self._short(error.__cause__ or error)}",
                "check selector.endpoint.base_url and the network, then run the same command again",
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            self._explain(error)
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return  # it answers; a list of models is not everywhere to be had

    def _explain(self, error: openai.APIStatusError) -> NoReturn:
        """Raises what a refusal means: for every call, or for this one."""
        endpoint, status = self._config.endpoint, error.status_code
        if status in (401, 403):
            held = "is not set" if self._key == _NO_KEY else "was refused"
            raise UserError(
                f"{endpoint.base_url} wants a valid key (HTTP {status}); the one in {endpoint.api_key_env} {held}",
                f"export {endpoint.api_key_env}, or name another variable in selector.endpoint.api_key_env",
            ) from None
        if status == 404:
            raise UserError(
                f"{endpoint.base_url} knows no model {self._config.model!r} (HTTP 404)",
                "check selector.model and selector.endpoint.base_url (it usually ends in /v1)",
            ) from None
        if getattr(error, "code", None) == "insufficient_quota":
            raise AtlasError(
                f"the account behind {endpoint.api_key_env} is out of credit",
                "add credit and run the same command again; paid replies are kept",
            ) from None
        raise ModelFailure(f"HTTP {status}: {self._short(error)}") from None

    def _short(self, error: BaseException) -> str:
        text = str(error).strip() or type(error).__name__
        return (text.replace(self._key, "***") if self._key else text).splitlines()[0][:200]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    prompt: float
    cached: float
    completion: float

    def of(self, usage: Usage) -> float:
        """What a usage costs, in US dollars."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        paid = fresh * self.prompt + usage.cached_tokens * self.cached + usage.completion_tokens * self.completion
        return paid / 1e6


def price(model: str) -> Price | None:
    """List price of a model, dated snapshots like the model itself; None where it is unknown."""
    table = _prices()
    return table.get(model) or table.get(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model))


@cache
def _prices() -> Mapping[str, Price]:
    text = (resources.files("atlas_ray.selection") / "prices.json").read_text(encoding="utf-8")
    return {name: Price(**figures) for name, figures in json.loads(text)["models"].items()}


def _key(variable: str, base_url: str) -> str:
    """The key, or a placeholder for endpoints that want none.

    Raises:
        UserError: If the variable is not set and the endpoint is OpenAI's.
    """
    key = os.environ.get(variable, "").strip()
    host = urlsplit(base_url).hostname or ""
    if not key and (host == "openai.com" or host.endswith(".openai.com")):
        raise UserError(f"the environment variable {variable} is not set", f"export {variable}=... (your API key)")
    return key or _NO_KEY


def _usage(model: str, reported: Any) -> Usage:
    if reported is None:
        return Usage(calls=1)
    details = getattr(reported, "prompt_tokens_details", None)
    usage = Usage(
        prompt_tokens=getattr(reported, "prompt_tokens", None) or 0,
        cached_tokens=getattr(details, "cached_tokens", None) or 0,
        completion_tokens=getattr(reported, "completion_tokens", None) or 0,
        calls=1,
    )
    known = price(model)
    return usage if known is None else usage + Usage(cost=known.of(usage))
