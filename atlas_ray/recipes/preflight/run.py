"""The preflight of a recipe: everything that would stop a run, found before money or hours are spent.

Flows in: a recipe; flows out: findings, kept as `preflight.json` beside the recipe's runs. It calls endpoints for one
token, plays a few episodes by recorded replies, and changes nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import asdict

from rich.console import Console

from atlas_ray.errors import UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.hub import hub_files
from atlas_ray.recipes.preflight.data import check_data, check_items, check_prompts
from atlas_ray.recipes.preflight.findings import RECORD, Finding, distinct, failures, findings_table
from atlas_ray.recipes.preflight.hub import hub_asked_once
from atlas_ray.recipes.preflight.machine import check_disk, check_gpus
from atlas_ray.recipes.preflight.models import check_keys, check_models
from atlas_ray.recipes.preflight.pending import Pending
from atlas_ray.recipes.preflight.servers import check_environments
from atlas_ray.runs.folder import RunFolder


def preflight(recipe: Recipe, stages: Collection[str] | None = None) -> list[Finding]:
    """Looks at all that is left of a recipe; every fault at once.

    Args:
        stages: Names of the stages that will run; None: all.
    """
    pending = Pending.of(recipe, stages)
    with hub_asked_once(bool(hub_files(recipe)) and not pending.nothing) as hub:
        data, recorded = check_data(pending)
        items = check_items(pending)
        found = [*hub, *data, *items, *check_models(pending)]
    names = [*pending.environments, *filter(pending.plays, recorded)]
    played = check_environments(names, pending.remote, recipe.config.environments, recorded)
    if not failures([*data, *items, *played]):  # it reads and plays what they look at
        played += check_prompts(pending)
    return found + played + check_keys(pending) + check_gpus(pending) + check_disk(pending)


def require_passed(recipe: Recipe, stages: Collection[str], console: Console) -> None:
    """The first stage of a run.

    Raises:
        UserError: If anything failed; it names all of it.
    """
    found = preflight(recipe, stages)
    if found:  # else nothing was looked at: what is recorded of the run still holds
        _record(recipe, found, skipped=False)
    if faults := len(distinct(found)):
        console.print(findings_table(found))
        raise UserError(
            f"the preflight found {faults} fault{'s' * (faults > 1)}, and nothing was started",
            "mend them and run the same command again, or leave the checks out: --skip-preflight",
        )
    passed, open_ = (sum(f.result == result for f in found) for result in ("ok", "not checked"))
    said = f"{passed} of {len(found)} checks passed" + (
        f", {open_} could not be made: `atlas doctor` says why" if open_ else ""
    )
    console.print(f"preflight: {said if found else 'nothing is left to check'}")


def skip(recipe: Recipe) -> None:
    """Records that a run was started without."""
    _record(recipe, [], skipped=True)


def _record(recipe: Recipe, found: list[Finding], *, skipped: bool) -> None:
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "skipped": skipped,
        "findings": [asdict(finding) for finding in found],
    }
    RunFolder(recipe.root).write_json(RECORD, record)
