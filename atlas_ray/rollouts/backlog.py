"""What a pool has still to play. Flows in: requests, and attempts that failed; flows out: the next attempt."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from atlas_ray.rollouts.replica import EpisodeRequest

_END: Any = object()
MAX_DEATHS = 4  # replicas that may die under one attempt


@dataclass(eq=False, slots=True)
class Attempt:
    """A request on its way.

    Attributes:
        failures: Attempts that infrastructure spoilt.
        deaths: Replicas that died while they played it.
        avoid: Replicas that failed it, by number.
    """

    request: EpisodeRequest
    failures: int = 0
    deaths: int = 0
    avoid: set[int] = field(default_factory=set)


class Backlog:
    """Attempts to be made again, then new requests.

    What flew when a replica died may be what killed it: such attempts fly again in ever smaller company with each
    death, the last one alone among those that died as often, lest the innocent are given up with the guilty.
    """

    def __init__(self, source: Iterator[EpisodeRequest | None], in_flight: int) -> None:
        self._source, self._more = source, True
        self._due: list[tuple[float, int, Attempt]] = []
        # No smaller than it must be: where nodes come and go, the innocent would wait for each other for many minutes.
        shrink = next(times for times in count(1) if in_flight // times ** (MAX_DEATHS - 1) <= 1)
        self._company = {deaths: max(1, in_flight // shrink**deaths) for deaths in range(1, MAX_DEATHS)}
        self._suspects: dict[int, deque[Attempt]] = {deaths: deque() for deaths in self._company}
        self._watched: dict[int, set[Attempt]] = {deaths: set() for deaths in self._company}
        self._numbers = count()

    def take(self) -> Attempt | None:
        """What to play now, if there is anything."""
        for deaths, suspects in self._suspects.items():
            if suspects and len(self._watched[deaths]) < self._company[deaths]:
                attempt = suspects.popleft()
                self._watched[deaths].add(attempt)
                return attempt
        if self._due and self._due[0][0] <= time.monotonic():
            return heapq.heappop(self._due)[2]
        request = next(self._source, _END) if self._more else _END
        self._more = request is not _END
        return None if request is None or request is _END else Attempt(request)

    def land(self, attempt: Attempt, again: bool) -> None:
        """An attempt ended; where it is to be made again: soon after a death, later and later after failures."""
        for watched in self._watched.values():
            watched.discard(attempt)
        if again and attempt.deaths:
            self._suspects[attempt.deaths].append(attempt)
        elif again:
            pause = 2.0 ** (attempt.failures - 1)
            heapq.heappush(self._due, (time.monotonic() + pause, next(self._numbers), attempt))

    @property
    def waiting(self) -> int:
        """Attempts that are to be made again."""
        return len(self._due) + sum(map(len, self._suspects.values()))

    @property
    def next_due(self) -> float | None:
        """When the next failed attempt is to be made again, on the monotonic clock."""
        return self._due[0][0] if self._due else None

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return not (self._more or self._due or any(self._suspects.values()))
