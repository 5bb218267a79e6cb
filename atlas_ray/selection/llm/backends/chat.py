"""One model behind an OpenAI-compatible endpoint: key, limits, retries, and errors told apart.

Flows in: requests; flows out: a reply to each, with its usage.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.prices import price_of
from atlas_ray.models.throttle import Throttle, back_off, retry_after
from atlas_ray.selection.llm.backends.protocol import Completion, CompletionRequest, SchemaRefusal
from atlas_ray.selection.llm.tokens import LiveRatio, characters
from atlas_ray.text import storable
from atlas_ray.types import Usage

if TYPE_CHECKING:
    import openai

    from atlas_ray.selection.llm.settings import LlmSelector

_CHECK_SECONDS = 10.0
_LONGEST_WAIT = 600.0  # seconds; who is asked to wait longer stops
_NO_KEY = "none"
_SCHEMA = re.compile(r"response_format|json_?schema|schema|structured|guided|grammar", re.IGNORECASE)


class ChatBackend:
    """Asks one model for chat completions, as fast as the endpoint and the limits allow.

    The key is read from the environment when the first call is due, and appears in no error.
    """

    def __init__(self, config: LlmSelector) -> None:
        endpoint = config.endpoint
        self._config, self._price, self._ratio = config, price_of(config), LiveRatio()
        self._throttle = Throttle(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._stopped: AtlasError | None = None
        self._client: openai.AsyncOpenAI | None = None
        self._key = ""
        self._opening = asyncio.Lock()

    @property
    def address(self) -> str:
        """The endpoint's base URL."""
        return self._config.endpoint.base_url

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply; `Backend.complete` says what is raised.

        A call is tried again after a time-out, a lost connection, 408, 409, 429, 5xx, or a body that is no completion.
        """
        length = characters(request.messages)
        try:
            client = await self.opened()
            failure = None
            for attempt in range(self._config.endpoint.max_retries + 1):
                if failure:
                    await asyncio.sleep(max(failure.wait, back_off(attempt - 1)))
                async with self._throttle.turn(self._ratio.tokens(length) + request.max_tokens) as began:
                    self._raise_if_stopped()
                    try:
                        done = await self._once(client, request)
                    except TransientError as error:
                        failure = error
                        if error.overloaded:
                            self._throttle.overloaded(began)
                    else:
                        self._throttle.succeeded()
                        self._ratio.saw(length, done.usage.prompt_tokens)
                        return done
        except (ModelFailure, SchemaRefusal):
            raise
        except AtlasError as error:
            self._stopped = error
            raise
        raise ModelFailure(failure.what if failure else "no attempt was allowed")

    async def _once(self, client: openai.AsyncOpenAI, request: CompletionRequest) -> Completion:
        import openai

        endpoint, body = self._config.endpoint, {"model": self._config.model, **parameters(request)}
        try:
            async with asyncio.timeout(endpoint.timeout_s):
                # Not `chat.completions.create`, which spends more time on the request's types than all else together.
                answer: Any = await client.post("/chat/completions", cast_to=object, body=body)
        except TimeoutError:
            raise TransientError(f"no reply within {endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            # Refused and lost connections, which the aiohttp transport calls time-outs.
            await self._check(client)
            raise TransientError(f"connection lost: {self.short(error.__cause__ or error)}") from None
        except openai.APIStatusError as error:
            self.explain(error, request)
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise TransientError(self.short(error), overloaded=False) from None
        return self.completion(answer)

    def completion(self, answer: Any) -> Completion:
        """A reply as the endpoint gave it, with its price.

        Raises:
            TransientError: If it is no chat completion.
        """
        try:
            choice = answer["choices"][0]
            text = choice["message"].get("content") or choice["message"].get("refusal") or ""
            if not isinstance(text, str):
                raise TypeError
            return Completion(
                storable(text), str(choice.get("finish_reason") or "stop"), self._usage(answer.get("usage") or {})
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            what = "the endpoint answered with something that is no chat completion"
            raise TransientError(what, overloaded=False) from None

    @property
    def room(self) -> int:
        """More than are asked at once, so that requests are ready when their turn comes."""
        return 2 * self._config.endpoint.concurrency

    async def close(self) -> None:
        """Closes connections."""
        if self._client is not None:
            await self._client.close()

    async def opened(self) -> openai.AsyncOpenAI:
        """The connection, made and checked at the first call.

        Raises:
            AtlasError: If the endpoint does not answer (UserError: the key is missing or refused).
        """
        async with self._opening:
            self._raise_if_stopped()
            if self._client is None:
                import openai

                endpoint = self._config.endpoint
                self._key = _key(endpoint.api_key_env, endpoint.base_url)
                # Beyond our own time-out, which covers a call as a whole; the client's is one between two packets.
                patience = endpoint.timeout_s + _CHECK_SECONDS
                self._client = openai.AsyncOpenAI(
                    base_url=endpoint.base_url,
                    api_key=self._key,
                    max_retries=0,
                    http_client=openai.DefaultAioHttpClient(timeout=patience),
                    timeout=patience,
                )
                await self._check(self._client)
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
                f"cannot reach the endpoint {self._config.endpoint.base_url}: {self.short(error.__cause__ or error)}",
                "check selector.endpoint.base_url and the network, then run the same command again",
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            self.explain(error)
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return  # it answers; a list of models is not everywhere to be had

    def explain(self, error: openai.APIStatusError, request: CompletionRequest | None = None) -> NoReturn:
        """Raises what a refusal means: for every call, for this one, or for this attempt."""
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
        what = f"HTTP {status}: {self.short(error)}"
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(error.response.headers) or 0.0
            if wait > _LONGEST_WAIT:
                remedy = "run the same command again then; paid replies are kept"
                raise AtlasError(f"{endpoint.base_url} asks to wait {wait:.0f} s ({what})", remedy) from None
            if status == 429:
                self._throttle.pause(wait)
                wait = 0.0
            raise TransientError(what, overloaded=status != 409, wait=wait) from None
        raise self.refusal(what, request) from None

    def refusal(self, what: str, request: CompletionRequest | None) -> ModelFailure | SchemaRefusal:
        """What it means that a request is refused for good: `what` may say that no schema is taken."""
        if request is not None and request.schema is not None and _SCHEMA.search(what):
            return SchemaRefusal(f"{self._config.model} takes no JSON schema ({what})")
        return ModelFailure(what)

    def _raise_if_stopped(self) -> None:
        """After an error that every call would meet, none goes out any more."""
        if self._stopped is not None:
            raise type(self._stopped)(self._stopped.what, self._stopped.remedy)

    def _usage(self, reported: Mapping[str, Any]) -> Usage:
        cached = (reported.get("prompt_tokens_details") or {}).get("cached_tokens")
        usage = Usage.reported(reported.get("prompt_tokens"), cached, reported.get("completion_tokens"))
        return usage if self._price is None else usage + Usage(cost=self._price.of(usage))

    def short(self, error: BaseException) -> str:
        """An error in one line, without the key."""
        text = str(error).strip() or type(error).__name__
        return (text.replace(self._key, "***") if self._key else text).splitlines()[0][:200]


class TransientError(Exception):
    """An attempt that failed as another may not; `wait` seconds should pass first."""

    def __init__(self, what: str, overloaded: bool = True, wait: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.overloaded, self.wait = what, overloaded, wait


def parameters(request: CompletionRequest) -> dict[str, Any]:
    """A request as the body of a request, without the model."""
    given: dict[str, Any] = {
        "messages": request.messages,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
    }
    if request.seed is not None:
        given["seed"] = request.seed
    if request.schema is not None:
        form = {"name": "critical_steps", "strict": True, "schema": request.schema}
        given["response_format"] = {"type": "json_schema", "json_schema": form}
    return given


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
