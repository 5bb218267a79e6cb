"""What a selection will ask for, before it is run. Flows in: a configuration; flows out: lines for `--dry-run`."""

from __future__ import annotations

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected, rejected_figures


def estimate_lines(config: SelectConfig) -> list[str]:
    """Trajectories, and the model calls, tokens and dollars still to come; nothing is called.

    Raises:
        UserError: If the data cannot be read, or a setting is unusable.
    """
    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    refused = rejected_figures(rejected)["rejected"]
    folder = RunFolder(config.run)
    done = folder.done(SELECTIONS) if folder.exists else set()
    todo = [t for t in trajectories if t.id not in done]
    steps = sum(len(t.steps) for t in todo)
    counts = f"{len(todo)} trajectories with {steps} steps to judge, {len(done)} done, {refused} rows rejected"
    return [counts, *config.selector.estimate(todo)]
