"""Reads expert trajectories: files, folders, run folders and Hugging Face data sets, one row at a time.

Flows in: a `DataConfig`; flows out: checked trajectories with unique ids, and a `Rejected` for every row that is
unusable. Rows of environments that are not known here are skipped and counted by name; where `envs` says which
environments are wanted, all others are passed over unread.

Small data is read by `read_trajectories`. Large data is streamed: `list_parts` cuts it, `iter_part` reads a part
anywhere, and `UniqueIds.take`, called in the order of parts and rows, gives each trajectory its final id.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from atlas_ray.config import DataConfig
from atlas_ray.errors import DataError, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.local_copy import origin
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.checks import kind
from atlas_ray.trajectories.decoders import WHOLE, Decoded, Span, decode, spans
from atlas_ray.trajectories.formats.protocol import DataFormat
from atlas_ray.trajectories.formats.registry import FORMATS, detect, detect_all
from atlas_ray.trajectories.item_ids import UniqueIds, UnknownEnvironment
from atlas_ray.trajectories.locate import data_files, is_run, locate
from atlas_ray.trajectories.rejected import Rejected, listed, skipped_line
from atlas_ray.types import Trajectory

_log = logging.getLogger(__name__)

_PEEK = 16  # rows that a file's format is told from


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a data set that can be read apart from the others, in any process of any machine.

    Attributes:
        root: Where the data set lies on the machine that listed it; elsewhere it is located anew.
        file: The file below it, or itself; None: the run folder that `data.path` names.
        format: Its rows' format by name; empty: it is told from the file's first rows.
        span: The piece of the file.
    """

    root: str
    file: str | None
    format: str = ""
    span: Span = WHOLE


def list_parts(config: DataConfig) -> list[Part]:
    """Cuts a data set into parts of about 64 MB: files, lines of large JSONL, row groups of large Parquet.

    A run folder is one part, and so is a JSON file of any size, which is read piece by piece all the same.

    Raises:
        UserError: If the data cannot be found, or no format has the name that is given.
    """
    if config.format != "auto":
        FORMATS.find(config.format)
    if is_run(config.path):
        return [Part(config.path, None)]
    root, found = locate(config), list[Part]()
    files, others = data_files(root)
    if others:
        named = listed([file.name for file in others])
        warn_once(f"{config.path}: files of other kinds that are not read ({len(others)}): {named}")
    for file in files:
        cut, form = spans(file), "" if config.format == "auto" else config.format
        if len(cut) > 1 and not form:
            form = detect_all(row.value for row in itertools.islice(decode(file), _PEEK))
        found += [Part(str(root), str(file.relative_to(root)), form, span) for span in cut]
    return found


def iter_part(part: Part, config: DataConfig) -> Iterator[Trajectory | Rejected]:
    """The usable trajectories of the environments asked for, and the unusable rows, in the order of the rows.

    Ids are not yet unique, and `limit` is not applied: see `UniqueIds`.

    Raises:
        UserError: If the part cannot be read as a whole.
    """
    if part.file is None:
        held = RunFolder(config.path).read(TRAJECTORIES)
        if not held:
            raise UserError(f"the run {config.path} holds no trajectories", "name the run folder of a collection")
        yield from (trajectory for trajectory in held if _is_asked(trajectory.env, config))
        return
    name, form, rows = _open(part, config)
    if form is None:
        yield Rejected(name, 0, "the file holds no trajectories")
        return
    unused = Counter[str]()
    for row in rows:
        found: Trajectory | Rejected | None = None
        try:
            if _task(row, form, config):
                found = form.read(row.value)
                unused.update(form.unused(row.value))
        except DataError as error:
            found = Rejected.of(name, row.row, error)
        if found is not None:
            yield found
    for key, count in unused.items():
        yield Rejected(name, 0, f"the key {key} is not used", key=key, rows=count)


def iter_trajectories(config: DataConfig, rejected: list[Rejected]) -> Iterator[Trajectory]:
    """All parts in order: the first `config.limit` usable trajectories of each environment of `config.envs`.

    Ids are unique: the task's id, with `#2`, `#3`, ... for further trajectories of the task, in the order read.

    Raises:
        UserError: If the data cannot be found or read as a whole.
    """
    ids = UniqueIds(config.limit)
    for found in itertools.chain.from_iterable(iter_part(part, config) for part in list_parts(config)):
        if isinstance(found, Rejected):
            rejected.append(found)
        elif (unique := ids.take(found.env, found.id)) is not None:
            yield found if unique == found.id else replace(found, id=unique)


