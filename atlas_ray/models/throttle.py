"""How fast an endpoint may be asked: concurrency that adapts to it, requests and tokens a minute, and pauses.

Plain asyncio. Flows in: calls that want a turn, and how they fared; flows out: turns.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from atlas_ray.config import EndpointConfig
from atlas_ray.errors import AtlasError

_CUT = 0.7  # of the calls in flight, where the endpoint is overloaded
_GROWTH = 0.1  # of the most calls in flight, for each round of good replies
_LOOK_SECONDS = 5.0  # between two looks of a call that waits for its time
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

    Attributes:
        stopped: The error that every further call would meet, once there was one.
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
        self._waiting: deque[asyncio.Future[None]] = deque()  # calls that want a place
        self._probing = False
        self.stopped: AtlasError | None = None
        self._next_request = self._next_tokens = self._paused_until = self._cut_at = clock()

    @classmethod
    def of(cls, endpoint: EndpointConfig) -> Throttle:
        """With the limits that an endpoint's settings name."""
        return cls(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)

    @property
    def window(self) -> int:
        """Calls that may be in flight now."""
        return 1 if self._probing else max(1, int(self._window))

    @asynccontextmanager
    async def turn(self, tokens: int) -> AsyncIterator[float]:
        """Waits until a call may go out, and holds its place while it is under way; gives the moment it began.

        Args:
            tokens: What the call will count for: its prompt, and the longest reply.
        """
        began = await self.enter(tokens)
        try:
            yield began
        finally:
            self.leave()

    async def enter(self, tokens: int) -> float:
        """Waits until a call may go out; `leave` says that it is over.

        Raises:
            AtlasError: If `stop` was called.
        """
        await self._place()
        try:
            self._raise_if_stopped()
            start = max(self._clock(), self._next_request, self._next_tokens)
            self._next_request = start + self._per_request
            self._next_tokens = start + tokens * self._per_token
            while (wait := max(start, self._paused_until) - self._clock()) > 0:
                await self._sleep(min(wait, _LOOK_SECONDS))
                self._raise_if_stopped()
        except BaseException:
            self.leave()
            raise
        return self._clock()

    def leave(self) -> None:
        """A call that has entered is over."""
        self._active -= 1
        self._admit()

    def probe(self) -> None:
        """One call goes out alone, until one is answered: what every call would meet is then met once."""
        self._probing = True

    def stop(self, error: AtlasError) -> None:
        """No further call goes out: each would meet this error, and is told so."""
        self.stopped = self.stopped or error
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                self._active += 1
                place.set_result(None)

    def succeeded(self) -> None:
        """A call was answered."""
        if self._probing:
            self._probing = False
            self._admit()
        self._window = min(self._most, self._window + max(1.0, _GROWTH * self._most) / self._window)

    def overloaded(self, began: float) -> None:
        """A call that began then was refused for load, or not answered in time."""
        if began >= self._cut_at:
            self._window = max(1.0, self._window * _CUT)
            self._cut_at = self._clock()

    def pause(self, seconds: float) -> None:
        """Holds all calls that have not gone out."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _raise_if_stopped(self) -> None:
        if self.stopped is not None:
            raise type(self.stopped)(self.stopped.what, self.stopped.remedy)

    async def _place(self) -> None:
        self._raise_if_stopped()
        if not self._waiting and self._active < self.window:
            self._active += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()
            raise

    def _admit(self) -> None:
        """Gives free places to those that wait, first come, first served."""
        while self._waiting and self._active < self.window:
            place = self._waiting.popleft()
            if not place.done():
                self._active += 1
                place.set_result(None)


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
