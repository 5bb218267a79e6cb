"""Trajectories longer than the selector's context: their observations lose their middles until the request fits.

Flows in: a trajectory and a context length; flows out: chat messages, and how many characters are missing.
"""

from __future__ import annotations

from atlas_ray.errors import DataError
from atlas_ray.models.request import ChatMessages
from atlas_ray.selection.llm.prompt import Prompt, ReplyForm, observations
from atlas_ray.selection.llm.tokens import Counter
from atlas_ray.types import Trajectory

_LEAST = 40  # characters that an observation keeps in any case
_FRAME = 64  # tokens that a chat template may put around the messages
_RESERVE = 1.05  # counts by a rule may be too low


def fitted(
    prompt: Prompt, trajectory: Trajectory, k: int, form: ReplyForm, limit: int | None, count: Counter
) -> tuple[ChatMessages, int]:
    """The request for a trajectory, its longest observations cut first, all to one length, and as little as need be.

    The agent's own words, the opening instruction and the prompt stay whole.

    Args:
        prompt: The selector's.
        trajectory: What to choose in.
        k: Most steps that may be chosen.
        form: Of the reply.
        limit: Tokens that the request may have; None for any number.
        count: Counts tokens.

    Returns:
        The messages, and the number of the observations' characters left out.

    Raises:
        DataError: If the request is too long even so.
    """
    whole = prompt.messages(trajectory, k, form)
    # A token is at least a byte: most requests need no counting.
    if limit is None or sum(len(m["content"].encode()) for m in whole) + _FRAME < limit or _fits(whole, limit, count):
        return whole, 0
    lengths = [len(trajectory.messages[i].content) for i in observations(trajectory)]
    low, high = _LEAST, max(lengths, default=0)
    if high <= low or not _fits(prompt.messages(trajectory, k, form, low), limit, count):
        raise DataError(
            f"too long: even with its observations cut, it does not fit {limit} tokens",
            "take a model with a longer context, or raise selector.context",
        )
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (
            (middle, high) if _fits(prompt.messages(trajectory, k, form, middle), limit, count) else (low, middle)
        )
    return prompt.messages(trajectory, k, form, low), sum(max(0, length - low) for length in lengths)


def _fits(messages: ChatMessages, limit: int, count: Counter) -> bool:
    return count(messages) * _RESERVE <= limit
