"""What `atlas status` shows: every stage below some folders, how far it is, and what it counted.

Flows in: run folders, and of a recipe under way `stages.json`, which its process keeps; flows out: a table.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES

STAGES = "stages.json"
_DEPTH = 4
_AWAITED = 3  # names of stages that one waits for
_WATCH_SECONDS = 5.0
_SEEN_SECONDS = 30.0  # between signs of life
_GONE_SECONDS = 150.0  # without one, a recipe's process is taken to have ended
_FINISHED, _UNFINISHED, _FAILED = "finished", "unfinished", "failed"
_OPEN = {_UNFINISHED, "running", "waiting"}


class StageRecord:
    """The states of a recipe's stages, kept beside its run folders while it runs; use it as a context manager.

    Args:
        folder: The recipe's.
        states: By stage its `state`, and `for` (what it waits for) or `why` (it failed).
    """

    def __init__(self, folder: RunFolder, states: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        self._folder, self._states = folder, states
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._alive = threading.Thread(target=self._keep_alive, daemon=True)

    def write(self) -> None:
        """Writes them down."""
        with self._lock:
            ended = self._over.is_set()
            self._folder.write_json(STAGES, {"seen": 0 if ended else time.time(), "stages": dict(self._states())})

    def _keep_alive(self) -> None:
        while not self._over.wait(_SEEN_SECONDS):
            with suppress(AtlasError):
                self.write()

    def __enter__(self) -> StageRecord:
        self.write()
        self._alive.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.write()


def status_table(uris: Sequence[str]) -> Table:
    """One row per stage found below the given folders.

    Raises:
        UserError: If there is none.
    """
    table = Table(Column("run", overflow="fold"), "stage", "state", "recorded", "figures")
    for uri in uris:
        told: dict[str, tuple[str, str]] = {}
        for folder in _stages(RunFolder(uri), _DEPTH, told):
            state, why = told.pop(folder.uri, ("", ""))
            finished = folder.finished
            counts = {spec.name: len(folder.done(spec)) for spec in (TRAJECTORIES, SELECTIONS, EPISODES)}
            recorded = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
            figures = figures_line(finished or {})
            stage = str(folder.read_json("manifest.json")["stage"])
            if finished is not None:
                state = _FINISHED
            elif state in ("", _FINISHED):
                failure = failure_of(folder)
                state, figures = (_UNFINISHED, figures) if failure is None else (_FAILED, failure)
            else:
                figures = why
            table.add_row(folder.uri, stage, state, recorded, Text(figures))
        for place, (state, why) in told.items():  # they have no folder (yet)
            table.add_row(place, "", state, "", Text(why))
    if not table.row_count:
        raise UserError(f"no run lies below {', '.join(uris)}", "name a run folder or a recipe's folder under runs/")
    return table


def figures_line(figures: Mapping[str, Any]) -> str:
    """What a stage counted, in a line: mappings by their keys, without what is 0 in them; no lists, and no None."""
    told = []
    for name, value in figures.items():
        if isinstance(value, Mapping):
            if inner := figures_line({key: part for key, part in value.items() if part}):
                told.append(f"{name} ({inner})")
        elif not isinstance(value, list | None):
            told.append(f"{name} {round(value, 4):g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(told)


def watch_status(uris: Sequence[str], console: Console) -> None:
    """Shows the table anew every few seconds, until every stage is finished.

    Raises:
        UserError: If there is none.
    """
    with Live(console=console, auto_refresh=False) as live:
        while True:
            table = status_table(uris)
            live.update(table, refresh=True)
            if not _OPEN & {str(cell) for cell in table.columns[2].cells}:
                return
            time.sleep(_WATCH_SECONDS)


def _stages(folder: RunFolder, depth: int, told: dict[str, tuple[str, str]]) -> Iterator[RunFolder]:
    """Folders of stages; what recipes' processes tell of theirs is put into `told`, by the folders."""
    if folder.exists:
        yield folder
        return
    if folder.has(STAGES):
        told |= _told(folder)
    for child in folder.children() if depth else ():
        yield from _stages(child, depth - 1, told)


def _told(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """By the folder of a stage its state, and why: of those that are not finished."""
    record = folder.read_json(STAGES)
    gone = time.time() - record["seen"] > _GONE_SECONDS
    found = {}
    for name, stage in record["stages"].items():
        state = str(stage["state"])
        if state == _FINISHED or (gone and state in _OPEN):
            continue
        awaited = stage.get("for", [])
        more = [f"{len(awaited) - _AWAITED} more"] if len(awaited) > _AWAITED else []
        why = stage.get("why") or (f"for {', '.join([*awaited[:_AWAITED], *more])}" if awaited else "")
        found[folder.child(*name.split("/")).uri] = state, why
    return found
