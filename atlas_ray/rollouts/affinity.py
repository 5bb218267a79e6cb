"""Which replica gets which request: those of a group share a beginning, and go where the prefix cache holds it.

Flows in: attempts from the retry queue, and replicas; flows out: an attempt and the replica that works at it. A group's
replica is the one that had least to do when the group began. While that is full, or far busier than another, the
group's requests wait for it and other groups' are taken: else, where all replicas are full, which is the rule, a
request would go to whichever has a place free next.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from typing import Generic

from atlas_ray.rollouts.replica import Request
from atlas_ray.rollouts.replica_handle import ReplicaHandle
from atlas_ray.rollouts.retry_queue import Attempt, RetryQueue

_REMEMBERED = 100_000  # groups; what those long gone began with is in no cache


class AffinityQueue(Generic[Request]):
    """Attempts, each for the replica of its request's `group` where that has one.

    Groups bend to balance in two ways: where nothing else is there to do, no replica has a quarter of its places less
    in use than one that requests wait for; and no more requests wait than all replicas have places.

    Args:
        queued: Where attempts come from.
        in_flight: Requests that one replica works at.
    """

    def __init__(self, queued: RetryQueue[Request], in_flight: int) -> None:
        self._queued, self._in_flight = queued, in_flight
        self._replicas: OrderedDict[str, int] = OrderedDict()
        self._waiting: defaultdict[int, deque[Attempt[Request]]] = defaultdict(deque)  # by replica, none tried before

    @property
    def waiting(self) -> int:
        """Attempts that wait for their group's replica."""
        return sum(map(len, self._waiting.values()))

    def take(self, ready: Sequence[ReplicaHandle[Request]]) -> tuple[Attempt[Request], ReplicaHandle[Request]] | None:
        """What to do now, and where; None where no replica has room or there is nothing for those that have.

        Args:
            ready: Replicas that have started.
        """
        free = [handle for handle in ready if len(handle.inflight) < self._in_flight]
        if not free:
            return None
        least, most = _least(free), len(ready) * self._in_flight
        for handle in free:
            if self._waiting[handle.index] and not self._is_far_above(handle, least):
                return self._waiting[handle.index].popleft(), handle
        waiting = self.waiting
        while waiting < most and (attempt := self._queued.take()) is not None:
            chosen = self._choose(attempt, {handle.index: handle for handle in ready}, free)
            if chosen is not None:
                return attempt, chosen
            waiting += 1
        near = {h.index for h in ready if not self._is_far_above(h, least)} if waiting < most else set[int]()
        leaving = [queue for index, queue in self._waiting.items() if queue and index not in near]
        return (max(leaving, key=len).pop(), least) if leaving else None

    def discard(self, request: Request) -> None:
        """Forgets a request that nobody waits for any longer."""
        for index, queue in self._waiting.items():
            self._waiting[index] = deque(attempt for attempt in queue if attempt.request is not request)

    def _choose(
        self,
        attempt: Attempt[Request],
        ready: dict[int, ReplicaHandle[Request]],
        free: Sequence[ReplicaHandle[Request]],
    ) -> ReplicaHandle[Request] | None:
        """The replica for an attempt; None where it has been put among those that wait for theirs."""
        able = [handle for handle in free if handle.index not in attempt.avoid] or free
        least = _least(able)
        group: str | None = getattr(attempt.request, "group", None)
        if group is None:
            return least
        own = ready.get(self._replicas.get(group, -1), least)
        self._replicas[group] = own.index
        self._replicas.move_to_end(group)
        if len(self._replicas) > _REMEMBERED:
            self._replicas.popitem(last=False)
        if own in able and not self._is_far_above(own, least):
            return own
        if attempt.failures or attempt.deaths:  # what was tried counts as in flight, and is not kept waiting
            return least
        self._waiting[own.index].append(attempt)
        return None

    def _is_far_above(self, handle: ReplicaHandle[Request], least: ReplicaHandle[Request]) -> bool:
        return len(handle.inflight) - len(least.inflight) > self._in_flight // 4


def _least(handles: Sequence[ReplicaHandle[Request]]) -> ReplicaHandle[Request]:
    return min(handles, key=lambda handle: (len(handle.inflight), handle.index))
