"""The run folder: Parquet shards that appear whole or not at all, a manifest, and resume by unit of work.

A run folder is a local path or any URI that pyarrow or fsspec opens (`s3://`, `gs://`). Flows in: records; flows out:
records without duplicates, and the ids of what is done.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Generic

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel

from atlas_ray.address import below
from atlas_ray.errors import ConfigurationChanged, UserError
from atlas_ray.runs.manifest import completed, config_digest, differences, identity, manifest
from atlas_ray.runs.store import explained, first_line, in_time, open_store
from atlas_ray.runs.tables import Record, TableSpec
from atlas_ray.runs.units import JOB, record_finished

FLUSH_UNITS = 32
FLUSH_SECONDS = 60.0
COMPACT_FROM = 64
_WHOLE = 64 << 10  # mean bytes of shards from which on they are not small
_MERGED = 16 << 20  # bytes in memory of a merged shard, about
_BATCH = 8192  # rows that are read at once


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

    def names(self, *below: str) -> set[str]:
        """Names of the files and folders here, or in a folder below."""
        return {i.base_name for i in self._info(pafs.FileSelector(self._path("/".join(below)), allow_not_found=True))}

    def delete(self, keep: Collection[TableSpec[Any]] = ()) -> None:
        """Deletes the folder and all below it, but for the tables to keep."""
        if not keep:
            if self._fs.get_file_info(self._root).type == pafs.FileType.Directory:
                self._fs.delete_dir(self._root)
            return
        kept, ends = {table.name for table in keep}, ["finished.json", "manifest.json"]
        found = self._info(pafs.FileSelector(self._root, allow_not_found=True))
        # What says that the run is whole goes first, and what says whose it is last: a kill leaves a run to be begun.
        for info in sorted(found, key=lambda i: ends.index(i.base_name) if i.base_name in ends else 0.5):
            if info.type == pafs.FileType.File:
                self._fs.delete_file(info.path)
            elif info.base_name not in kept:
                self._fs.delete_dir(info.path)

    def begin(
        self, config: BaseModel, *, stage: str, clean: bool = False, keep: Collection[TableSpec[Any]] = ()
    ) -> None:
        """Opens the folder for a run of `config`: starts it, or goes on where an earlier run stopped.

        Args:
            config: Of the run.
            stage: That writes it.
            clean: Starts anew.
            keep: Tables that outlast that.

        Raises:
            UserError: If it holds a run of another configuration (the differing keys are named).
        """
        self.stage, resolved = stage, identity(config)
        if JOB in os.environ and "://" not in self.uri and not Path(self.uri).is_absolute():
            raise UserError(
                f"{self.uri!r} is relative: in a job it would lie in a node's copy of the working directory",
                "give an absolute path that all nodes share, or an s3:// or gs:// URI (--run; a recipe's `runs`)",
            )
        if clean:
            self.delete(keep)
        if self.exists:
            held, unread = completed(self.read_json("manifest.json")["config"], type(config))
            if differing := differences(held, resolved):
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
        self.write_json("manifest.json", manifest(resolved, stage))

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
        rows = sorted(
            (row for batch in self.latest(table) for row in batch.to_pylist()), key=lambda row: str(row["id"])
        )
        return [table.from_row(row) for row in rows]

    def stream(self, table: TableSpec[Record]) -> Iterator[Record]:
        """The same in the order of writing; only a batch is held at once."""
        return (record for batch in self.latest(table) for record in table.from_table(batch))

    def done(self, table: TableSpec[Any]) -> set[str]:
        """Ids recorded without an error: what a resumed run leaves alone."""
        return set(self.done_ids(table).to_pylist())

    def done_ids(self, table: TableSpec[Any]) -> pa.Array:
        """The same as an array, which takes a fifth of the memory."""
        columns = ["id", *(["error"] if "error" in table.schema.names else [])]
        found = [
            batch["id"].filter(batch["error"].is_null()) if "error" in columns else batch["id"]
            for batch in self.latest(table, columns)
        ]
        return pa.chunked_array(found, pa.string()).combine_chunks()

    def latest(self, table: TableSpec[Any], columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Batches of what was written, each id once: as it was written last."""
        shards = self.shards(table)
        ids = [id_ for shard in shards for batch in self._batches(shard, ["id"]) for id_ in batch["id"].chunks]
        counts = np.zeros(sum(map(len, ids)), bool)
        counts[latest_places(pa.chunked_array(ids, pa.string()))] = True
        del ids
        at = 0
        for shard in shards:
            for batch in self._batches(shard, columns):
                mine = counts[at : at + batch.num_rows]
                at += batch.num_rows
                yield batch if mine.all() else batch.filter(pa.array(mine))

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
        """Merges many small shards into few. A crash in between leaves duplicates, which reading drops."""
        shards, sizes = self.shards(table), self.shard_sizes(table)
        if len(shards) < COMPACT_FROM or sum(sizes) > _WHOLE * len(shards):
            return
        held: list[pa.Table] = []
        for batch in self.latest(table):
            held.append(batch)
            if sum(one.nbytes for one in held) > _MERGED:
                self.write_table(table, pa.concat_tables(held, promote_options="default"))
                held = []
        if held:
            self.write_table(table, pa.concat_tables(held, promote_options="default"))
        for shard in shards:
            self._fs.delete_file(shard)

    def tables(self, table: TableSpec[Any], columns: list[str] | None = None) -> list[pa.Table]:
        """The shards as they are, oldest first: an id may stand in several, and the latest counts."""
        return [self.shard(path, columns) for path in self.shards(table)]

    def shards(self, table: TableSpec[Any]) -> list[str]:
        """Paths of the files of a table, oldest first."""
        return [info.path for info in self._shards(table)]

    def shard_sizes(self, table: TableSpec[Any]) -> list[int]:
        """Their sizes in bytes."""
        return [info.size for info in self._shards(table)]

    def _shards(self, table: TableSpec[Any]) -> list[Any]:
        listed = self._info(pafs.FileSelector(self._path(table.name), allow_not_found=True))
        return sorted((i for i in listed if i.path.endswith(".parquet")), key=lambda info: str(info.path))

    def shard(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """One of those files; columns may lead into lists: `messages.list.element.role`."""
        with self._fs.open_input_file(path) as source, pq.ParquetFile(source) as file:
            return file.read(columns=columns)

    def _batches(self, path: str, columns: list[str] | None) -> Iterator[pa.Table]:
        with self._fs.open_input_file(path) as source, pq.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                yield pa.Table.from_batches([batch])

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"


def latest_places(ids: pa.ChunkedArray) -> np.ndarray:
    """Of records in the order of writing: the places of those that are the last of their id, ordered by id.

    Sorted, for a hash table takes many times the memory of the ids.
    """
    whole = ids.combine_chunks()
    order = pc.array_sort_indices(whole)  # stable
    ordered = whole.take(order)
    ends = np.ones(len(ordered), bool)
    ends[:-1] = pc.not_equal(ordered[:-1], ordered[1:]).to_numpy(zero_copy_only=False)
    return order.to_numpy()[ends].astype(np.int64)


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


def reachable(place: str) -> str:
    """A local path made absolute, for processes that work elsewhere; URIs and hub ids stay as they are."""
    return place if "://" in place or not Path(place).exists() else str(Path(place).resolve())
