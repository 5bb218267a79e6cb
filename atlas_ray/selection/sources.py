"""Selections that another one is made from: found by name or path, read, and watched for change.

Flows in: names from a selector's section; flows out: finished selections by trajectory id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from atlas_ray.address import beside
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.protocol import Selector
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory

_RECORD = "sources.json"


def find_source(name: str, run: str) -> RunFolder:
    """The folder of a finished selection: the neighbour of that name beside the run folder, else a path or URI.

    Raises:
        UserError: If neither is a finished selection.
    """
    neighbour = RunFolder(beside(run, name)) if "/" not in name else None
    folder = neighbour if neighbour is not None and neighbour.exists else RunFolder(name)
    if not folder.exists or folder.finished is None or folder.read_json("manifest.json")["stage"] != "select":
        where = f"{name}, here or beside {run}," if "/" not in name else name
        why = f": {failed}" if (failed := failure_of(folder)) else ""
        raise UserError(f"{where} holds no finished selection{why}", "finish that selection first, or correct its name")
    return folder


def read_source(folder: RunFolder) -> dict[str, Selection]:
    """A finished selection by trajectory id."""
    return {s.trajectory_id: s for s in folder.stream(SELECTIONS)}


def of_trajectory(trajectory: Trajectory | Outline, name: str, source: Mapping[str, Selection]) -> Selection | str:
    """What a source says of a trajectory, or why that is of no use."""
    found, n_steps = source.get(trajectory.id), len(trajectory.steps)
    if found is None:
        return f"{name} holds no such trajectory"
    if found.error:
        return found.error
    return found if found.n_steps == n_steps else f"{name} counted {found.n_steps} steps, the data has {n_steps}"


def watch_sources(folder: RunFolder, selector: Selector, run: str) -> None:
    """Notes what the sources hold when a run begins, and refuses to go on once they hold something else.

    Raises:
        UserError: If a source has changed, is missing or cannot be read.
    """
    digests = {name: _digest(find_source(name, run)) for name in selector.sources()} | selector.digests()
    if not digests:
        return
    if not folder.has(_RECORD):
        folder.write_json(_RECORD, digests)
        return
    held = folder.read_json(_RECORD)
    changed = [name for name in digests if held.get(name) != digests[name]]
    if changed:
        raise UserError(
            f"{', '.join(changed)} changed since {folder.uri} was made from it",
            "start it anew with --clean, or use another run folder; train anew what was trained on it",
        )


def _digest(folder: RunFolder) -> str:
    """Of what a selection says, in the order of ids."""
    rows = {s.id: repr((s.id, s.n_steps, s.chosen, s.scores, s.error)) for s in folder.stream(SELECTIONS)}
    return hashlib.sha256(f"[{', '.join(rows[key] for key in sorted(rows))}]".encode()).hexdigest()
