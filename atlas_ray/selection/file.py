"""A selection as a table that people edit: written to .csv or .jsonl, read back with every check.

One row a trajectory: `trajectory_id`, `n_steps`, `chosen` ("2 5 7"), `categories` ("2: Plan Creation; 5: Critical
Action"), `reason`, `error`; in .jsonl `chosen` is a list and `categories` an object. `trajectory_id` and `chosen` must
be there. Flows in: selections, or a table; flows out: a table, or selections and the rows that were refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from atlas_ray.errors import DataError, UserError
from atlas_ray.runs.local_copy import local_copy
from atlas_ray.selection.budget import record
from atlas_ray.selection.protocol import Selector
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Category, Selection, Trajectory

_COLUMNS = ("trajectory_id", "n_steps", "chosen", "categories", "reason", "error")
_NEEDED = {"trajectory_id", "chosen"}
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")  # what a spreadsheet would run; written with an apostrophe before it
_QUOTED = re.compile(rf"'(?={_FORMULA.pattern[1:]})")
_CATEGORIES = {c.value.lower(): c for c in Category}


class FileSelector(Selector):
    """Steps from a table made elsewhere or by hand, such as `atlas export-selection` writes."""

    name: Literal["file"] = "file"
    path: str = Field(description=".csv or .jsonl with `trajectory_id` and `chosen`")

    def digests(self) -> dict[str, str]:
        """The table's."""
        try:
            return {self.path: hashlib.sha256(local_copy(self.path).read_bytes()).hexdigest()}
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}", "check selector.path") from None


@dataclass(frozen=True, slots=True)
class _Row:
    """One usable row."""

    chosen: tuple[int, ...]
    categories: Mapping[int, Category]
    reason: str | None
    error: str | None


def write_table(path: str | Path, selections: Iterable[Selection]) -> None:
    """Writes a table whole or not at all.

    Raises:
        UserError: If the name ends in neither .csv nor .jsonl, or the file cannot be written.
    """
    path = Path(path)
    kind = _kind(path)
    out = io.StringIO(newline="")
    if kind == ".csv":
        writer = csv.writer(out, lineterminator="\r\n")  # csv quotes no lone \r where lines end in \n
        writer.writerow(_COLUMNS)
        writer.writerows(_cells(s) for s in selections)
    else:
        out.writelines(json.dumps(_object(s), ensure_ascii=False) + "\n" for s in selections)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(out.getvalue().encode(errors="backslashreplace"))
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "check space and permissions") from None


def imported(
    config: FileSelector, trajectories: Sequence[Trajectory], rejected: list[Rejected]
) -> Callable[[Trajectory], Selection]:
    """The function of one trajectory that a table describes; a trajectory without a usable row gets an error.

    Args:
        config: The selector's section.
        trajectories: What the table may speak of.
        rejected: Takes the rows that are refused, with their line and reason.

    Raises:
        UserError: If the file cannot be read as a table.
    """
    known = {t.id: len(t.steps) for t in trajectories}
    rows: dict[str, _Row] = {}
    first: dict[str, int] = {}
    refused: dict[str, str] = {}
    for line, given, problem in _read(local_copy(config.path)):
        name = _text(given.get("trajectory_id"))
        try:
            if name is None:
                raise DataError(problem or "`trajectory_id` is missing")
            if name in first:
                raise DataError(f"a second row of {name}, which line {first[name]} has already")
            first[name] = line
            if name not in known:
                raise DataError(f"the data has no trajectory {name}")
            if problem:
                raise DataError(problem)
            rows[name] = _checked(given, known[name])
        except DataError as error:
            rejected.append(Rejected(config.path, line, error.what))
            if name is not None:
                # Of two rows neither is taken: which one is meant is not for us to say.
                rows.pop(name, None)
                refused.setdefault(name, f"rejected row: line {line}: {error.what}")

    def select(trajectory: Trajectory) -> Selection:
        row = rows.get(trajectory.id)
        if row is None:
            why = refused.get(trajectory.id, f"no row: {config.path} does not name this trajectory")
            return record(trajectory, config, error=why)
        return record(trajectory, config, row.chosen, categories=row.categories, reason=row.reason, error=row.error)

    return select


