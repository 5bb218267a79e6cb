"""What is left out of a data set, rows, files and keys: what is recorded and said of it, so that nothing is lost in
silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.text import printable
from atlas_ray.trajectories.item_ids import UnknownEnvironment

_NAMED = 8  # environments, files or keys that a sentence names


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is unusable: its file, its place there (line, or element from 1) and why.

    Attributes:
        row: 0 where it is the file as a whole that is left out, or a key of its rows.
        unknown: The environment that it names, where the reason is that none of this name is known.
        key: The key that is not used.
        rows: Rows that have this key.
    """

    file: str
    row: int
    reason: str
    unknown: str | None = None
    key: str | None = None
    rows: int = 1

    @classmethod
    def of(cls, file: str, row: int, error: DataError) -> Rejected:
        """A row that an error refuses."""
        reason = error.what + (f"; {error.remedy}" if error.remedy else "")
        return cls(file, row, reason, error.name if isinstance(error, UnknownEnvironment) else None)

    @property
    def is_unusable(self) -> bool:
        """Whether it is a row that cannot be used, rather than something that nobody asked for."""
        return self.row > 0 and self.unknown is None

    def __str__(self) -> str:
        return printable(f"{self.file}, row {self.row}: {self.reason}")


def rejected_figures(rejected: Sequence[Rejected]) -> dict[str, Any]:
    """For a run's record: how many rows are unusable, and what was skipped of each unknown environment, key or file."""
    counts = {
        "skipped": _skipped(rejected),
        "unused_keys": _keys(rejected),
        "files_without_trajectories": Counter(map(_name, _files(rejected))),
    }
    return {"rejected": sum(row.is_unusable for row in rejected)} | {
        name: dict(count.most_common()) for name, count in counts.items() if count
    }


def skipped_line(rejected: Sequence[Rejected]) -> str:
    """What was left out that nobody asked for, in words; empty where nothing was."""
    skipped, keys, files = _skipped(rejected), _keys(rejected), _files(rejected)
    lines = []
    if skipped:
        named = [f"{name} {count}" for name, count in skipped.most_common()]
        lines.append(f"{skipped.total()} rows of environments that are not known here are skipped: {listed(named)}")
    if files:
        lines.append(f"files without trajectories ({len(files)}): {listed([_name(file) for file in files])}")
    if keys:
        lines.append(f"keys that are not used: {listed([f'{key} ({n:,} rows)' for key, n in keys.most_common()])}")
    return "; ".join(lines)


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return printable(", ".join(names[:_NAMED])) + more


def write_rejected(folder: RunFolder, rejected: Sequence[Rejected]) -> None:
    """Writes `rejected.jsonl`: each unusable row, file and key, and once each environment that is not known here.

    An empty file says that every row was usable.
    """
    skipped, rows = _skipped(rejected), list[dict[str, Any]]()
    for one in rejected:
        row = {"file": one.file, "row": one.row, "reason": one.reason}
        if one.unknown is None:
            rows.append(row | ({} if one.key is None else {"rows": one.rows}))
        elif count := skipped.pop(one.unknown, 0):
            rows.append(row | {"environment": one.unknown, "rows": count})
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    folder.write_bytes("rejected.jsonl", "".join(lines).encode(errors="backslashreplace"))


def _skipped(rejected: Iterable[Rejected]) -> Counter[str]:
    return Counter(row.unknown for row in rejected if row.unknown is not None)


def _keys(rejected: Iterable[Rejected]) -> Counter[str]:
    keys = Counter[str]()
    for one in rejected:
        if one.key is not None:
            keys[one.key] += one.rows
    return keys


def _files(rejected: Iterable[Rejected]) -> list[Rejected]:
    return [one for one in rejected if one.row == 0 and one.key is None]


def _name(file: Rejected) -> str:
    return file.file.rsplit("/", 1)[-1]
