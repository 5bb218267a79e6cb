"""How many steps a ratio allows, which ones win, and the record of it: the rule that all selectors share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from math import floor
from operator import itemgetter
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, ValidationInfo, model_validator

from atlas_ray.config import FrozenConfig
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory


def budget(ratio: float, n_steps: int, *, nearest: bool = False) -> int:
    """Steps that may be chosen: max(1, floor(m x |tau|)), paper sections 3.2 and 4.5.2; 0 of no steps.

    The ratio counts as the decimal that the user wrote: 0.7 of 90 steps are 63, where binary floats give 62.

    Args:
        nearest: Rounds to the nearest number, a half up, instead of down.
    """
    return min(n_steps, max(1, floor(Fraction(str(ratio)) * n_steps + Fraction(nearest, 2))))


def carried(ratio: float, counts: Iterable[int]) -> Iterator[int]:
    """Budgets of trajectories with so many steps, one after the other: what one leaves of a step goes to the next.

    Up to each of them m x the steps so far are given, rounded down; more only where every one is to have its step.
    """
    share, steps, given = Fraction(str(ratio)), 0, 0
    for count in counts:
        steps += count
        k = min(count, max(1, share.numerator * steps // share.denominator - given))
        given += k
        yield k


def carried_budgets(ratio: float, outline: pa.Table) -> pa.Array:
    """The budgets of all trajectories of a data set, carried over in each environment in the order of their ids.

    Args:
        outline: `id`, `env` and `n_steps` of each, in any order.
    """
    order = pc.sort_indices(outline, [("env", "ascending"), ("id", "ascending")])
    rows = outline.select(["env", "n_steps"]).take(order)
    envs = rows["env"].combine_chunks().dictionary_encode().indices  # a million names would fill memory
    by_env = groupby(zip(envs.to_pylist(), rows["n_steps"].to_pylist(), strict=True), itemgetter(0))
    found = np.empty(len(order), np.int32)
    found[order.to_numpy()] = [k for _, group in by_env for k in carried(ratio, (n for _, n in group))]
    return pa.array(found)


Rounding = Literal["floor", "nearest", "carry"]


class BudgetSettings(FrozenConfig):
    """How many steps of each trajectory may be chosen."""

    ratio: float | None = Field(None, gt=0, le=1)
    rounding: Rounding = Field(
        "carry",
        description="of ratio x steps to whole steps, at least one; floor: the paper's; carry: down too, and what is "
        "left goes to the environment's next trajectory, in the order of their ids",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_recorded(cls, values: Any, info: ValidationInfo) -> Any:
        """A run that was begun before there was a choice rounded down."""
        return {"rounding": "floor", **values} if info.context and isinstance(values, Mapping) else values

    def budget(self, trajectory: Trajectory | Outline) -> int:
        """Steps that may be chosen in a trajectory; one that stands alone carries nothing."""
        n_steps = len(trajectory.steps)
        if self.ratio is None:
            return n_steps
        if trajectory.budget is not None:
            return trajectory.budget
        return budget(self.ratio, n_steps, nearest=self.rounding == "nearest")

    def budgets(self, outline: pa.Table) -> pa.Array | None:
        """The budget of every trajectory, where one depends on others; it is the same wherever they are selected in."""
        return carried_budgets(self.ratio, outline) if self.ratio is not None and self.rounding == "carry" else None


def top_k(scores: Sequence[float], k: int, above: float | None = None) -> tuple[int, ...]:
    """The k steps with the highest scores, ascending and from 1; ties go to the earlier step.

    Args:
        scores: One score per step.
        k: At most how many.
        above: Steps that score this or less are never chosen.
    """
    steps = [t for t, score in enumerate(scores, 1) if above is None or score > above]
    return tuple(sorted(sorted(steps, key=lambda t: -scores[t - 1])[:k]))


def recut(selection: Selection, ratio: float | None, above: float = 0.0, k: int | None = None) -> Selection:
    """The same scores under another ratio, without scoring again.

    Args:
        selection: Of a selector that keeps scores (gold, perplexity, value).
        ratio: The new ratio m; None for every eligible step.
        above: Scores up to this are not eligible: 0 for gold and perplexity (unmarked, unscored), the threshold for
            value.
        k: Steps that may be chosen; None: as many as the ratio gives, rounded down.

    Raises:
        ValueError: If the selection has no scores.
    """
    if selection.error is None and not selection.scores:
        raise ValueError(f"a selection by {selection.selector} keeps no scores")
    if k is None:
        k = selection.n_steps if ratio is None else budget(ratio, selection.n_steps)
    chosen = top_k(selection.scores, k, above)
    categories = {t: c for t, c in selection.categories.items() if t in chosen}
    return replace(selection, ratio=ratio, chosen=chosen, categories=categories)


class Section(Protocol):
    """A selector's settings."""

    @property
    def name(self) -> str:
        """The selector's."""
        ...


def record(trajectory: Trajectory | Outline, config: Section, chosen: Iterable[int] = (), **fields: Any) -> Selection:
    """A `Selection` of one trajectory.

    Args:
        trajectory: What was selected in.
        config: The selector's section; its name and ratio go into the record.
        chosen: Steps from 1, in any order.
        **fields: Further fields of `Selection`.
    """
    return Selection(
        trajectory_id=trajectory.id,
        env=trajectory.env,
        item_id=trajectory.item_id,
        selector=config.name,
        ratio=getattr(config, "ratio", None),
        n_steps=len(trajectory.steps),
        chosen=tuple(sorted(chosen)),
        **fields,
    )
