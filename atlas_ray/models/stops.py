"""Where a reply ends: before an observation that the policy writes itself."""

from __future__ import annotations

STOP = "\nObservation:"


def cut_reply(text: str) -> str:
    """A reply up to where the policy starts to speak for the environment."""
    return text.partition(STOP)[0]
