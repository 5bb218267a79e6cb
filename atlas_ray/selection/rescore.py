"""Another ratio from scores that an earlier selection kept: nothing is scored again.

Flows in: a configuration whose selector names a finished run under `scores`; flows out: the same configuration with
that run's own settings of scoring, and its selections cut anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from atlas_ray.errors import UserError
from atlas_ray.selection.budget import record, recut
from atlas_ray.selection.perplexity.scores import UNSCORED
from atlas_ray.selection.settings import PerplexitySelector, SelectConfig, ValueSelector
from atlas_ray.selection.sources import find_source, read_source
from atlas_ray.types import Selection, Trajectory, Usage

_CUT = {"ratio", "threshold", "scores"}  # what chooses among scores; all other keys made them
_DIGITS = 9  # to which value's scores are rounded, and its threshold with them


def adopt_scores(config: SelectConfig) -> SelectConfig:
    """The configuration with the settings under which `selector.scores` was scored; unchanged where none is named.

    So the new run's manifest tells which model its scores come from.

    Raises:
        UserError: If that is no finished selection by the same selector, or was scored under another value of a key
            that is set here.
    """
    selector = config.selector
    if not isinstance(selector, PerplexitySelector | ValueSelector) or selector.scores is None:
        return config
    folder = find_source(selector.scores, config.run)
    remedy = "name a finished selection by the same selector"
    held = folder.read_json("manifest.json")["config"].get("selector", {})
    if held.get("name") != selector.name:
        raise UserError(f"selector.scores: {selector.scores} holds no selection by `{selector.name}`", remedy)
    asked = selector.model_dump(mode="json", exclude_unset=True)
    for key in sorted(asked.keys() & held.keys() - _CUT):
        if asked[key] != held[key] and not isinstance(held[key], dict):
            raise UserError(
                f"selector.{key}: {asked[key]!r}, but {selector.scores} was scored with {held[key]!r}",
                f"leave selector.{key} out, or selector.scores to score anew",
            )
    cut = selector.model_dump(mode="json", include=_CUT)
    return config.model_copy(update={"selector": type(selector).model_validate(held | cut)})


def rescored(selector: PerplexitySelector | ValueSelector, run: str) -> Callable[[Trajectory], Selection]:
    """The function that cuts the scores kept of one trajectory; one without any there gets an error."""
    assert selector.scores is not None
    held = read_source(selector.scores, run)
    above = round(selector.threshold, _DIGITS) if isinstance(selector, ValueSelector) else UNSCORED

    def of(trajectory: Trajectory) -> Selection:
        found = held.get(trajectory.id)
        if found is None:
            return record(trajectory, selector, error=f"no scores: {selector.scores} holds no such trajectory")
        if found.error is not None:
            return record(trajectory, selector, model=found.model, error=f"no scores: {found.error}")
        if found.n_steps != len(trajectory.steps):
            why = f"{selector.scores} counted {found.n_steps} steps, the data has {len(trajectory.steps)}"
            return record(trajectory, selector, error=f"no scores: {why}")
        return replace(recut(found, selector.ratio, above), usage=Usage())

    return of
