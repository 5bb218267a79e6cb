"""The OpenAI-compatible client: key, limits, retries, prices, and errors told apart.

Selectors and policies behind an endpoint both use it. Flows in: completion requests; flows out: a reply to each.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from atlas_ray.config import EndpointConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure, UserError
from atlas_ray.models.prices import Price
from atlas_ray.models.request import CompletionRequest, RequestForm, is_out_of_credit, is_too_long, shortest
from atlas_ray.models.templates.turns import THOUGHTS
from atlas_ray.models.throttle import Throttle, back_off, retry_after
from atlas_ray.text import storable
from atlas_ray.types import ToolCall, Usage

if TYPE_CHECKING:
    import openai

_CHECK_SECONDS = 10.0
_LONGEST_WAIT = 600.0  # seconds; a run whose endpoint asks it to wait longer stops
_NO_KEY = "none"
_SCHEMA = re.compile(r"response_format|json_?schema|schema|structured|guided|grammar", re.IGNORECASE)
_TOOLS = re.compile(r"\btools?\b|tool_choice|function.?call", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply; `finish` is the model's own word ("stop", "length", ...), `thought` what it thought apart."""

    text: str
    finish: str
    usage: Usage
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()


class RefusedReply(ModelFailure):
    """What came back is no chat completion, and yet it was paid for: `usage` is what it reports."""

    usage = Usage()


class SchemaRefusal(AtlasError):
    """The model cannot be held to a JSON schema; without one the request may fare better."""


