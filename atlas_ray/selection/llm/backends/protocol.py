"""Who is asked about a trajectory: one interface for endpoints, batches of an endpoint, and local engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from atlas_ray.errors import AtlasError
from atlas_ray.selection.llm.prompt import ChatMessages
from atlas_ray.types import Usage


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One request.

    Attributes:
        seed: Of sampling; None where temperature is 0.
        schema: JSON schema that the reply must follow, or None for free text.
    """

    messages: ChatMessages
    temperature: float
    max_tokens: int
    seed: int | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One reply; `finish` is the model's own word ("stop", "length", ...)."""

    text: str
    finish: str
    usage: Usage


class SchemaRefusal(AtlasError):
    """The model cannot be held to a JSON schema; without one the request may fare better."""


class Backend(Protocol):
    """Answers requests, as many at once as are asked; it holds back by itself what would be too many."""

    @property
    def address(self) -> str:
        """Where the model is: part of what a judgement is cached by."""
        ...

    @property
    def room(self) -> int:
        """How many requests are worth having at once."""
        ...

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply.

        Raises:
            UserError: If the key is missing or refused, or the model unknown.
            AtlasError: If no other request would fare better (dead endpoint, no credit, dead engines).
            SchemaRefusal: If replies cannot be held to `request.schema`.
            ModelFailure: If this one request fails after its retries.
        """
        ...

    async def close(self) -> None:
        """Closes connections or ends engines."""
        ...