def _checked(given: Mapping[str, Any], n_steps: int) -> _Row:
    """A row whose every cell holds.

    Raises:
        DataError: With what does not.
    """
    if "chosen" not in given:
        raise DataError("`chosen` is missing")
    counted = _text(given.get("n_steps"))
    if counted is not None and counted != str(n_steps):
        raise DataError(f"`n_steps` is {counted}, but the trajectory has {n_steps} steps")
    chosen = [_step(cell, n_steps) for cell in _list(given.get("chosen"))]
    if len(set(chosen)) < len(chosen):
        raise DataError(f"`chosen` repeats step {next(t for t in chosen if chosen.count(t) > 1)}")
    categories = {_step(step, n_steps): _category(name) for step, name in _pairs(given.get("categories"))}
    if stray := sorted(set(categories) - set(chosen)):
        raise DataError(f"`categories` names step {stray[0]}, which is not chosen")
    error = _text(given.get("error"))
    if error and chosen:
        raise DataError("the row has steps and an error; clear one of them")
    return _Row(tuple(sorted(chosen)), categories, _text(given.get("reason")), error)


def _read(path: Path) -> Iterator[tuple[int, Mapping[str, Any], str | None]]:
    """Rows with the line that each begins on, and what keeps a row from being one."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}", "give a table in UTF-8; see `atlas export-selection`") from None
    if _kind(path) == ".csv":
        yield from _csv_rows(path, text)
        return
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                value = json.loads(row)
            except (ValueError, RecursionError) as error:
                yield line, {}, f"not valid JSON: {error}"
                continue
            if not isinstance(value, dict):
                yield line, {}, "not a JSON object"
                continue
            _check_columns(path, value, set())
            yield line, value, None


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any], str | None]]:
    header = re.split(r"[\r\n]", text, maxsplit=1)[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in header else ",", strict=True)
    begins = 1
    try:
        columns = [name.strip() for name in next(lines, [])]
        _check_columns(path, columns, _NEEDED)
        begins = lines.line_num + 1
        for cells in lines:
            if any(cell.strip() for cell in cells):
                fits = len(cells) == len(columns)
                row = dict(zip(columns, (cell[_QUOTED.match(cell) is not None :] for cell in cells), strict=False))
                yield begins, row, None if fits else f"{len(cells)} cells where the header has {len(columns)}"
            begins = lines.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {begins}: {error}", "mend the table") from None


def _check_columns(path: Path, columns: Iterable[str], needed: set[str]) -> None:
    missing, unknown = sorted(needed - set(columns)), sorted(set(columns) - set(_COLUMNS))
    if missing or unknown:
        what = f"has no column `{missing[0]}`" if missing else f"has an unknown column `{unknown[0]}`"
        raise UserError(f"{path} {what}", f"the columns are {', '.join(_COLUMNS)}")


def _cells(s: Selection) -> list[str]:
    categories = "; ".join(f"{t}: {c.value}" for t, c in sorted(s.categories.items()))
    cells = [s.trajectory_id, str(s.n_steps), " ".join(map(str, s.chosen)), categories, s.reason or "", s.error or ""]
    return [f"'{cell}" if _FORMULA.match(cell) else cell for cell in cells]


def _object(s: Selection) -> dict[str, Any]:
    return {
        "trajectory_id": s.trajectory_id,
        "n_steps": s.n_steps,
        "chosen": list(s.chosen),
        "categories": {str(t): c.value for t, c in sorted(s.categories.items())},
        "reason": s.reason,
        "error": s.error,
    }


def _text(value: Any) -> str | None:
    return str(value) if value is not None and str(value).strip() else None


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if value is None or isinstance(value, str):
        return [cell for cell in re.split(r"[\s,;]+", value or "") if cell]
    return [value]


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    pairs = [pair for pair in re.split(r"[;,\n]", str(value or "")) if pair.strip()]
    if bare := [pair for pair in pairs if ":" not in pair]:
        raise DataError(f"`categories` is not of the form `2: Plan Creation; 5: ...` ({bare[0].strip()!r})")
    return [(step.strip(), name) for step, _, name in (pair.partition(":") for pair in pairs)]


def _step(cell: Any, n_steps: int) -> int:
    number = str(cell) if not isinstance(cell, bool) else ""
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise DataError(f"{str(cell)[:80]!r} is no step number")
    if not 1 <= int(number) <= n_steps:
        raise DataError(f"step {int(number)} does not exist: the steps are 1 to {n_steps}")
    return int(number)


def _category(name: Any) -> Category:
    found = _CATEGORIES.get(" ".join(re.split(r"[\s_-]+", str(name).strip().lower())))
    if found is None:
        raise DataError(f"unknown category {str(name).strip()!r}: valid are {', '.join(c.value for c in Category)}")
    return found


def _kind(path: Path) -> str:
    kind = path.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise UserError(f"{path} is no kind of table that is read or written", "name it .csv or .jsonl")
    return kind
