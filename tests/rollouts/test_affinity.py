"""Requests of a group go to one replica, as far as balance allows. Fake replicas: nothing is played."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from atlas_ray.rollouts.affinity import AffinityQueue
from atlas_ray.rollouts.replica_handle import ReplicaHandle
from atlas_ray.rollouts.retry_queue import Attempt, RetryQueue

IN_FLIGHT = 32


@dataclass(frozen=True, eq=False)
class Request:
    group: str | None
    number: int = 0


def groups(*sizes: int) -> list[Request]:
    return [Request(f"group {g}", n) for g, size in enumerate(sizes) for n in range(size)]


@dataclass
class FakeReplicas:
    """Replicas whose requests end in a drawn order.

    Attributes:
        where: Requests of each group by replica.
        widest: The most by which one replica had more in flight than another, when a request was given out.
    """

    count: int
    seed: int = 0
    where: defaultdict[str | None, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    widest: int = 0
    idle: int = 0

    def __post_init__(self) -> None:
        self.handles = [ReplicaHandle[Request](index, None, 0.0, pid=1) for index in range(self.count)]
        self._draw, self._number = random.Random(self.seed), 0

    def give(self, queue: AffinityQueue[Request]) -> None:
        """As many as have room."""
        while taken := queue.take(self.handles):
            attempt, handle = taken
            assert len(handle.inflight) < IN_FLIGHT
            self._number += 1
            handle.inflight[self._number] = attempt
            self.where[attempt.request.group][handle.index] += 1
            loads = [len(one.inflight) for one in self.handles]
            self.widest = max(self.widest, max(loads) - min(loads))

    def end_one(self) -> Attempt[Request]:
        handle, number = self._draw.choice([(h, n) for h in self.handles for n in h.inflight])
        return handle.inflight.pop(number)

    def work(self, requests: Sequence[Request]) -> None:
        """Works at all of them; notes how often a place was free while requests were left."""
        left = len(requests)
        source = RetryQueue(iter(requests), IN_FLIGHT)
        queue = AffinityQueue(source, IN_FLIGHT)
        self.give(queue)
        while any(handle.inflight for handle in self.handles):
            busy = sum(len(handle.inflight) for handle in self.handles)
            self.idle += left > busy and busy < IN_FLIGHT * self.count
            source.on_done(self.end_one(), again=False)
            left -= 1
            self.give(queue)
        assert left == queue.waiting == 0


def at_one(where: dict[str | None, Counter[int]]) -> float:
    """Share of the requests that went to their group's most frequent replica."""
    return sum(max(found.values()) for found in where.values()) / sum(sum(found.values()) for found in where.values())


@pytest.mark.parametrize("replicas", [2, 4, 8])
def test_siblings_go_to_one_replica_though_all_replicas_are_full(replicas: int) -> None:
    sizes = [5 * random.Random(g).randint(3, 15) for g in range(30 * replicas)]
    fake = FakeReplicas(replicas)
    fake.work(groups(*sizes))
    assert sum(sum(found.values()) for found in fake.where.values()) == sum(sizes)
    assert at_one(fake.where) > 0.95
    assert fake.idle < 0.1 * sum(sizes)  # the last groups alone leave places free


def test_requests_without_a_group_go_where_least_is_in_flight() -> None:
    fake = FakeReplicas(4)
    fake.work([Request(None, n) for n in range(1000)])
    assert fake.idle == 0
    assert fake.widest <= IN_FLIGHT // 4


def test_a_group_that_is_alone_is_shared_out() -> None:
    fake = FakeReplicas(4)
    fake.give(AffinityQueue(RetryQueue(iter(groups(3 * IN_FLIGHT)), IN_FLIGHT), IN_FLIGHT))
    assert sum(fake.where["group 0"].values()) == 3 * IN_FLIGHT
    assert fake.widest == IN_FLIGHT // 4 + 1
    assert fake.where["group 0"].most_common(1)[0][0] == 0


def test_no_more_requests_wait_than_replicas_have_places() -> None:
    taken = 0

    def source() -> Iterator[Request]:
        nonlocal taken
        for request in groups(10_000):
            taken += 1
            yield request

    fake = FakeReplicas(2)
    queue = AffinityQueue(RetryQueue(source(), IN_FLIGHT), IN_FLIGHT)
    fake.give(queue)
    assert all(len(handle.inflight) == IN_FLIGHT for handle in fake.handles)
    assert queue.waiting <= 2 * IN_FLIGHT
    assert taken == 2 * IN_FLIGHT + queue.waiting


def full_first_replica() -> tuple[FakeReplicas, AffinityQueue[Request], RetryQueue[Request]]:
    """Group 0 fills the first replica, and three of it wait; the second replica has as much of group 1."""
    requests = groups(IN_FLIGHT + 3, IN_FLIGHT)
    source = RetryQueue(iter(requests), IN_FLIGHT)
    fake, queue = FakeReplicas(2), AffinityQueue(source, IN_FLIGHT)
    fake.give(queue)
    assert fake.where == {"group 0": Counter({0: IN_FLIGHT}), "group 1": Counter({1: IN_FLIGHT})}
    return fake, queue, source


def test_a_request_waits_for_its_groups_replica() -> None:
    fake, queue, _ = full_first_replica()
    fake.handles[1].inflight.popitem()
    assert queue.take(fake.handles) is None  # the first of group 0 was taken from the source, and waits
    fake.handles[0].inflight.popitem()
    attempt, handle = queue.take(fake.handles) or pytest.fail("nothing was taken")
    assert (attempt.request.group, handle.index) == ("group 0", 0)


def lose_first(fake: FakeReplicas) -> list[ReplicaHandle[Request]]:
    return fake.handles[1:]


def restart_first(fake: FakeReplicas) -> list[ReplicaHandle[Request]]:
    return [ReplicaHandle[Request](0, None, 0.0, pid=2), *fake.handles[1:]]


@pytest.mark.parametrize(("change", "at"), [(lose_first, 1), (restart_first, 0)])
def test_what_waited_for_a_replica_that_died_goes_to_another_or_to_its_successor(
    change: Callable[[FakeReplicas], list[ReplicaHandle[Request]]], at: int
) -> None:
    fake, queue, _ = full_first_replica()
    fake.handles[1].inflight.popitem()
    assert queue.take(fake.handles) is None
    attempt, handle = queue.take(change(fake)) or pytest.fail("nothing was taken")
    assert (attempt.request.group, handle.index) == ("group 0", at)


def test_what_killed_or_failed_at_its_replica_does_not_wait_for_it() -> None:
    fake = FakeReplicas(2)
    source = RetryQueue(iter(groups(IN_FLIGHT)), IN_FLIGHT)
    queue = AffinityQueue(source, IN_FLIGHT)
    attempt, handle = queue.take(fake.handles) or pytest.fail("nothing was taken")
    assert handle.index == 0
    attempt.deaths, attempt.avoid = 1, {0}
    source.on_done(attempt, again=True)
    again = queue.take(fake.handles)  # the first replica is as free as the second
    assert again is not None
    assert (again[0], again[1].index) == (attempt, 1)


def test_a_request_that_nobody_waits_for_is_forgotten() -> None:
    fake, queue, _ = full_first_replica()
    fake.handles[1].inflight.popitem()
    assert queue.take(fake.handles) is None
    waiting = queue.waiting
    assert waiting
    for request in [attempt.request for attempts in queue._waiting.values() for attempt in attempts]:
        queue.discard(request)
    assert queue.waiting == 0
