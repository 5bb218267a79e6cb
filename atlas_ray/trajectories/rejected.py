"""Rows that are unusable: what is recorded and said of them, so that nothing is dropped in silence."""

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

_NAMED = 8  # unknown environments that a sentence names


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

    @classmethod
    def of(cls, file: str, row: int, error: DataError) -> Rejected:
        """A row that an error refuses."""
        reason = error.what + (f"; {error.remedy}" if error.remedy else "")
        return cls(file, row, reason, error.name if isinstance(error, UnknownEnvironment) else None)

    def __str__(self) -> str:
        return printable(f"{self.file}, row {self.row}: {self.reason}")


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


def _skipped(rejected: Iterable[Rejected]) -> Counter[str]:
    return Counter(row.unknown for row in rejected if row.unknown is not None)
