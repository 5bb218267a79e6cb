"""What `atlas status` shows: every stage below some folders, how far it is, and what it counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES

_DEPTH = 4
_WATCH_SECONDS = 5.0
_FINISHED, _UNFINISHED, _FAILED = "finished", "unfinished", "not loaded"


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
            state = _UNFINISHED if finished is None else _FINISHED
            if finished is None and (failure := failure_of(folder)) is not None:
                state, figures = _FAILED, failure
            table.add_row(folder.uri, stage, state, recorded, Text(figures))
    if not table.row_count:
        raise UserError(f"no run lies below {', '.join(uris)}", "name a run folder or a recipe's folder under runs/")
    return table


def watch_status(uris: Sequence[str], console: Console) -> None:
    """Shows the table anew every few seconds, until every stage is finished.

    Raises:
        UserError: If there is none.
    """
    with Live(console=console, auto_refresh=False) as live:
        while True:
            table = status_table(uris)
            live.update(table, refresh=True)
            if _UNFINISHED not in table.columns[2].cells:
                return
            time.sleep(_WATCH_SECONDS)


def _stages(folder: RunFolder, depth: int) -> Iterator[RunFolder]:
    if folder.exists:
        yield folder
    elif depth:
        for child in folder.children():
            yield from _stages(child, depth - 1)
