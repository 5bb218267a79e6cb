"""What is told of play while no episode ends: long ones of slow models may take many minutes.

Flows in: what the replicas' models have written so far; flows out: words for the line of progress.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from atlas_ray.types import Usage


class Heartbeat:
    """Replies so far, and the tokens a second since it was last asked.

    Args:
        usage: Tells of all replies that have been written.
    """

    def __init__(self, usage: Callable[[], Usage]) -> None:
        self._usage = usage
        self._begun = self._seen = usage()
        self._asked = time.monotonic()

    def __call__(self) -> str:
        """The words."""
        now, usage = time.monotonic(), self._usage()
        # a replica that was started again has forgotten its replies
        tokens = max(0, usage.completion_tokens - self._seen.completion_tokens)
        rate = tokens / max(now - self._asked, 1e-9)
        self._seen, self._asked = usage, now
        replies = max(0, usage.calls - self._begun.calls)
        # engines take a while to load
        return f"{replies:,} replies, {rate:,.0f} tokens/s" if replies else "no reply yet"
