"""Intervals of paired differences and of averages, and numbers put into words.

Flows in: estimates per task or per environment; flows out: `Interval`s, and text for tables and sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

MIN_TASKS = 5
MIN_REPLICATES = 5
OUTCOME_WORDS = {"better": "better", "worse": "worse", "none": "no difference shown"}


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % limits."""

    value: float
    low: float
    high: float

    @property
    def limits(self) -> list[float]:
        """Both limits, as `results.json` holds them."""
        return [self.low, self.high]

    @property
    def outcome(self) -> Literal["better", "worse", "none"]:
        """Of a difference: "none" where the limits hold 0."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "none"


def paired_difference(differences: Sequence[float]) -> Interval:
    """The mean of per-task differences in [-1, 1], with a 95 % interval.

    Adjusted Wald for matched pairs (Agresti and Min 2005: half a pair in each of the four cells), with Student's
    quantile. Unlike the bootstrap it does not shrink to nothing where all tasks agree, and its error of the first kind
    stays below 5 % with few tasks. Below `MIN_TASKS` tasks it excludes nothing.
    """
    n = len(differences)
    value = fmean(differences)
    if n < MIN_TASKS:
        return Interval(value, -1.0, 1.0)
    centre = sum(differences) / (n + 2)
    variance = (sum(d * d for d in differences) + 1) / (n + 2) - centre * centre
    half = _student(n - 1) * math.sqrt(variance / (n + 2))
    return Interval(value, max(-1.0, centre - half), min(1.0, centre + half))


def average(parts: Sequence[Interval]) -> Interval:
    """The mean of independent estimates; distances to the limits add in squares (MOVER), so skew is kept."""
    value = fmean(p.value for p in parts)
    down = math.hypot(*(p.value - p.low for p in parts)) / len(parts)
    up = math.hypot(*(p.high - p.value for p in parts)) / len(parts)
    return Interval(value, value - down, value + up)


def mean_of_replicates(values: Sequence[float]) -> Interval:
    """The mean of the differences in [-1, 1] that independent repetitions of one experiment found, with Student's 95 %
    interval.

    It covers all that differs between them. Below `MIN_REPLICATES` of them it excludes nothing.
    """
    n, value = len(values), fmean(values)
    if n < MIN_REPLICATES:
        return Interval(value, -1.0, 1.0)
    half = _student(n - 1) * stdev(values) / math.sqrt(n)
    return Interval(value, value - half, value + half)


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t (Cornish-Fisher; within 1 % from 4 degrees of freedom on)."""
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent, without the sign; a dash where there is none."""
    return "–" if value is None else f"{100 * value:z.{digits}f}"  # z: no "-0"


def limits(pair: Sequence[float]) -> str:
    """Both limits of a share in per cent."""
    return f"{percent(pair[0], 0)}–{percent(pair[1], 0)}"


def points(value: float) -> str:
    """A difference of shares in percentage points, signed."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
