"""How fast an endpoint is asked: on a clock that the test winds."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Coroutine
from typing import Any

import pytest

from atlas_ray.models.client import TokenRatio
from atlas_ray.models.throttle import Throttle, back_off, retry_after


class Clock:
    """Seconds that pass when everyone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._count += 1
        heapq.heappush(self._sleepers, (self.now + seconds, self._count, woken))
        await woken.wait()

    async def run(self, *work: Coroutine[Any, Any, Any]) -> None:
        """Until all is done; whenever nothing more happens, the first sleeper wakes."""
        tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
        while not all(task.done() for task in tasks):
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not all(task.done() for task in tasks):
                self.now, _, woken = heapq.heappop(self._sleepers)
                woken.set()
        await asyncio.gather(*tasks)


async def starts(clock: Clock, throttle: Throttle, calls: int, tokens: int = 1, seconds: float = 1.0) -> list[float]:
    """When calls go out that are all wanted at once and take a while."""
    begun: list[float] = []

    async def call() -> None:
        async with throttle.turn(tokens) as began:
            begun.append(began)
            await clock.sleep(seconds)

    await clock.run(*(call() for _ in range(calls)))
    return begun


async def test_no_more_calls_are_in_flight_than_allowed() -> None:
    clock = Clock()
    assert await starts(clock, Throttle(3, clock=clock, sleep=clock.sleep), 7) == [0, 0, 0, 1, 1, 1, 2]


async def test_requests_a_minute_are_spread_evenly() -> None:
    clock = Clock()
    throttle = Throttle(100, requests_per_minute=120, clock=clock, sleep=clock.sleep)
    assert await starts(clock, throttle, 5) == [0, 0.5, 1.0, 1.5, 2.0]


async def test_tokens_a_minute_count_prompt_and_longest_reply() -> None:
    clock = Clock()
    throttle = Throttle(100, tokens_per_minute=6000, clock=clock, sleep=clock.sleep)
    assert await starts(clock, throttle, 4, tokens=500) == [0, 5, 10, 15]


async def test_the_slower_of_two_limits_holds() -> None:
    clock = Clock()
    throttle = Throttle(100, requests_per_minute=60, tokens_per_minute=6000, clock=clock, sleep=clock.sleep)
    assert await starts(clock, throttle, 3, tokens=50) == [0, 1, 2]
    assert await starts(clock, throttle, 3, tokens=200) == [3, 5, 7]


async def test_a_pause_holds_every_call_that_has_not_gone_out() -> None:
    clock = Clock()
    throttle = Throttle(2, clock=clock, sleep=clock.sleep)
    throttle.pause(10)
    throttle.pause(4)  # the longer one counts
    assert await starts(clock, throttle, 3) == [10, 10, 11]


async def test_a_pause_reaches_calls_that_wait_for_their_rate() -> None:
    clock = Clock()
    throttle = Throttle(9, requests_per_minute=60, clock=clock, sleep=clock.sleep)

    async def pause() -> None:
        await clock.sleep(0.5)
        throttle.pause(3)

    begun: list[float] = []

    async def call() -> None:
        async with throttle.turn(1) as began:
            begun.append(began)

    await clock.run(call(), call(), pause())
    assert begun == [0, 3.5]


def test_refusals_cut_concurrency_once_for_calls_that_were_under_way_together() -> None:
    clock = Clock()
    throttle = Throttle(100, clock=clock)
    clock.now = 1.0
    for _ in range(50):
        throttle.overloaded(began=0.5)
    assert throttle.window == 70
    clock.now = 2.0
    throttle.overloaded(began=0.9)  # it began before the cut
    assert throttle.window == 70
    throttle.overloaded(began=1.5)
    assert throttle.window == 49


def test_good_replies_raise_concurrency_by_a_tenth_a_round_up_to_the_most() -> None:
    clock = Clock()
    throttle = Throttle(100, clock=clock)
    throttle.overloaded(began=0.0)
    assert throttle.window == 70
    for _ in range(70):
        throttle.succeeded()
    assert throttle.window in (79, 80)
    for _ in range(500):
        throttle.succeeded()
    assert throttle.window == 100


def test_one_call_always_goes_on() -> None:
    clock = Clock()
    throttle = Throttle(4, clock=clock)
    for second in range(1, 50):
        clock.now = second
        throttle.overloaded(began=second - 0.5)
    assert throttle.window == 1


async def test_a_smaller_window_lets_fewer_calls_through() -> None:
    clock = Clock()
    throttle = Throttle(4, clock=clock, sleep=clock.sleep)
    for second in (1, 2):
        throttle.overloaded(began=second)
        clock.now = second + 0.5
    assert throttle.window == 1
    assert await starts(clock, throttle, 3) == [2.5, 3.5, 4.5]


async def test_a_cancelled_call_gives_its_place_back() -> None:
    clock = Clock()
    throttle = Throttle(1, clock=clock, sleep=clock.sleep)
    throttle.pause(60)

    async def held() -> None:
        async with throttle.turn(1):
            raise AssertionError("never its turn")

    holding, waiting = asyncio.ensure_future(held()), asyncio.ensure_future(held())
    for _ in range(5):
        await asyncio.sleep(0)
    for task in (waiting, holding):
        task.cancel()
    await asyncio.gather(holding, waiting, return_exceptions=True)
    clock.now = 60.0
    assert await starts(clock, throttle, 1) == [60]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "300"}, 0.3),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:27:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_what_a_server_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=lambda: 1445412480.0) == seconds  # 07:28:00


def test_back_off_doubles_up_to_half_a_minute_with_full_jitter() -> None:
    for attempt, most in ((0, 0.5), (3, 4.0), (9, 30.0)):
        drawn = [back_off(attempt) for _ in range(300)]
        assert 0 <= min(drawn) < 0.2 * most
        assert 0.8 * most < max(drawn) <= most


def test_the_ratio_follows_what_replies_report() -> None:
    ratio = TokenRatio()
    assert ratio.tokens(300) == 100
    ratio.saw(5_000_000, 1_000_000)
    assert ratio.tokens(300) == pytest.approx(60, abs=1)
    ratio.saw(100, 0)  # an endpoint that reports nothing
    assert ratio.tokens(300) == pytest.approx(60, abs=1)
