"""Who is asked about a trajectory: one interface for endpoints, batches of an endpoint, and local engines."""

from __future__ import annotations

from typing import Protocol

from atlas_ray.models.client import Completion
from atlas_ray.models.request import CompletionRequest


class Backend(Protocol):
    """Answers requests, as many at once as are made; it holds back by itself what would be too many."""

    @property
    def address(self) -> str:
        """Where the model is: part of what a judgement is cached by."""
        ...

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply.

        Raises:
            UserError: If the key is missing or refused, or the model unknown.
            AtlasError: If no other request would fare better (dead endpoint, no credit, dead engines).
            SchemaRefusal: If replies cannot be held to `request.schema`.
            ContextOverflow: If the conversation is too long.
            ModelFailure: If this one request fails after its retries.
        """
        ...

    async def close(self) -> None:
        """Closes connections or ends engines."""
        ...
