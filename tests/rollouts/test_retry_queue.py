"""What a pool plays next: attempts that replicas died under in ever smaller company, then what is new."""

from __future__ import annotations

import random
from typing import Any

import pytest

from atlas_ray.rollouts.retry_queue import MAX_DEATHS, Attempt, Backlog


def backlog(in_flight: int, requests: int) -> Backlog:
    source: Any = iter(range(requests))
    return Backlog(source, in_flight)


def taken(held: Backlog, most: int) -> list[Attempt]:
    return [attempt for _ in range(most) if (attempt := held.take()) is not None]


def die(held: Backlog, attempts: list[Attempt]) -> None:
    for attempt in attempts:
        attempt.deaths += 1
        held.land(attempt, again=True)


@pytest.mark.parametrize(
    ("in_flight", "companies"), [(1, [1, 1, 1]), (8, [4, 2, 1]), (32, [10, 3, 1]), (256, [42, 7, 1])]
)
def test_company_shrinks_with_each_death_until_one_flies_alone(in_flight: int, companies: list[int]) -> None:
    held = backlog(in_flight, in_flight)
    flying, found = taken(held, in_flight), []
    for deaths in range(1, MAX_DEATHS):
        die(held, flying)
        # those that died less often fly beside, and do not wait
        flying = [attempt for attempt in taken(held, in_flight) if attempt.deaths == deaths]
        found.append(len(flying))
    assert found == companies


@pytest.mark.parametrize("in_flight", [1, 2, 3, 100, 1000, 4096])
def test_the_last_is_alone_however_many_fly(in_flight: int) -> None:
    held = backlog(in_flight, 2)
    suspects = taken(held, 2)
    for suspect in suspects:
        suspect.deaths = MAX_DEATHS - 2
    die(held, suspects)
    assert taken(held, 2) == suspects[:1]
    held.land(suspects[0], again=False)
    assert taken(held, 2) == suspects[1:]


def test_what_a_death_left_comes_before_what_is_new_and_nothing_is_lost() -> None:
    held = backlog(8, 20)
    first = taken(held, 8)
    die(held, first)
    assert held.waiting == 8
    flying = taken(held, 8)
    assert flying[:4] == first[:4]
    assert all(attempt.deaths == 0 for attempt in flying[4:])
    played = 0
    while flying:
        held.land(flying.pop(0), again=False)
        played += 1
        flying += taken(held, 1)
    assert (played, held.waiting, held.ended) == (20, 0, True)


@pytest.mark.parametrize("in_flight", [1, 2, 5, 32])
@pytest.mark.parametrize("seed", range(5))
def test_one_that_kills_is_given_up_alone(in_flight: int, seed: int) -> None:
    rng, held = random.Random(seed), backlog(in_flight, 100)
    killer, given_up, played = rng.randrange(100), list[Any](), list[Any]()
    flying = list[Attempt]()
    while flying := flying + taken(held, in_flight - len(flying)):
        one = flying.pop(rng.randrange(len(flying)))
        if one.request != killer:
            held.land(one, again=False)
            played.append(one.request)
            continue
        dead, flying = [one, *flying], []
        for attempt in dead:
            attempt.deaths += 1
            held.land(attempt, again=attempt.deaths < MAX_DEATHS)
            given_up += [attempt.request] if attempt.deaths == MAX_DEATHS else []
    assert held.ended
    assert given_up == [killer]
    assert sorted(played) == [n for n in range(100) if n != killer]
