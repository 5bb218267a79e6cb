"""What replicas have still to do. Flows in: requests, and attempts that failed; flows out: the next attempt."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")

_END: Any = object()
MAX_DEATHS = 4  # replicas that may die under one attempt


@dataclass(eq=False, slots=True)
class Attempt(Generic[Request]):
    """A request on its way.

    Attributes:
        failures: Attempts that infrastructure spoilt.
        deaths: Replicas that died while they worked at it.
        avoid: Replicas that failed it, by index.
    """

    request: Request
    failures: int = 0
    deaths: int = 0
    avoid: set[int] = field(default_factory=set)


class RetryQueue(Generic[Request]):
    """Attempts to be made again, then new requests.

    What was in flight when a replica died may be what killed it. Such attempts are quarantined: the more replicas died
    under them, the fewer of them are in flight at once, in the end one alone, lest the innocent be given up with the
    guilty.

    Args:
        source: New requests; None among them means: none yet.
        in_flight: Requests that one replica works at.
    """

    def __init__(self, source: Iterator[Request | None], in_flight: int) -> None:
        self._source, self._more = source, True
        self._due: list[tuple[float, int, Attempt[Request]]] = []
        # The smallest divisor that ends with one alone: where nodes come and go, the innocent wait for each other.
        divisor = next(d for d in count(1) if in_flight // d ** (MAX_DEATHS - 1) <= 1)
        self._quarantine_limit = {deaths: max(1, in_flight // divisor**deaths) for deaths in range(1, MAX_DEATHS)}
        self._quarantined: dict[int, deque[Attempt[Request]]] = {deaths: deque() for deaths in self._quarantine_limit}
        self._inflight: dict[int, set[Attempt[Request]]] = {deaths: set() for deaths in self._quarantine_limit}
        self._numbers = count()

    def take(self) -> Attempt[Request] | None:
        """What to do now, if there is anything."""
        for deaths, quarantined in self._quarantined.items():
            if quarantined and len(self._inflight[deaths]) < self._quarantine_limit[deaths]:
                attempt = quarantined.popleft()
                self._inflight[deaths].add(attempt)
                return attempt
        if self._due and self._due[0][0] <= time.monotonic():
            return heapq.heappop(self._due)[2]
        request = next(self._source, _END) if self._more else _END
        self._more = request is not _END
        return None if request is None or request is _END else Attempt(request)

    def on_done(self, attempt: Attempt[Request], again: bool) -> None:
        """An attempt ended; where it is to be made again: soon after a death, later and later after failures."""
        for inflight in self._inflight.values():
            inflight.discard(attempt)
        if again and attempt.deaths:
            self._quarantined[attempt.deaths].append(attempt)
        elif again:
            pause = 2.0 ** (attempt.failures - 1)
            heapq.heappush(self._due, (time.monotonic() + pause, next(self._numbers), attempt))

    @property
    def waiting(self) -> int:
        """Attempts that are to be made again."""
        return len(self._due) + sum(map(len, self._quarantined.values()))

    @property
    def next_due(self) -> float | None:
        """When the next failed attempt is to be made again, on the monotonic clock."""
        return self._due[0][0] if self._due else None

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return not (self._more or self._due or any(self._quarantined.values()))
