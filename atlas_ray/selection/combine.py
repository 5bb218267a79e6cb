"""Several selections of the same trajectories made into one: weighted rank, union, intersection.

Flows in: finished selections by part; flows out: one selection, with scores, so that another ratio is a re-read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

import pyarrow.compute as pc
from pydantic import Field, model_validator

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.budget import BudgetSettings, record, top_k
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.rows import RowSelector, Rule
from atlas_ray.selection.sources import find_source, of_trajectory, read_source
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory


class CombineSelector(BudgetSettings, RowSelector):
    """Finished selections of the same trajectories, combined. `{combine: {llm: 0.5, value: 0.5}}` is short for it.

    `weighted_rank` takes the steps that the parts rank highest; `union` and `intersection` take what any, or every,
    part chose, and are capped only where a ratio is given.
    """

    reads_texts: ClassVar[bool] = False

    name: Literal["combine"] = "combine"
    parts: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=2, description="weights by selection (`sources.py`)"
    )
    rule: Literal["weighted_rank", "union", "intersection"] = "weighted_rank"
    ratio: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """A list of parts weighs them equally; a weighted rank has the usual budget where none is given."""
        if not isinstance(given, Mapping):
            return given
        parts, ranked = given.get("parts"), given.get("rule", "weighted_rank") == "weighted_rank"
        if isinstance(parts, list):
            given = {**given, "parts": {str(part): 1.0 for part in parts}}
        return {**given, "ratio": 0.3} if ranked and given.get("ratio") is None else given

    def sources(self) -> list[str]:
        return list(self.parts)

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        parts = {name: read_source(folder) for name, folder in sources.items()}
        return lambda t: select_combined(t, self, parts)

    def stage(self, context: StageContext) -> Stage:
        """The rule, applied to each.

        Raises:
            UserError: If a part is a selection of other trajectories.
        """
        ids = context.index["id"]
        for name in self.parts:
            source = find_source(name, context.run)
            if not any(pc.any(pc.is_in(batch["id"], ids)).as_py() for batch in source.latest(SELECTIONS, ["id"])):
                raise UserError(
                    f"selector.parts: {name} was made from other data: it holds none of the {len(ids)} trajectories",
                    "combine selections of the same trajectories",
                )
        return super().stage(context)


def ranks(part: Selection) -> list[Fraction]:
    """Each step's rank in one part over |tau|: 1 for the best step, 1/|tau| for the worst; ties share the mean.

    A part that keeps scores ranks by them; one without ranks chosen steps before the others.
    """
    n_steps = part.n_steps
    scores: Sequence[float] = part.scores or [float(t in part.chosen) for t in range(1, n_steps + 1)]
    below = {score: sum(other < score for other in scores) for score in set(scores)}
    equal = {score: scores.count(score) for score in set(scores)}
    return [Fraction(2 * below[s] + equal[s] + 1, 2 * n_steps) for s in scores]


def select_combined(
    trajectory: Trajectory | Outline, config: CombineSelector, parts: Mapping[str, Mapping[str, Selection]]
) -> Selection:
    """Combines what the parts say of one trajectory.

    A step's score is the weighted mean of its ranks (exact, so that ties are ties), in (0, 1]; 0 for steps outside the
    union or the intersection, which are never chosen. An intersection may be empty: a selection without steps, which
    training leaves out and counts. Where a part has no selection of the trajectory, the combination has none.

    Args:
        trajectory: What to select in.
        config: The selector's section.
        parts: Finished selections by part and trajectory id.
    """
    found: dict[str, Selection] = {}
    for name in config.parts:
        part = of_trajectory(trajectory, name, parts[name])
        if isinstance(part, str):
            return record(trajectory, config, error=f"no part: {name}: {part}")
        found[name] = part
    steps = range(1, len(trajectory.steps) + 1)
    chosen = [set(part.chosen) for part in found.values()]
    eligible = {"union": set.union, "intersection": set.intersection}.get(config.rule, lambda *_: set(steps))(*chosen)
    weights = {name: Fraction(str(weight)) for name, weight in config.parts.items()}
    by_part = [(weights[name] / sum(weights.values()), ranks(part)) for name, part in found.items()]
    scores = tuple(float(sum(w * r[t - 1] for w, r in by_part)) if t in eligible else 0.0 for t in steps)
    winners = top_k(scores, config.budget(trajectory), above=0.0)
    heaviest = sorted(found, key=lambda name: -weights[name])
    categories = {
        t: next(found[n].categories[t] for n in heaviest if t in found[n].categories)
        for t in winners
        if any(t in part.categories for part in found.values())
    }
    return record(trajectory, config, winners, scores=scores, categories=categories)
