"""Several replies about one trajectory made into one judgement. Flows in: judgements; flows out: one, with scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from atlas_ray.selection.llm.answer import Judgement
from atlas_ray.types import Category


def tally(votes: Sequence[Judgement], n_steps: int, k: int) -> tuple[Judgement, tuple[float, ...]]:
    """Keeps the k steps that most replies named.

    Ties go to the step that stands earlier in the replies that name it, on average, then to the earlier step. A step's
    category is that of most replies, then of the first. Plan and reason are those of the reply that shares most steps
    with the result, then of the first.

    Args:
        votes: At least one.
        n_steps: |tau|.
        k: Most steps that may be chosen.

    Returns:
        The judgement, and for each step the fraction of replies that named it.
    """
    ranks: dict[int, list[int]] = {}
    for vote in votes:
        for rank, step in enumerate(vote.steps):
            ranks.setdefault(step, []).append(rank)
    order = sorted(ranks, key=lambda t: (-len(ranks[t]), Fraction(sum(ranks[t]), len(ranks[t])), t))
    chosen = tuple(order[:k])
    closest = max(votes, key=lambda vote: len(set(vote.steps) & set(chosen)))
    judgement = Judgement(chosen, closest.plan, closest.reason, _categories(votes, sorted(chosen)))
    return judgement, tuple(len(ranks.get(t, ())) / len(votes) for t in range(1, n_steps + 1))


def _categories(votes: Sequence[Judgement], steps: Sequence[int]) -> dict[int, Category]:
    found = {t: Counter(v.categories[t] for v in votes if t in v.categories) for t in steps}
    return {t: counted.most_common(1)[0][0] for t, counted in found.items() if counted}
