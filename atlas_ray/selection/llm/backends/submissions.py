"""Batches of an endpoint: the record of what was submitted, and what an ended batch gave.

Flows in: the API's answers and files; flows out: completions and failures by request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from atlas_ray.runs.tables import TableSpec

if TYPE_CHECKING:
    from openai.types import Batch

MOST_BATCHED = 50_000  # requests of one batch, by the API's own limit
_RETRIED = (408, 409, 429)


@dataclass(frozen=True, slots=True)
class Submission:
    """One batch on record.

    Attributes:
        id: Our name for it, which the batch's metadata repeat.
        batch_id: The endpoint's name; empty until the endpoint has given one.
        created: Unix seconds.
        questions: Digests of what is asked: the requests' `custom_id`s.
    """

    id: str
    batch_id: str
    created: float
    questions: tuple[str, ...]


BATCHES: TableSpec[Submission] = TableSpec(
    "batches",
    pa.schema(
        [
            ("id", pa.string()),
            ("batch_id", pa.string()),
            ("created", pa.float64()),
            ("questions", pa.list_(pa.string())),
        ]
    ),
    asdict,
    lambda row: Submission(**row | {"questions": tuple(row["questions"])}),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no reply.

    Attributes:
        again: Whether another batch may have one.
        remedy: What people have to do first, where that concerns all requests.
    """

    what: str
    again: bool = False
    remedy: str = ""


@dataclass(slots=True)
class Results:
    """What a batch gave, by digest; `missing` is what holds for all other requests."""

    found: dict[str, dict[str, Any] | Failure]
    missing: Failure

    def get(self, digest: str) -> dict[str, Any] | Failure:
        """What came of one request."""
        return self.found.get(digest, self.missing)


def parsed(content: bytes) -> Iterator[tuple[str, dict[str, Any] | Failure]]:
    """Lines of an output or error file: the body of a completion, or why there is none."""
    for line in content.splitlines():
        try:
            row = json.loads(line)
            digest, response = str(row["custom_id"]), row.get("response") or {}
            status, body = int(response.get("status_code") or 0), response.get("body") or {}
            if status == 200 and body.get("choices"):
                yield digest, body
                continue
            error = row.get("error") or body.get("error") or {}
            what = str(error.get("message") or error.get("code") or "no reply")
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        again = status in _RETRIED or not 400 <= status < 500
        yield digest, Failure(f"HTTP {status}: {what}" if status else what, again)


def missing_from(batch: Batch) -> Failure:
    """Why a request of a batch that has ended is in neither of its files."""
    if batch.status == "cancelled":
        remedy = "run the same command again to submit what it left"
        return Failure(f"batch {batch.id} was cancelled", remedy=remedy)
    if batch.status == "failed":
        remedy = "mend that and run the same command again"
        return Failure(f"batch {batch.id} was refused: {errors(batch)}", remedy=remedy)
    if batch.status == "expired":
        return Failure(f"batch {batch.id} expired before it was done", again=True)
    return unanswered()


def unanswered() -> Failure:
    """A batch has ended well, and yet one request is nowhere in its files."""
    return Failure("the batch ended without a reply to this request", again=True)


def codes(batch: Batch) -> list[str]:
    """Why a batch was refused, in the API's words for machines."""
    return [error.code or "" for error in (batch.errors.data if batch.errors else None) or []]


def errors(batch: Batch) -> str:
    """Why a batch was refused, in words for people."""
    found = (batch.errors.data if batch.errors else None) or []
    return "; ".join(dict.fromkeys(error.message or error.code or "" for error in found))[:300] or "no reason given"
