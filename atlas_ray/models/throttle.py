"""How fast an endpoint may be asked: concurrency that adapts to it, requests and tokens a minute, and pauses.

Plain asyncio. Flows in: calls that want a turn, and how they fared; flows out: turns.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

_CUT = 0.7  # of the calls in flight, where the endpoint is overloaded
_GROWTH = 0.1  # of the most calls in flight, for each round of good replies
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds


class Throttle:
    """Lets calls through: additive increase and multiplicative decrease, as TCP does.

    The number in flight starts at `most`. A refusal (429, 5xx, time-out) cuts it to 0.7 of itself, once for all calls
    that were under way together; a whole round of good replies adds a tenth of `most`.

    Args:
        most: Calls in flight, at most.
        requests_per_minute: None for no limit. Calls are spread evenly, so no second of the minute holds a burst.
        tokens_per_minute: Likewise.
        clock: Seconds that only grow.
        sleep: Waits for seconds of that clock.
    """

    def __init__(
        self,
        most: int,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._most, self._window = most, float(most)
        self._per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._active = 0
        self._place = asyncio.Condition()
        self._next_request = self._next_tokens = self._paused_until = self._cut_at = clock()

    @property
    def window(self) -> int:
        """Calls that may be in flight now."""
        return max(1, int(self._window))

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[float]:
        """Waits until a call may go out; gives the moment, for `overloaded`.

        Args:
            tokens: What the call will count for: its prompt, and the longest reply.
        """
        async with self._place:
            await self._place.wait_for(lambda: self._active < self.window)
            self._active += 1
        try:
            start = max(self._clock(), self._next_request, self._next_tokens)
            self._next_request = start + self._per_request
            self._next_tokens = start + tokens * self._per_token
            while (wait := max(start, self._paused_until) - self._clock()) > 0:
                await self._sleep(wait)
            yield self._clock()
        finally:
            self._active -= 1
            async with self._place:
                self._place.notify(max(1, self.window - self._active))

    def succeeded(self) -> None:
        """A call was answered."""
        self._window = min(self._most, self._window + max(1.0, _GROWTH * self._most) / self._window)

    def overloaded(self, began: float) -> None:
        """A call that began then was refused for load, or not answered in time."""
        if began >= self._cut_at:
            self._window = max(1.0, self._window * _CUT)
            self._cut_at = self._clock()

    def pause(self, seconds: float) -> None:
        """Holds all calls that have not gone out."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


def back_off(attempt: int) -> float:
    """Seconds before a call is tried again: exponential, with full jitter, for the attempt just failed (from 0)."""
    return random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt))


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a refusal asks to wait (`retry-after-ms`, or `Retry-After` as seconds or as a date), else None."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - now())