def read_trajectories(config: DataConfig, rejected: list[Rejected] | None = None) -> list[Trajectory]:
    """Reads a data set.

    Args:
        config: Where it lies and what to take from it.
        rejected: Takes the unusable rows; without it they are logged as a warning.

    Raises:
        UserError: If the data cannot be found or read as a whole, or holds nothing of an environment asked for.
    """
    passed: list[Rejected] = []
    found = list(iter_trajectories(config, passed))
    unusable = [row for row in passed if row.is_unusable]
    if rejected is not None:
        rejected.extend(passed)
    elif unusable:
        _log.warning("%d rows of %s are unusable; the first: %s", len(unusable), config.path, unusable[0])
    if line := skipped_line(passed):
        warn_once(f"{config.path}: {line}")
    check_environments(config, {t.env for t in found}, unusable)
    return found


def check_environments(config: DataConfig, held: set[str], unusable: list[Rejected]) -> None:
    """Refuses a data set that lacks an environment that is asked for.

    Args:
        held: The environments of its usable trajectories.
        unusable: Its other rows, for the message.

    Raises:
        UserError: If it lacks one.
    """
    if missing := [env for env in config.envs or [] if env not in held]:
        raise UserError(
            f"{config.path} holds no usable trajectory of {', '.join(missing)}"
            + (f" ({len(unusable)} rows are unusable, the first: {unusable[0].reason})" if unusable else ""),
            "check `envs` and the data; `atlas trajectories stats` counts what is there",
        )


@dataclass(frozen=True, slots=True)
class Items:
    """Item ids by environment, in the order read and each once, and the rows that name no known one's task."""

    ids: dict[str, list[str]]
    rejected: list[Rejected]


def read_items(config: DataConfig) -> Items:
    """The tasks that a data set names: rows need no conversation (AgentEval has none).

    Raises:
        UserError: If the data cannot be found or read as a whole.
    """
    found: dict[str, dict[str, None]] = {}
    rejected: list[Rejected] = []
    for part in list_parts(config):
        if part.file is None:
            for trajectory in iter_part(part, config):
                if isinstance(trajectory, Trajectory):
                    found.setdefault(trajectory.env, {})[trajectory.item_id] = None
            continue
        name, form, rows = _open(part, config)
        if form is None:
            rejected.append(Rejected(name, 0, "the file names no tasks"))
            continue
        for row in rows:
            try:
                if task := _task(row, form, config):
                    found.setdefault(task[0], {})[task[1]] = None
            except DataError as error:
                rejected.append(Rejected.of(name, row.row, error))
    return Items({env: list(ids)[: config.limit] for env, ids in found.items()}, rejected)


@cache
def warn_once(line: str) -> None:
    """Many stages of one process read the same data."""
    _log.warning(line)


def _open(part: Part, config: DataConfig) -> tuple[str, DataFormat | None, Iterator[Decoded]]:
    """What a user calls a part's file, its format, and its rows; no format for a folder's file that holds no data.

    Raises:
        UserError: If the file that was asked for holds none.
    """
    root = Path(part.root)
    root = root if root.exists() else locate(config)
    file = root / (part.file or "")
    rows = decode(file, part.span)
    if part.format:
        return origin(file), FORMATS.find(part.format), rows
    first = list(itertools.islice(rows, _PEEK))
    if not any(row.error or _shows_data(row.value) for row in first):
        if file != root:
            return origin(file), None, rows
        if first:
            remedy = "write them in a form that `data.format` knows, or name your own (docs/own-data.md)"
            raise UserError(f"{origin(file)} holds no trajectories: {_seen(first[0].value)}", remedy)
    return origin(file), FORMATS.find(detect_all(row.value for row in first)), itertools.chain(first, rows)


def _shows_data(value: Any) -> bool:
    """Whether a row has a conversation, or at least names a task."""
    return isinstance(value, dict) and (detect(value) is not None or not value.keys().isdisjoint({"id", "item_id"}))


def _seen(value: Any) -> str:
    return f"its first row has the keys {listed(list(value))}" if isinstance(value, dict) else f"a row is {kind(value)}"


def _task(row: Decoded, form: DataFormat, config: DataConfig) -> tuple[str, str] | None:
    """Environment and item id of a row, or None where its environment is not asked for.

    Raises:
        DataError: If it names none.
    """
    if row.error is not None:
        raise DataError(row.error)
    try:
        task = form.read_task(row.value)
    except UnknownEnvironment:
        if config.envs is not None:
            return None
        raise
    return task if _is_asked(task[0], config) else None


def _is_asked(env: str, config: DataConfig) -> bool:
    return config.envs is None or env in config.envs
