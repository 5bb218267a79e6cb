"""A replica as its supervisor sees it, and which one gets a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic

from atlas_ray.rollouts.replica import Request
from atlas_ray.rollouts.retry_queue import Attempt


@dataclass(eq=False, slots=True)
class ReplicaHandle(Generic[Request]):
    """A replica as its supervisor sees it.

    Attributes:
        since: When it was started, on the monotonic clock.
        inflight: The attempts that it works at, by number.
        unsent: Numbers of those among them that it has not been told of.
        asked: Whether a call for results is under way.
    """

    index: int
    actor: Any
    since: float
    pid: int | None = None
    inflight: dict[int, Attempt[Request]] = field(default_factory=dict)
    unsent: list[int] = field(default_factory=list)
    asked: bool = False

    @property
    def ready(self) -> bool:
        """Whether it has started."""
        return self.pid is not None


def choose(
    attempt: Attempt[Request], handles: list[ReplicaHandle[Request]], affinity: dict[str, int], in_flight: int
) -> ReplicaHandle[Request]:
    """The replica of the request's group unless it is much busier than others, else the one with least in flight."""
    free = [handle for handle in handles if handle.index not in attempt.avoid] or handles
    least = min(free, key=lambda handle: (len(handle.inflight), handle.index))
    group: str | None = getattr(attempt.request, "group", None)
    if group is None:
        return least
    own = affinity.setdefault(group, least.index)
    near = [h for h in free if h.index == own and len(h.inflight) - len(least.inflight) <= in_flight // 4]
    return near[0] if near else least
