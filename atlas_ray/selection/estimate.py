"""What a selection will ask for, before it is run. Flows in: a configuration; flows out: lines for `--dry-run`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.readers import check_environments, iter_trajectories
from atlas_ray.trajectories.rejected import Rejected, rejected_figures
from atlas_ray.types import Trajectory


def estimate_lines(config: SelectConfig) -> list[str]:
    """Trajectories, and the model calls, tokens and dollars still to come; nothing is called.

    Raises:
        UserError: If the data cannot be read, or a setting is unusable.
    """
    folder, rejected = RunFolder(config.run), list[Rejected]()
    done = folder.done(SELECTIONS) if folder.exists else set()
    envs, counts = set[str](), Counter[str]()

    def to_judge() -> Iterator[Trajectory]:
        for trajectory in iter_trajectories(config.data, rejected):
            envs.add(trajectory.env)
            if trajectory.id in done:
                continue
            counts.update(trajectories=1, steps=len(trajectory.steps))
            yield trajectory

    left = to_judge()
    lines = config.selector.estimate(left)
    for _ in left:  # what the selector had no need to look at
        pass
    check_environments(config.data, envs, [row for row in rejected if row.is_unusable])
    refused = rejected_figures(rejected)["rejected"]
    what = f"{counts['trajectories']} trajectories with {counts['steps']} steps to judge"
    return [f"{what}, {len(done)} done, {refused} rows rejected", *lines]
