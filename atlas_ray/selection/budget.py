"""How many steps a ratio allows, which ones win, and the record of it: the rule that all selectors share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor
from typing import Any, Protocol

from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory


def budget(ratio: float, n_steps: int) -> int:
    """Steps that may be chosen: max(1, floor(m x |tau|)), paper sections 3.2 and 4.5.2; 0 of no steps.

    The ratio counts as the decimal that the user wrote: 0.7 of 90 steps are 63, where binary floats give 62.
    """
    return min(n_steps, max(1, floor(Fraction(str(ratio)) * n_steps)))


def top_k(scores: Sequence[float], k: int, above: float | None = None) -> tuple[int, ...]:
    """The k steps with the highest scores, ascending and from 1; ties go to the earlier step.

    Args:
        scores: One score per step.
        k: At most how many.
        above: Steps that score this or less are never chosen.
    """
    steps = [t for t, score in enumerate(scores, 1) if above is None or score > above]
    return tuple(sorted(sorted(steps, key=lambda t: -scores[t - 1])[:k]))


def recut(selection: Selection, ratio: float | None, above: float = 0.0) -> Selection:
    """The same scores under another ratio, without scoring again.

    Args:
        selection: Of a selector that keeps scores (gold, perplexity, value).
        ratio: The new ratio m; None for every eligible step.
        above: Scores up to this are not eligible: 0 for gold and perplexity (unmarked, unscored), the threshold for
            value.

    Raises:
        ValueError: If the selection has no scores.
    """
    if selection.error is None and not selection.scores:
        raise ValueError(f"a selection by {selection.selector} keeps no scores")
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
