"""Monte-Carlo values and the steps that raise them (paper section 4.5.4, App. B.3): plain arithmetic.

Flows in: rewards of rollouts from every start; flows out: values, differences, critical steps. q_t is the value after
the expert's steps 1..t, so that a difference credits the step itself. A selection keeps every reward, so that another
estimator, threshold or ratio is a re-read (`rescore`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from atlas_ray.selection.budget import budget, top_k
from atlas_ray.selection.value.backward_sampler import Evidence, posteriors, saved
from atlas_ray.types import Selection, Usage

if TYPE_CHECKING:
    from atlas_ray.selection.value.settings import ValueSettings

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
    return _above(differences(q), threshold, None if ratio is None else budget(ratio, len(q) - 1))


def rescore(selection: Selection, selector: ValueSettings, k: int | None = None) -> Selection:
    """Scores and critical steps from the rewards that a selection keeps; nothing is played.

    In the exhaustive mode a score is the difference of two means, in the economical mode the point that the difference
    exceeds with a chance of 35 % (`backward_sampler.py`); what was played there was chosen for its threshold.

    Args:
        selection: With rewards and rounds.
        selector: Estimator, gamma, threshold, ratio, and the mode that the rewards come from.
        k: Steps that may be chosen; None: as many as exceed the threshold.
    """
    if selector.mode == "exhaustive":
        scores = _known_differences(selection, selector)
    else:
        *rewards, (reward,) = selection.rewards
        rows = zip(selection.probed, selection.rejoined, rewards, selection.rounds[:-1], strict=True)
        gamma = selector.gamma if selector.estimator == "discounted" else 1.0
        found = posteriors([Evidence(*row) for row in rows], reward, gamma, share=selector.economy.share)
        scores = tuple(round(posterior.score, _DIGITS) for posterior in found)
    return replace(selection, ratio=selector.ratio, scores=scores, chosen=_above(scores, selector.threshold, k))


def _known_differences(selection: Selection, selector: ValueSettings) -> tuple[float, ...]:
    """The score of each step; 0 of one before or behind which no rollout started, for nobody proposed it."""
    known = [t for t, rewards in enumerate(selection.rewards) if rewards]
    rewards, rounds = [selection.rewards[t] for t in known], [selection.rounds[t] for t in known]
    q = dict(zip(known, values(rewards, selector.estimator, selector.gamma, rounds), strict=True))
    steps = range(1, selection.n_steps + 1)
    return tuple(differences((q[t - 1], q[t]))[0] if q.keys() >= {t - 1, t} else 0.0 for t in steps)


def value_figures(selections: Iterable[Selection], selector: ValueSettings) -> dict[str, Any]:
    """What became of the rollouts of a run: counts, by environment causes of exclusion and starts by how they replay,
    what each device saved, and prompt tokens as vLLM counts them: looked for in the prefix cache, and found there."""
    excluded: dict[str, Counter[str]] = {}
    replays: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    usage = Usage()
    for s in selections:
        usage += s.usage
        counts["generated_tokens"] += s.usage.completion_tokens
        if s.excluded:
            excluded.setdefault(s.env, Counter()).update(s.excluded)
        if s.replays:
            replays.setdefault(s.env, Counter()).update(s.replays)
        if selector.mode == "economical":
            counts.update(saved(s.probed, s.rejoined, [len(r) for r in s.rewards[:-1]], selector.rollouts))
        else:
            counts["rollouts"] += sum(len(r) for r in s.rewards[:-1])
    return {
        **counts,
        "excluded": _sorted(excluded),
        "replays": _sorted(replays),
        "prefix_cache_queries": usage.prompt_tokens,
        "prefix_cache_hits": usage.cached_tokens,
        "prefix_cache_hit_rate": round(usage.hit_rate, 4),
    }


def _sorted(counts: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
    return {env: dict(sorted(found.items())) for env, found in sorted(counts.items())}


def _above(scores: Sequence[float], threshold: float, k: int | None) -> tuple[int, ...]:
    return top_k(scores, len(scores) if k is None else k, above=round(threshold, _DIGITS))
