"""Selectors that need no model: all, random, gold, complement (paper sections 4.5.1 to 4.5.3), first, last.

Each takes one trajectory to one `Selection`; draws come from (run seed, selector, trajectory id).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import BudgetSettings, record, top_k
from atlas_ray.selection.rows import RowSelector, Rule
from atlas_ray.selection.sources import of_trajectory, read_source
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory


class AllSelector(RowSelector):
    """Every step: ordinary fine-tuning on whole trajectories."""

    reads_texts: ClassVar[bool] = False

    name: Literal["all"] = "all"

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return lambda t: select_all(t, self)


class RandomSelector(BudgetSettings, RowSelector):
    """Steps drawn uniformly (section 4.5.3)."""

    drawn: ClassVar[bool] = True
    reads_texts: ClassVar[bool] = False

    name: Literal["random"] = "random"
    ratio: float = Field(0.3, gt=0, le=1)

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return lambda t: select_random(t, self, seed)


class GoldSelector(BudgetSettings, RowSelector):
    """The steps that the built-in expert itself marks as critical (gold), cut to the budget by its ranks."""

    name: Literal["gold"] = "gold"
    ratio: float = Field(0.3, gt=0, le=1)
    noise: float = Field(0.0, ge=0, le=1, description="chance that a chosen step gives way to another")

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return lambda t: select_gold(t, self, seed)


class ComplementSelector(BudgetSettings, RowSelector):
    """As many steps as the reference chose, drawn from those it did not choose (section 4.5.1)."""

    drawn: ClassVar[bool] = True

    name: Literal["complement"] = "complement"
    ratio: float = Field(0.3, gt=0, le=1)
    reference: str = Field("gold", description="`gold`, the annotation, or a finished selection: see `sources.py`")

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        reference = read_source(sources[self.reference]) if sources else None
        return lambda t: select_complement(t, self, seed, reference)

    def sources(self) -> list[str]:
        return [] if self.reference == "gold" else [self.reference]

    def for_seed(self, named: Callable[[str], str]) -> Self:
        return self.model_copy(update={"reference": named(self.reference)}) if self.sources() else self


class FirstSelector(BudgetSettings, RowSelector):
    """The first steps: what a selector must beat to say more than "early"."""

    reads_texts: ClassVar[bool] = False

    name: Literal["first"] = "first"
    ratio: float = Field(0.3, gt=0, le=1)

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return lambda t: select_end(t, self)


class LastSelector(BudgetSettings, RowSelector):
    """The last steps: what a selector must beat to say more than "late"."""

    reads_texts: ClassVar[bool] = False

    name: Literal["last"] = "last"
    ratio: float = Field(0.3, gt=0, le=1)

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return lambda t: select_end(t, self)


def select_all(trajectory: Trajectory | Outline, config: AllSelector) -> Selection:
    """Every step."""
    return record(trajectory, config, range(1, len(trajectory.steps) + 1))


def select_random(trajectory: Trajectory | Outline, config: RandomSelector, seed: int) -> Selection:
    """As many steps as the ratio allows, uniformly without replacement (section 4.5.3)."""
    steps = range(1, len(trajectory.steps) + 1)
    draw = random.Random(derive_seed(seed, "random", trajectory.id))
    return record(trajectory, config, draw.sample(steps, config.budget(trajectory)))


def select_end(trajectory: Trajectory | Outline, config: FirstSelector | LastSelector) -> Selection:
    """The steps at one end, as many as the ratio allows."""
    n_steps = len(trajectory.steps)
    k = config.budget(trajectory)
    first = 1 if config.name == "first" else n_steps - k + 1
    return record(trajectory, config, range(first, first + k))


def select_gold(trajectory: Trajectory, config: GoldSelector, seed: int = 0) -> Selection:
    """The expert's own marks, the best ranks first; under `noise` some give way to steps drawn from the others.

    Scores: the number of marks for the first rank, one less for each further rank, 0 for unmarked steps, which are
    never chosen. A trajectory without annotation gets an error.
    """
    if trajectory.gold is None:
        return record(trajectory, config, error="no gold: the data set carries no annotation of this trajectory")
    n_steps = len(trajectory.steps)
    scores = [0.0] * n_steps
    for above, mark in enumerate(sorted(trajectory.gold, key=lambda g: (g.rank, g.step))):
        scores[mark.step - 1] = float(len(trajectory.gold) - above)
    chosen = top_k(scores, config.budget(trajectory), above=0.0)
    if config.noise:
        draw = random.Random(derive_seed(seed, "gold", trajectory.id))
        gone = [t for t in chosen if draw.random() < config.noise]
        others = [t for t in range(1, n_steps + 1) if t not in chosen]
        new = draw.sample(others, min(len(gone), len(others)))
        chosen = tuple(sorted(set(chosen) - set(gone[: len(new)]) | set(new)))
    categories = {g.step: g.category for g in trajectory.gold if g.step in chosen}
    return record(trajectory, config, chosen, scores=tuple(scores), categories=categories)


def select_complement(
    trajectory: Trajectory | Outline,
    config: ComplementSelector,
    seed: int,
    reference: Mapping[str, Selection] | None = None,
) -> Selection:
    """As many steps as the reference chose, drawn from those that it did not choose (section 4.5.1).

    Where fewer remain, all that remain.

    Args:
        trajectory: What to select in.
        config: The selector's section.
        seed: The run's.
        reference: The finished selection by trajectory id; None for gold at the same ratio.
    """
    n_steps = len(trajectory.steps)
    chosen: Selection | str = (
        select_gold(trajectory, GoldSelector(ratio=config.ratio, rounding=config.rounding))  # type: ignore[arg-type]
        if reference is None
        else of_trajectory(trajectory, config.reference, reference)
    )
    if isinstance(chosen, str) or chosen.error:
        return record(trajectory, config, error=f"no reference: {chosen if isinstance(chosen, str) else chosen.error}")
    rest = [t for t in range(1, n_steps + 1) if t not in chosen.chosen]
    draw = random.Random(derive_seed(seed, "complement", trajectory.id))
    return record(trajectory, config, draw.sample(rest, min(len(chosen.chosen), len(rest))))
