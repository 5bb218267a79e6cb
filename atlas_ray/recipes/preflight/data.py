"""Data before a run: trajectories that can be read, test tasks that can be told.

Flows in: a recipe; flows out: findings, and a short recorded trajectory of each environment for the servers to replay.
"""

from __future__ import annotations

from collections import Counter

from atlas_ray.environments.agentgym.task_numbers import unplayable
from atlas_ray.errors import UserError
from atlas_ray.evaluation.items import item_lines, problems, test_tasks, unknown_items
from atlas_ray.evaluation.openings import examine
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.recipes.preflight.findings import Finding, attempt
from atlas_ray.recipes.preflight.hub import require_cached
from atlas_ray.recipes.preflight.pending import Pending
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected, rejected_figures, skipped_line
from atlas_ray.types import Trajectory


def check_data(pending: Pending) -> tuple[list[Finding], dict[str, Trajectory]]:
    """Reads the expert's trajectories, if they are brought.

    Returns:
        Findings, and by environment the shortest trajectory that has a step.
    """
    recorded: dict[str, Trajectory] = {}
    config = pending.data
    if config is None:
        return [], recorded

    def read() -> list[Finding]:
        require_cached(config.path, "dataset", config.revision)
        rejected: list[Rejected] = []
        found = read_trajectories(config, rejected)
        if not found:
            unusable = [row for row in rejected if row.is_unusable]
            why = f"; the first of {len(unusable)} unusable rows: {unusable[0].reason}" if unusable else ""
            raise UserError(f"{config.path} holds no usable trajectory{why}", "`atlas trajectories stats` says more")
        for t in found:
            if t.steps and (t.env not in recorded or len(t.steps) < len(recorded[t.env].steps)):
                recorded[t.env] = t
        counts, refused = Counter(t.env for t in found), rejected_figures(rejected)["rejected"]
        told = ", ".join(f"{env} {n:,}" for env, n in counts.items())
        said = f"{len(found):,} trajectories ({told})" + (f", {refused:,} rows unusable" if refused else "")
        skipped = skipped_line(rejected)
        wrong = unplayable((t.task for t in found if pending.plays(t.env)), pending.recipe.config.environments)
        return [
            Finding("data", config.path, "ok", f"{said}; {skipped}" if skipped else said),
            *(Finding("data", config.path, "failed", one.what, one.remedy) for one in wrong),
        ]

    return attempt("data", config.path, read), recorded


def check_items(pending: Pending) -> list[Finding]:
    """Test tasks of every evaluation that is left."""
    found: list[Finding] = []
    for key, config in pending.evaluations.items():
        subject = config.items.path if config.items is not None else "built-in tasks"
        subject += f" ({key})" if key else ""

        def count(config: EvaluateConfig = config, subject: str = subject) -> list[Finding]:
            if config.items is not None:
                require_cached(config.items.path, "dataset", config.items.revision)
            if wrong := [*problems(config), *unknown_items(config)]:
                return [Finding("items", subject, "failed", one.what, one.remedy) for one in wrong]
            told = ", ".join(f"{env} {len(ids)}" for env, ids in test_tasks(config).items())
            return [Finding("items", subject, "ok", line) for line in (told, *item_lines(config))]

        found += attempt("items", subject, count)
    return found


def check_prompts(pending: Pending) -> list[Finding]:
    """Whether evaluation opens conversations as the data does that models are trained on (App. D.2)."""
    found: list[Finding] = []
    for config in pending.evaluations.values():
        if config.openings is not None:
            found += attempt("prompts", ", ".join(config.tasks), lambda c=config: _opened(c))  # type: ignore[misc]
    return found


def _opened(config: EvaluateConfig) -> list[Finding]:
    openings = examine(config)
    differing = {d.env for d in openings.differences}
    usual = "serve what the data was recorded in, or accept the difference: evaluate.openings.differing: [ENV]"
    found = [Finding("prompts", d.env, "failed", str(d), d.remedy or usual) for d in openings.differences]
    return found + [
        Finding("prompts", env, "ok", opening.source)
        for env, opening in openings.environments.items()
        if env not in differing
    ]
