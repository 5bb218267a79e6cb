"""Selectors that need no model: all, random, gold, complement (paper sections 4.5.1 to 4.5.3).

Each takes one trajectory to one `Selection`; draws come from (run seed, selector, trajectory id).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.budget import budget, record, top_k
from atlas_ray.selection.settings import AllSelector, ComplementSelector, GoldSelector, RandomSelector
from atlas_ray.types import Selection, Trajectory


def select_all(trajectory: Trajectory, config: AllSelector) -> Selection:
    """Every step."""
    return record(trajectory, config, range(1, len(trajectory.steps) + 1))


def select_random(trajectory: Trajectory, config: RandomSelector, seed: int) -> Selection:
    """As many steps as the ratio allows, uniformly without replacement (section 4.5.3)."""
    steps = range(1, len(trajectory.steps) + 1)
    draw = random.Random(derive_seed(seed, "random", trajectory.id))
    return record(trajectory, config, draw.sample(steps, budget(config.ratio, len(steps))))


def select_gold(trajectory: Trajectory, config: GoldSelector) -> Selection:
    """The expert's own marks, the best ranks first.

    Scores: the number of marks for the first rank, one less for each further rank, 0 for unmarked steps, which are
    never chosen. A trajectory without annotation gets an error.
    """
    if trajectory.gold is None:
        return record(trajectory, config, error="no gold: the data set carries no annotation of this trajectory")
    n_steps = len(trajectory.steps)
    scores = [0.0] * n_steps
    for above, mark in enumerate(sorted(trajectory.gold, key=lambda g: (g.rank, g.step))):
        scores[mark.step - 1] = float(len(trajectory.gold) - above)
    chosen = top_k(scores, budget(config.ratio, n_steps), above=0.0)
    categories = {g.step: g.category for g in trajectory.gold if g.step in chosen}
    return record(trajectory, config, chosen, scores=tuple(scores), categories=categories)


def select_complement(
    trajectory: Trajectory, config: ComplementSelector, seed: int, reference: Mapping[str, Selection] | None = None
) -> Selection:
    """As many steps as the reference chose, drawn from those that it did not choose (section 4.5.1).

    Where fewer remain, all that remain.

    Args:
        trajectory: What to select in.
        config: The selector's section.
        seed: The run's.
        reference: The finished selection by trajectory id; None for gold at the same ratio.
    """
    if reference is None:
        chosen = select_gold(trajectory, GoldSelector(ratio=config.ratio))
    elif trajectory.id not in reference:
        return record(trajectory, config, error=f"no reference: {config.reference} holds no such trajectory")
    else:
        chosen = reference[trajectory.id]
    n_steps = len(trajectory.steps)
    if chosen.error:
        return record(trajectory, config, error=f"no reference: {chosen.error}")
    if chosen.n_steps != n_steps:
        why = f"{config.reference} counted {chosen.n_steps} steps, the data has {n_steps}"
        return record(trajectory, config, error=f"no reference: {why}")
    rest = [t for t in range(1, n_steps + 1) if t not in chosen.chosen]
    draw = random.Random(derive_seed(seed, "complement", trajectory.id))
    return record(trajectory, config, draw.sample(rest, min(len(chosen.chosen), len(rest))))


def read_reference(config: ComplementSelector) -> dict[str, Selection] | None:
    """The reference selection by trajectory id, or None where it is `gold`.

    Raises:
        UserError: If the run folder holds no finished selection.
    """
    if config.reference == "gold":
        return None
    folder = RunFolder(config.reference)
    if not folder.exists or folder.finished is None:
        raise UserError(
            f"selector.reference: {config.reference} holds no finished selection",
            "finish that selection first, or use `gold`",
        )
    return {s.trajectory_id: s for s in folder.read(SELECTIONS)}


def control(
    config: AllSelector | RandomSelector | GoldSelector | ComplementSelector, seed: int
) -> Callable[[Trajectory], Selection]:
    """The function of one trajectory that a section describes."""
    if isinstance(config, AllSelector):
        return lambda t: select_all(t, config)
    if isinstance(config, RandomSelector):
        return lambda t: select_random(t, config, seed)
    if isinstance(config, GoldSelector):
        return lambda t: select_gold(t, config)
    reference = read_reference(config)
    return lambda t: select_complement(t, config, seed, reference)