class TransientError(Exception):
    """An attempt that failed as another may not; `wait` seconds should pass first."""

    def __init__(self, what: str, overloaded: bool = True, wait: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.overloaded, self.wait = what, overloaded, wait


class ChatClient:
    """Asks one model for chat completions, as fast as the endpoint and the limits allow.

    The key is read from the environment when the first call is due, and appears in no error.

    Args:
        model: Its name at the endpoint.
        endpoint: Where, and how much it may be asked.
        price: What replies cost; None leaves their cost 0.
        gate: Lets calls through; None: a throttle of this client's own.
        key: None: what `key_of` says, once the first call is due.

    Attributes:
        form: How the endpoint takes requests; it is found out from what it refuses.
    """

    def __init__(
        self,
        model: str,
        endpoint: EndpointConfig,
        *,
        price: Price | None = None,
        gate: Throttle | None = None,
        key: str | None = None,
    ) -> None:
        self._model, self._endpoint, self._price = model, endpoint, price
        self._gate = gate or Throttle.of(endpoint)
        self._tokens_per_character = TokenRatio()
        self._client: openai.AsyncOpenAI | None = None
        self._key = key
        self._has_answered = self._has_taken_tools = False
        self.form = RequestForm(endpoint.request)

    @property
    def address(self) -> str:
        """The endpoint's base URL."""
        return self._endpoint.base_url

    @property
    def stopped(self) -> AtlasError | None:
        """The error that every further call would meet, once there was one: no call goes out any more."""
        return self._gate.stopped

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply.

        A call is tried again after a time-out, a lost connection, 408, 409, 429, 5xx, or a body that is no completion;
        one whose form is refused at once in another.

        Raises:
            UserError: If the key is missing or refused, or the model unknown, or it calls no tools.
            AtlasError: If no other request would fare better (dead endpoint, no credit, a web page in place of an API,
                even the shortest request refused).
            SchemaRefusal: If replies cannot be held to `request.schema`.
            ContextOverflow: If the endpoint says that the conversation is too long.
            ModelFailure: If this one request fails after its retries.
        """
        length = request.characters
        try:
            client, failure = self.opened(), None
            for attempt in range(self._endpoint.max_retries + 1):
                if failure:
                    await asyncio.sleep(max(failure.wait, back_off(attempt - 1)))
                tokens = self._tokens_per_character.tokens(length) + request.max_tokens
                async with self._gate.turn(tokens) as began:
                    try:
                        done = await self._once(client, request)
                    except TransientError as error:
                        failure = error
                        if error.overloaded:
                            self._gate.overloaded(began)
                    else:
                        self._gate.succeeded()
                        self._tokens_per_character.saw(length, done.usage.prompt_tokens)
                        return done
            raise ModelFailure(failure.what if failure else "no attempt was allowed")
        except (ModelFailure, SchemaRefusal, ContextOverflow):
            self._gate.succeeded()  # the endpoint has answered, if not as was hoped
            raise
        except AtlasError as error:
            self._gate.stop(error)
            raise

    async def _once(self, client: openai.AsyncOpenAI, request: CompletionRequest) -> Completion:
        import openai

        sent = self.form.applied(request.body(self._model))
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                # Not `chat.completions.create`, which spends more time on the request's types than all else together.
                answer = await client.post("/chat/completions", cast_to=object, body=sent)
        except TimeoutError:
            raise TransientError(f"no reply within {self._endpoint.timeout_s:g} s") from None
        except openai.APIConnectionError as error:
            # Refused and lost connections, which the aiohttp transport calls time-outs.
            await self.check()
            raise TransientError(f"connection lost: {self.short(error.__cause__ or error)}") from None
        except openai.APIStatusError as error:
            if self._takes_otherwise(error, request, sent):
                return await self._once(client, request)
            try:
                self.explain(error, request)
            except ModelFailure as refusal:
                await self._check_plain(client, request, refusal)
                raise
        except (openai.OpenAIError, ValueError, RecursionError) as error:
            raise TransientError(self.short(error), overloaded=False) from None
        if isinstance(answer, str) and answer.lstrip().startswith("<") and not self._has_answered:
            raise AtlasError(
                f"{self.address} answers with a web page, not as an API: {answer.strip()[:60]!r}",
                "check endpoint.base_url (it usually ends in /v1)",
            )
        done = self.completion(answer)
        self._has_answered = True
        self._has_taken_tools |= bool(request.tools)
        return done

    def _takes_otherwise(
        self, error: openai.APIStatusError, request: CompletionRequest, sent: Mapping[str, Any]
    ) -> bool:
        """Whether a request that was refused has another form now."""
        said = error.response.text
        if error.status_code not in (400, 422) or is_too_long(error.status_code, said):
            return False
        changed = self.form.applied(request.body(self._model)) != sent  # by another call, in the meantime
        return changed or self.form.learn(sent, said, error.param)

    async def _check_plain(self, client: openai.AsyncOpenAI, request: CompletionRequest, refusal: ModelFailure) -> None:
        """Makes sure that an endpoint which has refused its first request does not refuse each.

        Raises:
            AtlasError: If it does.
        """
        if self._has_answered:
            return
        if request.messages != shortest().messages:
            with suppress(TransientError, ContextOverflow, ModelFailure):
                await self._once(client, shortest())
            return
        remedy = "check endpoint, the model's name and what it takes (endpoint.request)"
        raise AtlasError(f"{self.address} refuses every request: {refusal.what}", remedy) from None

    def completion(self, answer: Any) -> Completion:
        """A reply as the endpoint gave it, with its price.

        Raises:
            RefusedReply: If it is no chat completion, and reports tokens.
            TransientError: If it is none, and reports nothing.
        """
        used = _mapping(_mapping(answer).get("usage"))
        cached = _mapping(used.get("prompt_tokens_details")).get("cached_tokens")
        usage = Usage.reported(used.get("prompt_tokens"), cached, used.get("completion_tokens"))
        if self._price is not None:
            usage += Usage(cost=self._price.of(usage))
        try:
            choice = answer["choices"][0]
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            thought = next((message[key] for key in THOUGHTS if message.get(key)), "")
            if not isinstance(text, str) or not isinstance(thought, str):
                raise TypeError
            calls = tuple(map(_call, message.get("tool_calls") or ()))
            finish = str(choice.get("finish_reason") or "stop")
            return Completion(storable(text), finish, usage, storable(thought), calls)
        except (AttributeError, IndexError, KeyError, TypeError):
            what = "the endpoint answered with something that is no chat completion"
            if usage.prompt_tokens or usage.completion_tokens:
                refused = RefusedReply(what)
                refused.usage = usage
                raise refused from None
            raise TransientError(what, overloaded=False) from None

    async def close(self) -> None:
        """Closes connections."""
        if self._client is not None:
            await self._client.close()

    def opened(self) -> openai.AsyncOpenAI:
        """The connections, made at the first call.

        Raises:
            UserError: If the key is missing.
        """
        if self._client is None:
            import openai

            self._key = self._key or key_of(self._endpoint)
            # Beyond our own time-out, which covers a call as a whole; the client's is one between two packets.
            timeout = self._endpoint.timeout_s + _CHECK_SECONDS
            self._client = openai.AsyncOpenAI(
                base_url=self.address,
                api_key=self._key,
                max_retries=0,
                http_client=openai.DefaultAioHttpClient(timeout=timeout),
                timeout=timeout,
            )
        return self._client

    async def check(self) -> bool:
        """Makes sure that the endpoint answers at all, at no cost; any HTTP status is an answer.

        Returns:
            Whether it has accepted the key.

        Raises:
            AtlasError: If it does not answer (UserError: it refuses the key).
        """
        import openai

        try:
            await self.opened().with_options(max_retries=1, timeout=_CHECK_SECONDS).models.list()
        except openai.APIConnectionError as error:
            raise AtlasError(
                f"cannot reach the endpoint {self.address}: {self.short(error.__cause__ or error)}",
                "check endpoint.base_url and the network, then run the same command again",
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            self.explain(error)
        except (openai.OpenAIError, ValueError, AttributeError, TypeError):
            return False  # a list of models is not everywhere to be had
        return True

    def explain(self, error: openai.APIStatusError, request: CompletionRequest | None = None) -> NoReturn:
        """Raises what a refusal means: for every call, for this one, or for this attempt."""
        variable, status = self._endpoint.api_key_env, error.status_code
        if status in (401, 403):
            why = (
                f"wants a key, and {variable} is not set" if self._key == _NO_KEY else f"refuses the key in {variable}"
            )
            raise UserError(
                f"{self.address} {why} (HTTP {status})",
                f"export a valid {variable}, or name another variable in endpoint.api_key_env",
            ) from None
        if status == 404:
            raise UserError(
                f"{self.address} knows no model {self._model!r} (HTTP 404)",
                "check the model's name and endpoint.base_url (it usually ends in /v1)",
            ) from None
        said = error.response.text
        if is_too_long(status, said):
            raise ContextOverflow(f"the endpoint says that the conversation is too long: {self.short(error)}") from None
        if is_out_of_credit(status, said):
            raise AtlasError(
                f"the account behind {variable} is out of credit",
                "add credit and run the same command again; paid replies are kept",
            ) from None
        what = f"HTTP {status}: {self.short(error)}"
        if status in (408, 409, 429) or status >= 500:
            wait = retry_after(error.response.headers) or 0.0
            if wait > _LONGEST_WAIT:
                remedy = "run the same command again then; paid replies are kept"
                raise AtlasError(f"{self.address} asks to wait {wait:.0f} s ({what})", remedy) from None
            if status == 429:
                self._gate.pause(wait)
                wait = 0.0
            raise TransientError(what, overloaded=status != 409, wait=wait) from None
        if request is not None and request.tools and not self._has_taken_tools and _TOOLS.search(said):
            raise UserError(
                f"{self.address} takes no tools to call: {what}",
                "start the server with its parser of tool calls, take a model that calls tools, or play by text: "
                "protocol: react",
            ) from None
        raise self.refusal(what, request) from None

    def refusal(self, what: str, request: CompletionRequest | None) -> ModelFailure | SchemaRefusal:
        """What it means that a request is refused for good: `what` may say that no schema is taken."""
        if request is not None and request.schema is not None and _SCHEMA.search(what):
            return SchemaRefusal(f"{self._model} takes no JSON schema ({what})")
        return ModelFailure(what)

    def short(self, error: BaseException) -> str:
        """An error in one line, without the key: some endpoints repeat a refused one."""
        text = str(error).strip() or type(error).__name__
        return (text.replace(self._key, "***") if self._key not in (None, _NO_KEY) else text).splitlines()[0][:200]


class TokenRatio:
    """Tokens a character, as the replies so far report it; a third before the first reply."""

    def __init__(self) -> None:
        self._characters, self._tokens = 3, 1

    def tokens(self, characters: int) -> int:
        """About how many tokens so many characters are."""
        return -(-characters * self._tokens // self._characters)

    def saw(self, characters: int, tokens: int) -> None:
        """Takes a reply's own count of its prompt."""
        if tokens:
            self._characters, self._tokens = self._characters + characters, self._tokens + tokens


def _call(given: Any) -> ToolCall:
    """A call as an endpoint gives it; its arguments are a text that should be a JSON object."""
    function, id_ = given["function"], given.get("id") or ""
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not all(isinstance(text, str) for text in (function["name"], arguments, id_)):
        raise TypeError
    return ToolCall(storable(function["name"]), storable(arguments), storable(id_))


def _mapping(value: Any) -> Mapping[str, Any]:
    """A part of an answer that should be a mapping; an empty one where it is none."""
    return value if isinstance(value, Mapping) else {}


def key_of(endpoint: EndpointConfig) -> str:
    """The key, or a placeholder for endpoints that want none.

    Raises:
        UserError: If the variable is not set and the endpoint is OpenAI's, or what it holds can be no key.
    """
    variable = endpoint.api_key_env
    key = os.environ.get(variable, "").strip()
    if strange := next((c for c in key if not " " <= c <= "~"), None):
        raise UserError(
            f"the key in {variable} holds {unicodedata.name(strange, 'a line break or another control character')},"
            " which no request can carry",
            f"export {variable} anew: the key alone, of one line",
        )
    host = urlsplit(endpoint.base_url).hostname or ""
    if not key and (host == "openai.com" or host.endswith(".openai.com")):
        raise UserError(f"the environment variable {variable} is not set", f"export {variable}=... (your API key)")
    return key or _NO_KEY
