"""A replica as its supervisor sees it."""

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
