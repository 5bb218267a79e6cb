"""`results.json`: the numbers of a run, from which tables, figures and page are drawn.

Flows in: records (`ReportInput`); flows out: one plain dict, the same for the same records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from atlas_ray.evaluation.intervals import Interval, average
from atlas_ray.evaluation.metrics import summarise
from atlas_ray.report.checks import overlap
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.verdict import judge
from atlas_ray.selection.compare.agreement import compare_selections

SCHEMA_VERSION = 1
CURVE_POINTS = 120
_AS_GIVEN = (
    *("name", "words", "model", "selector", "ratio", "step_fraction", "loss_token_fraction", "train_steps", "context"),
    "weights",
)


def build_results(given: ReportInput) -> dict[str, Any]:
    """Computes everything that the report shows.

    Args:
        given: The records of one run.

    Returns:
        A dict that JSON can hold; floats are rounded to 6 digits.
    """
    arms = [_arm(arm, given) for arm in given.arms]
    checks = overlap(given.trajectories, chain.from_iterable(arm.episodes for arm in given.arms))
    return _rounded(
        {
            "schema_version": SCHEMA_VERSION,
            "recipe": given.recipe,
            "seeds": list(given.seeds),
            "git_commit": given.git_commit,
            "versions": dict(given.versions),
            "evaluation": {"temperature": given.temperature},
            "preflight": given.preflight,
            "openings": {env: dict(opening) for env, opening in given.openings.items()},
            "other_tasks": dict(given.other_tasks),
            "arms": arms,
            "failures": dict(given.failures),
            "selectors": [
                {**row, "against": "gold"}
                for row in compare_selections(list(given.selections.items()), given.trajectories)
            ],
            "replays": list(_replays(given)),
            "checks": checks,
            "verdict": judge(given, arms, checks),
            "seconds": dict(given.seconds),
        }
    )


def _arm(arm: Arm, given: ReportInput) -> dict[str, Any]:
    cells = [_cell(arm, env, given) for env in given.specs]
    return {
        **{name: getattr(arm, name) for name in _AS_GIVEN},
        "losses": _thinned(arm.losses),
        "validation": [list(point) for point in arm.validation],
        "environments": cells,
        "averages": list(_averages(cells)),
    }


def _replays(given: ReportInput) -> Iterator[dict[str, Any]]:
    """By selector and environment, the starts of its rollouts by how the environment repeats the steps before them."""
    for name, selections in given.selections.items():
        found: dict[str, Counter[str]] = {}
        for selection in selections:
            if selection.replays:
                found.setdefault(selection.env, Counter()).update(selection.replays)
        for env, counts in sorted(found.items()):
            share = 1 - counts["differs"] / counts.total()
            yield {"selector": name, "env": env, "replays": dict(sorted(counts.items())), "share": share}


def _thinned(losses: Sequence[float]) -> list[list[float]]:
    """Pairs of step and loss, at most `CURVE_POINTS` of them: each the mean of as many steps, at the last of these."""
    width = -(-len(losses) // CURVE_POINTS) or 1
    parts = [losses[start : start + width] for start in range(0, len(losses), width)]
    return [[i * width + len(part), sum(part) / len(part)] for i, part in enumerate(parts)]


def _cell(arm: Arm, env: str, given: ReportInput) -> dict[str, Any]:
    played = [episode for episode in arm.episodes if episode.env == env]
    return asdict(summarise(played, given.specs[env], given.n_expected[env] * arm.runs, given.max_excluded))


def _averages(cells: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mean success over the environments of a group, each weighing the same; an incomplete group has none."""
    for held in ("in", "out"):
        group = [c for c in cells if c["held"] == held]
        if len(group) > 1 and all(c["n"] for c in group):
            mean = average([Interval(c["success"], *c["ci95"]) for c in group])
            yield {"held": held, "environments": len(group), "success": mean.value, "ci95": mean.limits}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
