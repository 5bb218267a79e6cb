"""What `atlas status` shows: every stage below some folders, how far it is, and what it counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES

_DEPTH = 4


def status_table(uris: Sequence[str]) -> Table:
    """One row per stage found below the given folders.

    Raises:
        UserError: If there is none.
    """
    table = Table("run", "stage", "state", "recorded", "figures")
    for uri in uris:
        for folder in _stages(RunFolder(uri), _DEPTH):
            finished = folder.finished
            counts = {spec.name: len(folder.done(spec)) for spec in (TRAJECTORIES, SELECTIONS, EPISODES)}
            recorded = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            figures = ", ".join(f"{k} {v}" for k, v in (finished or {}).items() if not isinstance(v, dict | list))
            stage = str(folder.read_json("manifest.json")["stage"])
            table.add_row(folder.uri, stage, "finished" if finished is not None else "unfinished", recorded, figures)
    if not table.row_count:
        raise UserError(f"no run lies below {', '.join(uris)}", "name a run folder or a recipe's folder under runs/")
    return table


def _stages(folder: RunFolder, depth: int) -> Iterator[RunFolder]:
    if folder.exists:
        yield folder
    elif depth:
        for child in folder.children():
            yield from _stages(child, depth - 1)
