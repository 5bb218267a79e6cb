"""Steps that a function of the user's chooses. Flows in: `module:function` and a trajectory; flows out: a selection.

The function takes a `Trajectory` and returns steps from 1, or one score a step; what it returns is checked, and where
it fails only that trajectory is without a selection. Where it does so many times in a row, it is called no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from atlas_ray.errors import DataError, UserError
from atlas_ray.plugins import object_at, source_digest
from atlas_ray.runs.failures import FailureWatch
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.budget import BudgetSettings, Rounding, record, top_k
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.rows import RowSelector, RowStage, Rule
from atlas_ray.types import Selection, Trajectory

Call = Callable[[Trajectory], Any]


class PythonSelector(BudgetSettings, RowSelector):
    """Steps that a function of the user's names, or scores."""

    name: Literal["python"] = "python"
    call: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`my_module:function`, of one trajectory")
    gives: Literal["steps", "scores"] = Field("steps", description="steps from 1, or one score a step: top k")
    ratio: float | None = Field(0.3, gt=0, le=1, description="null: no cap on steps; all that score above 0")
    rounding: Rounding = Field("floor", description="a function that names steps is not told what is carried over")

    @property
    def modules(self) -> list[str]:
        return [load_call(self.call).__module__]

    def digests(self) -> dict[str, str]:
        return {self.call: source_digest(load_call(self.call).__module__)}

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        call, watch = load_call(self.call), FailureWatch("selections")

        def select(trajectory: Trajectory) -> Selection:
            found = select_by_function(trajectory, self, call)
            watch.add(found.error)
            return found

        return select

    def stage(self, context: StageContext) -> Stage:
        rule = self.make_rule({}, context.seed)
        return RowStage(lambda: rule)


def load_call(name: str) -> Call:
    """The function behind `module:function`; modules are looked for in the working directory too.

    Raises:
        UserError: If there is none.
    """
    module, _, function = name.partition(":")
    found = object_at(name, "", "check selector.call, and where you start from")
    if not callable(found):
        raise UserError(f"{module} has no function {function}", "check selector.call")
    return found


def select_by_function(trajectory: Trajectory, config: PythonSelector, call: Call) -> Selection:
    """What the function says of one trajectory, checked; its failure is the selection's error."""
    n_steps, k = len(trajectory.steps), config.budget(trajectory)
    try:
        given = list(call(trajectory))
        if config.gives == "steps":
            return record(trajectory, config, _steps(given, n_steps, k, config.ratio))
        scores = _scores(given, n_steps)
    except DataError as error:
        return record(trajectory, config, error=f"unusable answer: {error.what}")
    except Exception as error:  # noqa: BLE001 (somebody else's code)
        why = (str(error).strip() or "no message").splitlines()[0]
        return record(trajectory, config, error=f"failed call: {config.call}: {type(error).__name__}: {why}")
    return record(trajectory, config, top_k(scores, k, 0.0 if config.ratio is None else None), scores=scores)


def _steps(given: list[Any], n_steps: int, k: int, ratio: float | None) -> list[int]:
    if strange := [t for t in given if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= n_steps]:
        raise DataError(f"{strange[0]!r} is no step: the steps are 1 to {n_steps}")
    if len(set(given)) < len(given):
        raise DataError("it names a step twice")
    if len(given) > k:
        raise DataError(f"it names {len(given)} of {n_steps} steps, the ratio {ratio} allows {k}")
    return given


def _scores(given: list[Any], n_steps: int) -> tuple[float, ...]:
    if len(given) != n_steps:
        raise DataError(f"it gives {len(given)} scores for {n_steps} steps")
    scores = tuple(float(score) for score in given)
    if not all(map(math.isfinite, scores)):
        raise DataError("a score is not a finite number")
    return scores
