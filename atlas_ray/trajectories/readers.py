"""Reads expert trajectories: files, folders, run folders and Hugging Face data sets, one row at a time.

Flows in: a `DataConfig`; flows out: checked trajectories with unique ids, and a `Rejected` for every row that is
unusable, so that nothing is dropped in silence. Rows of environments that are not known here are skipped and counted by
name; where `envs` says which environments are wanted, all others are passed over unread.
"""

from __future__ import annotations

import difflib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_ray.config import DataConfig
from atlas_ray.errors import DataError, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.local_copy import local_copy, origin
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.text import printable
from atlas_ray.trajectories.formats import Format, Ids, UnknownEnvironment, detect, task_of, to_trajectory
from atlas_ray.types import Trajectory

_log = logging.getLogger(__name__)

_SUFFIXES = (".json", ".jsonl", ".parquet")
_PEEK = 16  # rows that a file's format is told from
_NAMED = 8  # unknown environments that a sentence names
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# what lies in data folders beside the data
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "manifest.json", "finished.json", "rejected.jsonl"}


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is unusable: its file, its place there (line, or element from 1) and why.

    Attributes:
        unknown: The environment that it names, where the reason is that none of this name is known.
    """

    file: str
    row: int
    reason: str
    unknown: str | None = None

    def __str__(self) -> str:
        return printable(f"{self.file}, row {self.row}: {self.reason}")


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
    unusable = [row for row in passed if row.unknown is None]
    if rejected is not None:
        rejected.extend(passed)
    elif unusable:
        _log.warning("%d rows of %s are unusable; the first: %s", len(unusable), config.path, unusable[0])
    if line := skipped_line(passed):
        _say_once(f"{config.path}: {line}")
    held = {t.env for t in found}
    missing = [env for env in config.envs or [] if env not in held]
    if missing:
        raise UserError(
            f"{config.path} holds no usable trajectory of {', '.join(missing)}"
            + (f" ({len(unusable)} rows are unusable, the first: {unusable[0].reason})" if unusable else ""),
            "check `envs` and the data; `atlas trajectories stats` counts what is there",
        )
    return found


def rejected_figures(rejected: Sequence[Rejected]) -> dict[str, Any]:
    """For a run's record: how many rows are unusable, and how many were skipped of each unknown environment."""
    skipped = _skipped(rejected)
    return {"rejected": len(rejected) - skipped.total()} | ({"skipped": dict(skipped.most_common())} if skipped else {})


def skipped_line(rejected: Iterable[Rejected]) -> str:
    """What was skipped because no such environment is known, in words; empty where nothing was."""
    skipped = _skipped(rejected)
    if not skipped:
        return ""
    named = ", ".join(printable(f"{name} {count}") for name, count in skipped.most_common(_NAMED))
    more = f" and {len(skipped) - _NAMED} more names" if len(skipped) > _NAMED else ""
    return f"{skipped.total()} rows of environments that are not known here are skipped: {named}{more}"


def _skipped(rejected: Iterable[Rejected]) -> Counter[str]:
    return Counter(row.unknown for row in rejected if row.unknown is not None)


@cache
def _say_once(line: str) -> None:
    """Many stages of one process read the same data."""
    _log.warning(line)


def iter_trajectories(config: DataConfig, rejected: list[Rejected]) -> Iterator[Trajectory]:
    """The same, one by one: the first `config.limit` usable trajectories of each environment of `config.envs`.

    Ids are unique: the task's id, with `#2`, `#3`, ... for further trajectories of the task, in the order read.

    Raises:
        UserError: If the data cannot be found or read as a whole.
    """
    taken: Counter[str] = Counter()
    ids = Ids()
    for file, number, read in _rows(config):
        try:
            trajectory = _wanted(read, config)
        except DataError as error:
            rejected.append(_rejected(file, number, error))
            continue
        if trajectory is None or (config.limit is not None and taken[trajectory.env] >= config.limit):
            continue
        taken[trajectory.env] += 1
        unique = ids.free(trajectory.id)
        ids.use(unique)
        yield trajectory if unique == trajectory.id else replace(trajectory, id=unique)


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
    for file, number, row in _rows(config):
        try:
            if isinstance(row, _Row):
                task = _task(row, config)
            else:
                task = (row.env, row.item_id) if _asked(row.env, config) else None
        except DataError as error:
            rejected.append(_rejected(file, number, error))
            continue
        if task is not None:
            found.setdefault(task[0], {})[task[1]] = None
    return Items({env: list(ids)[: config.limit] for env, ids in found.items()}, rejected)


def write_rejected(folder: RunFolder, rejected: Sequence[Rejected]) -> None:
    """Writes `rejected.jsonl`: each unusable row, and once each environment that is not known here.

    An empty file says that every row was usable.
    """
    skipped, rows = _skipped(rejected), list[dict[str, Any]]()
    for one in rejected:
        row = {"file": one.file, "row": one.row, "reason": one.reason}
        if one.unknown is None:
            rows.append(row)
        elif count := skipped.pop(one.unknown, 0):
            rows.append(row | {"environment": one.unknown, "rows": count})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folder.write_bytes("rejected.jsonl", "".join(lines).encode(errors="backslashreplace"))


def _rejected(file: str, number: int, error: DataError) -> Rejected:
    reason = error.what + (f"; {error.remedy}" if error.remedy else "")
    return Rejected(file, number, reason, error.name if isinstance(error, UnknownEnvironment) else None)


@dataclass(frozen=True, slots=True)
class _Row:
    """One decoded row and its file's format; `error` where it could not be decoded."""

    value: Any
    form: Format
    error: str | None = None


