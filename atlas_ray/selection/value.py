"""Monte-Carlo values and the steps that raise them (paper section 4.5.4, App. B.3): plain arithmetic.

Flows in: rewards of rollouts from every start; flows out: values, differences, critical steps. q_t is the value after
the expert's steps 1..t, so that a difference credits the step itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Literal

from atlas_ray.selection.budget import budget, top_k

Estimator = Literal["mean_reward", "discounted", "eq9"]
_DIGITS = 9  # differences are rounded to these decimals, lest 0.3 - 0.2 exceed 0.1


def values(
    rewards: Sequence[Sequence[float]],
    estimator: Estimator = "mean_reward",
    gamma: float = 0.99,
    rounds: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """Values q_0..q_T.

    Args:
        rewards: Entry t holds the final rewards of the rollouts started after step t; the last entry the recorded one.
        estimator: `mean_reward`: q_t is their mean (Eq. 8). `discounted`: the same with each reward times
            gamma^(rounds still taken). `eq9`: the literal sum over k = t..T of gamma^(k-t) times the mean at k.
        gamma: Discount factor.
        rounds: Turns that each rollout took, in the shape of `rewards`; read by `discounted` only.

    Raises:
        ValueError: If a start has no rewards, or `discounted` lacks rounds.
    """
    if not all(rewards):
        raise ValueError("a start without rewards has no value")
    if estimator == "discounted":
        if rounds is None:
            raise ValueError("the discounted estimator needs the rounds of every rollout")
        return [
            fmean(r * gamma**n for r, n in zip(start, taken, strict=True))
            for start, taken in zip(rewards, rounds, strict=True)
        ]
    means = [fmean(start) for start in rewards]
    if estimator == "eq9":
        for t in reversed(range(len(means) - 1)):
            means[t] += gamma * means[t + 1]
    return means


def differences(q: Sequence[float]) -> tuple[float, ...]:
    """q_t - q_{t-1} of steps 1..T: the score of each step."""
    return tuple(round(after - before, _DIGITS) for before, after in pairwise(q))


def critical(q: Sequence[float], threshold: float = 0.1, ratio: float | None = None) -> tuple[int, ...]:
    """Steps, from 1, whose difference exceeds the threshold strictly; there may be none.

    Args:
        q: q_0..q_T.
        threshold: The paper's 0.1.
        ratio: Where given, only the highest differences within this budget.
    """
    scores = differences(q)
    k = len(scores) if ratio is None else budget(ratio, len(scores))
    return top_k(scores, k, above=round(threshold, _DIGITS))
