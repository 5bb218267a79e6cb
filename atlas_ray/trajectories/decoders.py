"""Rows out of files, one at a time: JSON, JSONL, CSV, Parquet, logs of inspect_ai; cut into spans to be read apart.

Flows in: a file, compressed or not; flows out: spans of it, and the rows of each with their places in the file. No file
is held in memory as a whole, but for a JSON file that is one object.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_ray.errors import UserError
from atlas_ray.runs.local_copy import origin
from atlas_ray.trajectories.checks import RepeatedKey, unique_keys
from atlas_ray.trajectories.formats.registry import detect

_CODECS = {"": None, ".gz": "gzip", ".zst": "zstd"}
SUFFIXES = (*(kind + packed for kind in (".json", ".jsonl", ".csv") for packed in _CODECS), ".parquet", ".eval")
SPAN = 64 << 20  # bytes of a file from which on it is cut
_ZIP_ZSTD = 93  # in an archive's own numbers
_LENGTHS = slice(26, 30)  # bytes of a member's header
_CHUNK = 1 << 20  # bytes or characters that are read at once
_CUT_OFF = 64  # characters before the end of a chunk within which an error may come of the cut
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER, _LENIENT = json.JSONDecoder(object_pairs_hook=unique_keys), json.JSONDecoder()
csv.field_size_limit(1 << 30)  # a cell holds a conversation


class Decoded(NamedTuple):
    """A row: its place in the file (line, or element from 1), and its value or why it has none."""

    row: int
    value: Any
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a file.

    Attributes:
        start: Its first byte (JSONL) or row group (Parquet).
        stop: The first that is no part of it; None: it goes to the end.
        row: The place of its first row.
    """

    start: int = 0
    stop: int | None = None
    row: int = 1


WHOLE = Span()


def spans(file: Path) -> list[Span]:
    """How a file can be cut: JSONL between lines, Parquet between row groups, others not at all.

    Raises:
        UserError: If it cannot be read.
    """
    cut = {".jsonl": _line_spans, ".parquet": _group_spans}.get(file.suffix.lower())
    return [WHOLE] if cut is None or file.stat().st_size <= SPAN else cut(file)


def decode(file: Path, span: Span = WHOLE) -> Iterator[Decoded]:
    """The rows of a span.

    Raises:
        UserError: If the file cannot be read as a whole.
    """
    if file.suffix.lower() == ".parquet":
        return _parquet_rows(file, span)
    if file.suffix.lower() == ".eval":
        return _log_rows(file)
    kind = Path(file.stem if file.suffix.lower() in _CODECS else file.name).suffix.lower()
    return _jsonl_rows(file, span) if kind == ".jsonl" else _csv_rows(file) if kind == ".csv" else _json_rows(file)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked."""
    codec = _CODECS.get(file.suffix.lower())
    with _readable(file), file.open("rb") as raw:
        yield raw if codec is None else cast(BinaryIO, io.BufferedReader(pa.input_stream(raw, compression=codec)))


def _line_spans(file: Path) -> list[Span]:
    found, start, row, at, lines = list[Span](), 0, 1, 0, 0
    with _readable(file), file.open("rb") as source:
        while block := source.read(_CHUNK):
            lines += block.count(b"\n")
            end = at + block.rfind(b"\n") + 1
            if end > at and end - start >= SPAN:
                found.append(Span(start, end, row))
                start, row, lines = end, row + lines, 0
            at += len(block)
    return found + [Span(start, None, row)] * (start < at)


def _group_spans(file: Path) -> list[Span]:
    found, start, row, rows, size = list[Span](), 0, 1, 0, 0
    with _parquet(file):
        metadata = pq.read_metadata(file)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows, size = rows + group.num_rows, size + group.total_byte_size
        if size >= SPAN or number + 1 == metadata.num_row_groups:
            found.append(Span(start, number + 1, row))
            start, row, rows, size = number + 1, row + rows, 0, 0
    return found or [WHOLE]


def _json_rows(file: Path) -> Iterator[Decoded]:
    with _opened(file) as source:
        text = _JsonText(io.TextIOWrapper(source, "utf-8-sig", newline=""))
        try:
            if text.peek() == "[":
                yield from _elements(text)
                return
            value = text.value()
            text.end()
        except json.JSONDecodeError as error:
            raise UserError(
                f"{origin(file)} is not valid JSON: {text.place(error.pos)}: {error.msg}",
                "mend the file or fetch it anew; name it .jsonl where it holds one object a line",
            ) from None
        lists = {key: rows for key, rows in value.items() if isinstance(rows, list)} if isinstance(value, dict) else {}
        lists = {key: rows for key, rows in lists.items() if any(map(detect, rows))} or lists
        if lists and not detect(value):
            if len(lists) > 1:
                what = f"{origin(file)} is an object of several lists: {', '.join(lists)}"
                raise UserError(what, "write the one that is meant into a file of its own")
            (rows,) = lists.values()
            yield from (Decoded(number, row) for number, row in enumerate(rows, 1))
            return
        yield _decoded(1, value)


def _elements(text: _JsonText) -> Iterator[Decoded]:
    """The elements of the list that begins here."""
    text.at += 1
    sign, row = text.peek(), 0
    if sign == "]":
        text.at += 1
    while sign != "]":
        text.peek()
        row += 1
        yield _decoded(row, text.value())
        sign = text.peek()
        if sign not in (",", "]"):
            raise json.JSONDecodeError("Expecting ',' delimiter", text.window, text.at)
        text.at += 1
    text.end()


def _decoded(row: int, value: Any) -> Decoded:
    return Decoded(row, None, str(value)) if isinstance(value, RepeatedKey) else Decoded(row, value)


class _JsonText:
    """A file's text through a window that moves on; `at` is the place in the window."""

    def __init__(self, source: TextIO) -> None:
        self.window, self.at = "", 0
        self._source, self._line, self._column = source, 1, 1  # of the window's first character

    def peek(self) -> str:
        """The next character but white space; empty at the end."""
        while True:
            space = _SPACE.match(self.window, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.window):
                return self.window[self.at]
            if not self._read_on():
                return ""

    def value(self) -> Any:
        """The value that begins here, or a `RepeatedKey` in place of one that holds such.

        Raises:
            JSONDecodeError: If none does.
        """
        while True:
            try:
                try:
                    value, end = _DECODER.raw_decode(self.window, self.at)
                except RepeatedKey as error:
                    value, end = error, _LENIENT.raw_decode(self.window, self.at)[1]
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.window) - _CUT_OFF or error.msg.startswith("Unterminated string")
                if cut and self._read_on():
                    continue
                raise
            if end < len(self.window) - _CUT_OFF or not self._read_on():  # a number may go on
                self.at = end
                return value

    def end(self) -> None:
        """Nothing but white space may follow.

        Raises:
            JSONDecodeError: If something does.
        """
        if self.peek():
            raise json.JSONDecodeError("Extra data", self.window, self.at)

    def place(self, at: int) -> str:
        """A place in the window in words."""
        before = self.window[:at]
        line, newline = self._line + before.count("\n"), before.rfind("\n")
        return f"line {line}, column {self._column + at if newline < 0 else at - newline}"

    def _read_on(self) -> bool:
        """Moves the window on; whether there was more to read."""
        more = self._source.read(max(_CHUNK, len(self.window) - self.at))
        if more:
            before, newline = self.window[: self.at], self.window.rfind("\n", 0, self.at)
            self._line += before.count("\n")
            self._column = self._column + self.at if newline < 0 else self.at - newline
            self.window, self.at = self.window[self.at :] + more, 0
        return bool(more)


