"""Arms as the paper's tables take them, and one such table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_ray.report.paper.ours import (
    ArmRuns,
    PaperRuns,
)
from atlas_ray.report.paper.printed import TABLES
from atlas_ray.report.paper.tables import PaperTable, paper_tables

NOTHING = PaperRuns(arms={}, rows={})


def arm(name: str, scores: Mapping[str, Any], **given: Any) -> ArmRuns:
    """`scores`: by environment, by seed, what each task got; a single list is seed 0's."""
    by_seed = {env: found if isinstance(found, dict) else {0: found} for env, found in scores.items()}
    return ArmRuns(
        name=name,
        model=f"runs/{name}",
        stand_in=given.pop("stand_in", None),
        scores={
            env: {seed: {(f"{env}_{i}", 0): float(s) for i, s in enumerate(got)} for seed, got in seeds.items()}
            for env, seeds in by_seed.items()
        },
        expected={env: len(next(iter(seeds.values()))) for env, seeds in by_seed.items()},
        **given,
    )


def table(name: str, runs: PaperRuns = NOTHING) -> PaperTable:
    return paper_tables(runs)[TABLES.index(name)]