def _wanted(row: _Row | Trajectory, config: DataConfig) -> Trajectory | None:
    """The row's trajectory, or None where its environment is not asked for."""
    if isinstance(row, Trajectory):
        return row if _asked(row.env, config) else None
    return to_trajectory(row.value, row.form) if _task(row, config) else None


def _task(row: _Row, config: DataConfig) -> tuple[str, str] | None:
    """Environment and item id of a row, or None where its environment is not asked for.

    Raises:
        DataError: If it names none.
    """
    if row.error is not None:
        raise DataError(row.error)
    try:
        task = task_of(row.value)
    except UnknownEnvironment:
        if config.envs is not None:
            return None
        raise
    return task if _asked(task[0], config) else None


def _asked(env: str, config: DataConfig) -> bool:
    return config.envs is None or env in config.envs


def _rows(config: DataConfig) -> Iterator[tuple[str, int, _Row | Trajectory]]:
    """(file, row from 1, row) of everything that the configuration points to."""
    if _is_run(config.path):
        records = RunFolder(config.path).read(TRAJECTORIES)
        if not records:
            raise UserError(f"the run {config.path} holds no trajectories", "name the run folder of a collection")
        for number, record in enumerate(records, 1):
            yield config.path, number, record
        return
    for file in _files(config):
        rows = _DECODERS[file.suffix](file)
        first = list(itertools.islice(rows, _PEEK))
        form = _format(value for _, value, _ in first) if config.format == "auto" else config.format
        for number, value, error in itertools.chain(first, rows):
            yield origin(file), number, _Row(value, form, error)


def _format(values: Iterable[Any]) -> Format:
    """The format that a file's first rows show; one row with loss flags outweighs broken ones without."""
    shown = [form for form in map(detect, values) if form is not None]
    return "agenttraj" if "agenttraj" in shown or not shown else shown[0]


def _is_run(path: str) -> bool:
    return RunFolder(path).exists if "://" in path else (Path(path) / "manifest.json").is_file()


def _files(config: DataConfig) -> list[Path]:
    path = local_copy(config.path, _SUFFIXES)
    if not path.exists():
        path = _from_hub(config) if is_hub_id(config.path) else _missing(path)
    if path.is_file():
        if path.suffix not in _SUFFIXES:
            raise UserError(f"{path} is no kind of file that is read", f"give one of {', '.join(_SUFFIXES)}")
        return [path]
    inside = (f for f in sorted(path.rglob("*")) if f.is_file() and f.suffix in _SUFFIXES)
    files = [
        f
        for f in inside
        if f.name not in _NOT_DATA and not any(part.startswith(".") for part in f.relative_to(path).parts)
    ]
    if not files:
        raise UserError(f"the folder {path} holds no {', '.join(_SUFFIXES)} file", "check `path`")
    return files


def is_hub_id(path: str) -> bool:
    """Whether a name is one of the Hugging Face hub's rather than a path here."""
    return bool(_HUB_ID.fullmatch(path)) and not path.endswith(_SUFFIXES) and not Path(path).parent.exists()


def _missing(path: Path) -> Path:
    """Raises the error for a path that does not exist, with the closest name that does."""
    parent = next((p for p in path.parents if p.is_dir()), Path())
    name = path.parts[len(parent.parts)] if len(path.parts) > len(parent.parts) else path.name
    close = difflib.get_close_matches(name, [p.name for p in parent.iterdir()], 1)
    hint = f"did you mean {parent / close[0]}?" if close else "give a file, a folder or a Hugging Face data set id"
    raise UserError(f"{path} does not exist", hint)


def _from_hub(config: DataConfig) -> Path:
    """Downloads a data set's files, or finds them in the local cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{config.path} is not a local path, and huggingface_hub is not installed to look for it online",
            "check `path`, or install the extra `cpu` or `gpu`",
        ) from None
    patterns = [f"*{suffix}" for suffix in _SUFFIXES]
    try:
        return Path(
            snapshot_download(config.path, repo_type="dataset", revision=config.revision, allow_patterns=patterns)
        )
    except (OSError, ValueError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{config.path} exists neither here nor could it be fetched from the Hugging Face hub: {line}",
            "check the name, `revision` and the network, or download it elsewhere and give the local path",
        ) from None


def _json_rows(file: Path) -> Iterator[tuple[int, Any, str | None]]:
    try:
        value = json.loads(file.read_bytes().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{origin(file)} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            "mend the file or fetch it anew; name it .jsonl where it holds one object a line",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {origin(file)}: {_short(error)}", "check that it is JSON in UTF-8") from None
    if isinstance(value, dict) and detect(value):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{origin(file)} holds no list of trajectories", "see the formats that `data.format` names")
    yield from ((number, row, None) for number, row in enumerate(value, 1))


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Any, str | None]]:
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield number, json.loads(text), None
                except json.JSONDecodeError as error:
                    yield number, None, f"not valid JSON: column {error.colno}: {error.msg}"
                except (ValueError, RecursionError) as error:
                    yield number, None, f"unreadable: {_short(error)}"
    except OSError as error:
        raise UserError(f"cannot read {origin(file)}: {error.strerror}", "check its permissions") from None


def _parquet_rows(file: Path) -> Iterator[tuple[int, Any, str | None]]:
    number = 0
    try:
        with pq.ParquetFile(file) as source:
            for batch in source.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row, None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{origin(file)} is not readable as Parquet: {_short(error)}", "fetch or write it anew"
        ) from None


_DECODERS = {".json": _json_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