def _jsonl_rows(file: Path, span: Span) -> Iterator[Decoded]:
    with _opened(file) as lines:
        at = lines.seek(span.start) if span.start else 0
        for row, line in enumerate(lines, span.row):
            if span.stop is not None and at >= span.stop:
                return
            at += len(line)
            try:
                text = line.decode("utf-8-sig" if row == 1 else "utf-8")
                if not text.strip():
                    continue
                decoded = Decoded(row, json.loads(text, object_pairs_hook=unique_keys))
            except json.JSONDecodeError as error:
                decoded = Decoded(row, None, f"not valid JSON: column {error.colno}: {error.msg}")
            except RepeatedKey as error:
                decoded = Decoded(row, None, str(error))
            except (ValueError, RecursionError) as error:
                decoded = Decoded(row, None, f"unreadable: {_short(error)}")
            yield decoded


def _csv_rows(file: Path) -> Iterator[Decoded]:
    with _opened(file) as source:
        try:
            rows = csv.reader(io.TextIOWrapper(source, "utf-8-sig", newline=""), strict=True)
            names = next(rows, [])
            if len(set(names)) < len(names):
                raise UserError(f"two columns of {origin(file)} have one name", "name each column once")
            for number, cells in enumerate((cells for cells in rows if cells), 1):
                if len(cells) != len(names):
                    yield Decoded(number, None, f"the row has {len(cells)} cells for {len(names)} columns")
                    continue
                try:
                    yield Decoded(number, dict(zip(names, map(_cell, cells), strict=True)))
                except RepeatedKey as error:
                    yield Decoded(number, None, str(error))
        except csv.Error as error:
            raise UserError(f"{origin(file)} is not valid CSV: {error}", "write it anew, each text in quotes") from None


def _cell(text: str) -> Any:
    """What a cell holds: JSON where it is JSON, nothing where it is empty, else its text."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys) if text else None
    except (json.JSONDecodeError, RecursionError):
        return text


def _log_rows(file: Path) -> Iterator[Decoded]:
    """The samples of a log of inspect_ai, a JSON file each in an archive."""
    with _readable(file), file.open("rb") as raw, zipfile.ZipFile(raw) as log:
        samples = (member for member in log.infolist() if member.filename.startswith("samples/"))
        for number, member in enumerate(samples, 1):
            try:
                value = json.loads(_unpacked(raw, log, member), object_pairs_hook=unique_keys)
            except (ValueError, RecursionError, RepeatedKey) as error:
                yield Decoded(number, None, f"{member.filename}: {_short(error)}")
            else:
                yield Decoded(number, value)


def _unpacked(raw: BinaryIO, log: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes; zstd's too, which Python's own archives know from 3.14 on."""
    if member.compress_type != _ZIP_ZSTD:
        return log.read(member)
    raw.seek(member.header_offset + _LENGTHS.start)
    lengths = int.from_bytes(raw.read(2), "little") + int.from_bytes(raw.read(2), "little")  # of the name and the rest
    raw.seek(member.header_offset + _LENGTHS.stop + lengths)
    packed = pa.py_buffer(raw.read(member.compress_size))
    return cast(bytes, pa.input_stream(packed, compression="zstd").read())


def _parquet_rows(file: Path, span: Span) -> Iterator[Decoded]:
    row = span.row
    with _parquet(file), pq.ParquetFile(file) as source:
        groups = range(span.start, source.num_row_groups if span.stop is None else span.stop)
        for batch in source.iter_batches(batch_size=256, row_groups=list(groups)):
            for value in batch.to_pylist():
                yield Decoded(row, value)
                row += 1


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise UserError(
            f"cannot read {origin(file)}: {_short(error)}",
            "check its permissions, and that it is whole and UTF-8",
        ) from None


@contextmanager
def _parquet(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{origin(file)} is not readable as Parquet: {_short(error)}", "fetch or write it anew"
        ) from None


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
