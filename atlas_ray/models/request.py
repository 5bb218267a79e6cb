"""Requests for chat completions, in the form that an endpoint takes, and what its refusals mean.

Endpoints of OpenAI's kind differ in the fields that they know. A field that is refused by its name is called otherwise
or left out from then on; what no other form would mend is told apart by status and words.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_ray.models.templates.turns import THOUGHTS

_log = logging.getLogger(__name__)

ChatMessages = list[dict[str, Any]]
_SUCCESSORS = {"max_tokens": "max_completion_tokens"}
_NEEDED = ("model", "messages", "tools", "response_format")
_REFUSED = re.compile(
    r"un(?:supported|known|recogni[sz]ed|expected)|not (?:supported|permitted|allowed|accepted|recogni[sz]ed|a valid)"
    r"|n(?:o|')t (?:support|accept|allow|permit)|extra (?:input|field|param)|deprecated|forbidden"
    r"|invalid (?:parameter|field|argument|key|property)",
    re.IGNORECASE,
)
_STATUSES = (400, 413, 422, 500)  # of a request that is too long
_TOO_LONG = re.compile(
    r"context[\s_-]*(?:length|window|size|limit)[\s_-]*exceed|exceed_context"
    r"|(?:exceed|maximum|longer|larger|too (?:long|large|big|many)|beyond|only|>|<=)\W[^\n]{0,160}?"
    r"(?:context|model|sequence)[\s_-]*(?:length|len|window|size|limit)"
    r"|(?:context|model|sequence)[\s_-]*(?:length|len|window|size|limit)\W[^\n]{0,60}?(?:exceed|is|of)\b"
    r"|\b(?:prompts?|inputs?|messages|conversation|token count)\b(?!\"\s*:)[^\n]{0,80}?"
    r"(?:exceed|longer|too (?:long|large|big)|must (?:be <=|have less)|maximum number of tokens)"
    r"|reduce the length|string_above_max_length|request entity too large",
    re.IGNORECASE,
)
_RATES = re.compile(r"rate.?limit|per (?:minute|day|hour)|quota", re.IGNORECASE)
_CREDIT = re.compile(
    r"insufficient[\s_-]*(?:quota|balance|credit|fund)|credit balance|out of credit|exceeded your current quota",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One request for a reply.

    Attributes:
        seed: Of sampling; None where temperature is 0.
        schema: JSON schema that the reply must follow, or None for free text.
        top_p: None for the endpoint's own.
        stop: Texts before which the reply ends.
        tools: Schemas of the tools that the reply may call, in OpenAI's form.
    """

    messages: ChatMessages
    temperature: float
    max_tokens: int
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    top_p: float | None = None
    stop: Sequence[str] = ()
    tools: Sequence[Any] = ()

    @property
    def characters(self) -> int:
        """Of all messages."""
        return sum(len(message["content"]) for message in self.messages)

    def body(self, model: str) -> dict[str, Any]:
        """As OpenAI's API takes it."""
        given: dict[str, Any] = {
            "model": model,
            "messages": self.messages,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }
        if self.seed is not None:
            given["seed"] = self.seed
        if self.schema is not None:
            form = {"name": "critical_steps", "strict": True, "schema": self.schema}
            given["response_format"] = {"type": "json_schema", "json_schema": form}
        if self.top_p is not None:
            given["top_p"] = self.top_p
        if self.stop:
            given["stop"] = list(self.stop)
        if self.tools:
            given["tools"] = list(self.tools)
        return given


def shortest() -> CompletionRequest:
    """The request that shows whether an endpoint answers at all, for one token."""
    return CompletionRequest([{"role": "user", "content": "Say OK."}], 0.0, 1)


class RequestForm:
    """How one endpoint takes requests.

    Args:
        names: Its names of fields; None: it takes none of this name.
    """

    def __init__(self, names: Mapping[str, str | None]) -> None:
        self._names = dict(names)

    def applied(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request in this form."""
        made = {name: value for key, value in body.items() if (name := self._names.get(key, key)) is not None}
        if not all(self._names.get(key, key) for key in THOUGHTS):
            made["messages"] = [{k: v for k, v in m.items() if k not in THOUGHTS} for m in body["messages"]]
        return made

    def learn(self, sent: Mapping[str, Any], said: str, param: str | None = None) -> bool:
        """Takes from a refusal which field is to have another name, or none.

        Args:
            sent: The request that was refused, in the form that it had then.
            said: What the endpoint says.
            param: The field that it names, if it names one apart.

        Returns:
            Whether the form has changed.
        """
        if not _REFUSED.search(said):
            return False
        keys = [key for key in sent if key not in _NEEDED]
        keys += [key for key in THOUGHTS if any(key in message for message in sent["messages"])]
        places = {key: at.start() for key in keys if (at := re.search(rf"(?<!\w){key}(?!\w)", said))}
        field = param if param in keys else min(places, key=places.__getitem__, default=None)
        if field is None:
            return False
        own = next((key for key, name in self._names.items() if name == field), field)
        name = _SUCCESSORS.get(field) if own == field else None
        self._names |= dict.fromkeys(THOUGHTS if field in THOUGHTS else (own,), name)
        _log.warning("the endpoint takes no %s: %s", field, f"it is called {name}" if name else "it is left out")
        return True


def is_too_long(status: int, said: str) -> bool:
    """Whether a refusal says that the conversation does not fit the model, in whichever server's words."""
    return status in _STATUSES and bool(_TOO_LONG.search(said)) and not _RATES.search(said)


def is_out_of_credit(status: int, said: str) -> bool:
    """Whether a refusal says that the account is to pay first."""
    return status == 402 or (status in (400, 403, 429) and bool(_CREDIT.search(said)))
