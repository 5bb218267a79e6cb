"""Steps that a function of the user's chooses. Flows in: `module:function` and a trajectory; flows out: a selection.

The function takes a `Trajectory` and returns steps from 1, or one score a step; what it returns is checked, and where
it fails only that trajectory is without a selection.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from atlas_ray.errors import DataError, UserError
from atlas_ray.selection.budget import budget, record, top_k
from atlas_ray.selection.protocol import Selector
from atlas_ray.types import Selection, Trajectory

Call = Callable[[Trajectory], Any]


class PythonSelector(Selector):
    """Steps that a function of the user's names, or scores."""

    name: Literal["python"] = "python"
    call: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`my_module:function`, of one trajectory")
    gives: Literal["steps", "scores"] = Field("steps", description="steps from 1, or one score a step: top k")
    ratio: float | None = Field(0.3, gt=0, le=1, description="null: no cap on steps; all that score above 0")

    def digests(self) -> dict[str, str]:
        """The function's module, by its source."""
        return {self.call: source_digest(self)}


def load_call(name: str) -> Call:
    """The function behind `module:function`; modules are looked for in the working directory too.

    Raises:
        UserError: If there is none.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), function, None)
    except Exception as error:
        raise UserError(f"cannot import {module}: {error}", "check selector.call, and where you start from") from error
    if not callable(found):
        raise UserError(f"{module} has no function {function}", "check selector.call")
    return found  # type: ignore[no-any-return]


def source_digest(config: PythonSelector) -> str:
    """SHA-256 of the source of the function's module: what the selection is made by.

    Raises:
        UserError: If there is no such function, or no source.
    """
    file = getattr(sys.modules[load_call(config.call).__module__], "__file__", None)
    if file is None:
        raise UserError(f"{config.call} has no source file", "put the function in a module of your own")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def select_own(trajectory: Trajectory, config: PythonSelector, call: Call) -> Selection:
    """What the function says of one trajectory, checked; its failure is the selection's error."""
    n_steps = len(trajectory.steps)
    try:
        given = list(call(trajectory))
        if config.gives == "steps":
            return record(trajectory, config, _steps(given, n_steps, config.ratio))
        scores = _scores(given, n_steps)
    except DataError as error:
        return record(trajectory, config, error=f"unusable answer: {error.what}")
    except Exception as error:  # noqa: BLE001 (somebody else's code)
        why = (str(error).strip() or "no message").splitlines()[0]
        return record(trajectory, config, error=f"{config.call} failed: {type(error).__name__}: {why}")
    k, above = (n_steps, 0.0) if config.ratio is None else (budget(config.ratio, n_steps), None)
    return record(trajectory, config, top_k(scores, k, above), scores=scores)


def _steps(given: list[Any], n_steps: int, ratio: float | None) -> list[int]:
    if strange := [t for t in given if isinstance(t, bool) or not isinstance(t, int) or not 1 <= t <= n_steps]:
        raise DataError(f"{strange[0]!r} is no step: the steps are 1 to {n_steps}")
    if len(set(given)) < len(given):
        raise DataError("it names a step twice")
    if ratio is not None and len(given) > budget(ratio, n_steps):
        raise DataError(f"it names {len(given)} of {n_steps} steps, the ratio {ratio} allows {budget(ratio, n_steps)}")
    return given


def _scores(given: list[Any], n_steps: int) -> tuple[float, ...]:
    if len(given) != n_steps:
        raise DataError(f"it gives {len(given)} scores for {n_steps} steps")
    scores = tuple(float(score) for score in given)
    if not all(map(math.isfinite, scores)):
        raise DataError("a score is not a finite number")
    return scores
