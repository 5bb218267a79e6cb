"""What a pool has still to play. Flows in: requests, and attempts that failed; flows out: the next attempt."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from atlas_ray.rollouts.replica import EpisodeRequest

_END: Any = object()


@dataclass(eq=False, slots=True)
class Attempt:
    """A request on its way.

    Attributes:
        failures: Attempts that infrastructure spoilt.
        deaths: Replicas that died while they played it.
        avoid: Replicas that failed it, by number.
        seat: The replica that plays it now.
        ref: The call under way.
    """

    request: EpisodeRequest
    failures: int = 0
    deaths: int = 0
    avoid: set[int] = field(default_factory=set)
    seat: Any = None
    ref: Any = None


class Backlog:
    """Attempts to be made again come first, once their pause is over; then new requests."""

    def __init__(self, source: Iterator[EpisodeRequest | None]) -> None:
        self._source, self._more = source, True
        self._due: list[tuple[float, int, Attempt]] = []
        self._numbers = count()

    def take(self) -> Attempt | None:
        """What to play now, if there is anything."""
        if self._due and self._due[0][0] <= time.monotonic():
            return heapq.heappop(self._due)[2]
        request = next(self._source, _END) if self._more else _END
        self._more = request is not _END
        return None if request is None or request is _END else Attempt(request)

    def put_back(self, attempt: Attempt) -> None:
        """Has it played again: at once after a death, later and later after failures."""
        pause = 2.0 ** (attempt.failures - 1) if attempt.failures else 0.0
        heapq.heappush(self._due, (time.monotonic() + pause, next(self._numbers), attempt))

    @property
    def next_due(self) -> float | None:
        """When the next attempt is to be made again, on the monotonic clock."""
        return self._due[0][0] if self._due else None

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return not (self._more or self._due)
