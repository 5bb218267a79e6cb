"""Stages of selectors, without a pipeline around them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from atlas_ray.config import DataConfig, EnvironmentsConfig, RayConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.protocol import Selector, StageContext
from atlas_ray.selection.rows import RowStage
from atlas_ray.trajectories.index import OUTLINE, outlines_of
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Selection, Trajectory


def context_of(trajectories: Sequence[Trajectory], run: str = "run") -> StageContext:
    """Of a run in which all is to do."""
    columns = [[t.id, t.env, t.item_id, len(t.steps)] for t in trajectories]
    index = pa.table([list(column) for column in zip(*columns, strict=True)], schema=OUTLINE)
    index = index.append_column("todo", pa.array([True] * len(trajectories)))
    return StageContext(RunFolder(run), DataConfig(path="x"), 0, EnvironmentsConfig(), RayConfig(), index, [])


def selected(selector: Selector, trajectories: Sequence[Trajectory]) -> tuple[list[Selection], list[Rejected]]:
    """Selections by a rule for one trajectory, and the rows that its files hold in vain."""
    context = context_of(trajectories)
    stage = selector.stage(context)
    assert isinstance(stage, RowStage)
    rows = outlines_of(context.index) if stage.outlines else trajectories
    found = [selection for table in stage.select(rows) for selection in SELECTIONS.from_table(table)]
    return found, context.rejected
