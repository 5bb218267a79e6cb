"""A selection as a table that people edit: written to .csv or .jsonl, read back with every check.

One row a trajectory: `trajectory_id`, `n_steps`, `chosen` ("2 5 7"), `categories` ("2: Plan Creation; 5: Critical
Action"), `reason`, `error`; in .jsonl `chosen` is a list and `categories` an object. `trajectory_id` and `chosen` must
be there. What other tools made of such a table, .json and .parquet too, is read as well. Flows in: selections, or a
table; flows out: a table, or selections and the rows that were refused.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from atlas_ray.errors import DataError, UserError
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.local_copy import local_copy
from atlas_ray.runs.store import first_line
from atlas_ray.selection.budget import record
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.rows import RowSelector, RowStage, Rule
from atlas_ray.trajectories.index import Outline
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Category, Selection

_COLUMNS = ("trajectory_id", "n_steps", "chosen", "categories", "reason", "error")
_NEEDED = {"trajectory_id", "chosen"}
_WRITTEN = (".csv", ".jsonl")
_TABLES = (*_WRITTEN, ".json", ".parquet")
_POINT_ZERO = re.compile(r"(?<=[0-9])\.0+$")  # a blank in a column of whole numbers makes 2.0 of 2 in other tools
_FORMULA = re.compile(r"^'*[=+\-@\t\r]")  # what a spreadsheet would run; written with an apostrophe before it
_QUOTED = re.compile(rf"'(?={_FORMULA.pattern[1:]})")
_CATEGORIES = {c.value.lower(): c for c in Category}


class FileSelector(RowSelector):
    """Steps from a table made elsewhere or by hand, such as `atlas export-selection` writes."""

    name: Literal["file"] = "file"
    path: str = Field(description=".csv, .jsonl, .json or .parquet with `trajectory_id` and `chosen`")

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        return _from_table(self, self.path)

    def stage(self, context: StageContext) -> Stage:
        """The table, read by each worker; the rows that cannot be used join the run's rejected ones.

        Raises:
            UserError: If the file cannot be read as a table.
        """
        known = dict(zip(context.index["id"].to_pylist(), context.index["n_steps"].to_pylist(), strict=True))
        context.rejected.extend(_refused(self, known))
        path = reachable(self.path)
        return RowStage(lambda: _from_table(self, path), outlines=True)

    def digests(self) -> dict[str, str]:
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
    kind = _kind(path, _WRITTEN)
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


def _refused(selector: FileSelector, known: Mapping[str, int]) -> Iterator[Rejected]:
    """The rows that cannot be used, with their line and reason.

    Args:
        known: Steps by trajectory id.
    """
    first: dict[str, int] = {}
    for line, given, problem in _read(local_copy(selector.path)):
        name = _text(given.get("trajectory_id"))
        try:
            if name is None:
                raise DataError(problem or "`trajectory_id` is missing")
            if name in first:
                raise DataError(_second(name, first[name]))
            first[name] = line
            if name not in known:
                raise DataError(f"the data has no trajectory {name}")
            _checked(given, problem, known[name])
        except DataError as error:
            yield Rejected(selector.path, line, error.what)


def _from_table(selector: FileSelector, path: str) -> Rule:
    """What the table says of a trajectory; one without a usable row gets an error.

    Of two rows neither is taken: which one is meant is not for us to say.
    """
    rows: dict[str, tuple[int, Mapping[str, Any], str | None]] = {}
    second: dict[str, int] = {}
    for line, given, problem in _read(local_copy(path)):
        name = _text(given.get("trajectory_id"))
        if name in rows:
            second.setdefault(name, line)
        elif name is not None:
            rows[name] = line, given, problem

    def select(trajectory: Outline) -> Selection:
        name = trajectory.id
        if name not in rows:
            return record(trajectory, selector, error=f"no row: {selector.path} does not name this trajectory")
        line, given, problem = rows[name]
        try:
            row = _checked(given, problem, trajectory.n_steps)
            if name in second:
                first, line = line, second[name]
                raise DataError(_second(name, first))
        except DataError as error:
            return record(trajectory, selector, error=f"rejected row: line {line}: {error.what}")
        return record(trajectory, selector, row.chosen, categories=row.categories, reason=row.reason, error=row.error)

    return select


def _second(name: str, first: int) -> str:
    return f"a second row of {name}, which line {first} has already"


def _checked(given: Mapping[str, Any], problem: str | None, n_steps: int) -> _Row:
    """A row whose every cell holds.

    Raises:
        DataError: With what does not.
    """
    if problem:
        raise DataError(problem)
    if "chosen" not in given:
        raise DataError("`chosen` is missing")
    counted = _text(given.get("n_steps"))
    if counted is not None and _POINT_ZERO.sub("", counted) != str(n_steps):
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
    """Rows with the line that each begins on (elsewhere their number), and what keeps a row from being one."""
    kind, remedy = _kind(path, _TABLES), "give a table in UTF-8; see `atlas export-selection`"
    try:
        if kind == ".parquet":
            yield from _objects(path, pq.read_table(path).to_pylist())
            return
        text = path.read_bytes().decode("utf-8-sig")
        if kind == ".csv":
            yield from _csv_rows(path, text)
        elif kind == ".json":
            yield from _objects(path, json.loads(text))
        else:
            yield from _json_lines(path, text)
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}", remedy) from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any], str | None]]:
    for line, row in enumerate(text.split("\n"), 1):
        if row.strip():
            try:
                value = json.loads(row)
            except (ValueError, RecursionError) as error:
                yield line, {}, f"not valid JSON: {error}"
                continue
            yield _object_row(path, line, value)


def _objects(path: Path, rows: Any) -> Iterator[tuple[int, Mapping[str, Any], str | None]]:
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no list of rows", 'give `[{"trajectory_id": ..., "chosen": [2, 5]}, ...]`')
    return (_object_row(path, number, value) for number, value in enumerate(rows, 1))


def _object_row(path: Path, line: int, value: Any) -> tuple[int, Mapping[str, Any], str | None]:
    if not isinstance(value, dict):
        return line, {}, "not a JSON object"
    _check_columns(path, value, set())
    return line, value, None


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


def _is_blank(value: Any) -> bool:
    return value is None or value != value or not str(value).strip()  # noqa: PLR0124 (nan, a blank of other tools)


def _text(value: Any) -> str | None:
    return None if _is_blank(value) else str(value)


def _list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    return [] if _is_blank(value) else [cell for cell in re.split(r"[\s,;]+", str(value)) if cell]


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return [(step, name) for step, name in value.items() if not _is_blank(name)]
    pairs = [pair for pair in re.split(r"[;,\n]", _text(value) or "") if pair.strip()]
    if bare := [pair for pair in pairs if ":" not in pair]:
        raise DataError(f"`categories` is not of the form `2: Plan Creation; 5: ...` ({bare[0].strip()!r})")
    return [(step.strip(), name) for step, _, name in (pair.partition(":") for pair in pairs)]


def _step(cell: Any, n_steps: int) -> int:
    number = _POINT_ZERO.sub("", str(cell)) if not isinstance(cell, bool) else ""
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


def _kind(path: Path, kinds: Sequence[str]) -> str:
    kind = path.suffix.lower()
    if kind not in kinds:
        raise UserError(f"{path} is no kind of table that is read or written", f"name it {' or '.join(kinds)}")
    return kind
