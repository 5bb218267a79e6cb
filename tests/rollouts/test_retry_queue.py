"""What replicas do next: attempts that replicas died under, ever fewer at once, then new requests."""

from __future__ import annotations

import random
from typing import Any

import pytest

from atlas_ray.rollouts.retry_queue import MAX_DEATHS, Attempt, RetryQueue


def queue_of(in_flight: int, requests: int) -> RetryQueue[Any]:
    source: Any = iter(range(requests))
    return RetryQueue(source, in_flight)


def taken(queued: RetryQueue[Any], most: int) -> list[Attempt[Any]]:
    return [attempt for _ in range(most) if (attempt := queued.take()) is not None]


def die(queued: RetryQueue[Any], attempts: list[Attempt[Any]]) -> None:
    for attempt in attempts:
        attempt.deaths += 1
        queued.on_done(attempt, again=True)


@pytest.mark.parametrize(("in_flight", "limits"), [(1, [1, 1, 1]), (8, [4, 2, 1]), (32, [10, 3, 1]), (256, [42, 7, 1])])
def test_quarantine_limit_shrinks_with_each_death_to_one(in_flight: int, limits: list[int]) -> None:
    queued = queue_of(in_flight, in_flight)
    inflight, found = taken(queued, in_flight), []
    for deaths in range(1, MAX_DEATHS):
        die(queued, inflight)
        # those that died less often are in flight beside them, and do not wait
        inflight = [attempt for attempt in taken(queued, in_flight) if attempt.deaths == deaths]
        found.append(len(inflight))
    assert found == limits


@pytest.mark.parametrize("in_flight", [1, 2, 3, 100, 1000, 4096])
def test_last_attempt_is_alone_whatever_number_is_in_flight(in_flight: int) -> None:
    queued = queue_of(in_flight, 2)
    quarantined = taken(queued, 2)
    for one in quarantined:
        one.deaths = MAX_DEATHS - 2
    die(queued, quarantined)
    assert taken(queued, 2) == quarantined[:1]
    queued.on_done(quarantined[0], again=False)
    assert taken(queued, 2) == quarantined[1:]


def test_quarantined_attempts_come_before_new_requests_and_none_is_lost() -> None:
    queued = queue_of(8, 20)
    first = taken(queued, 8)
    die(queued, first)
    assert queued.waiting == 8
    inflight = taken(queued, 8)
    assert inflight[:4] == first[:4]
    assert all(attempt.deaths == 0 for attempt in inflight[4:])
    played = 0
    while inflight:
        queued.on_done(inflight.pop(0), again=False)
        played += 1
        inflight += taken(queued, 1)
    assert (played, queued.waiting, queued.ended) == (20, 0, True)


@pytest.mark.parametrize("in_flight", [1, 2, 5, 32])
@pytest.mark.parametrize("seed", range(5))
def test_request_that_kills_replicas_is_given_up_alone(in_flight: int, seed: int) -> None:
    rng, queued = random.Random(seed), queue_of(in_flight, 100)
    killer, given_up, played = rng.randrange(100), list[Any](), list[Any]()
    inflight = list[Attempt[Any]]()
    while inflight := inflight + taken(queued, in_flight - len(inflight)):
        one = inflight.pop(rng.randrange(len(inflight)))
        if one.request != killer:
            queued.on_done(one, again=False)
            played.append(one.request)
            continue
        dead, inflight = [one, *inflight], []
        for attempt in dead:
            attempt.deaths += 1
            queued.on_done(attempt, again=attempt.deaths < MAX_DEATHS)
            given_up += [attempt.request] if attempt.deaths == MAX_DEATHS else []
    assert queued.ended
    assert given_up == [killer]
    assert sorted(played) == [n for n in range(100) if n != killer]
