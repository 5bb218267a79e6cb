"""What a data set holds, without its texts: the ids of all usable trajectories, and where each is read from.

Flows in: a `DataConfig`; flows out: an index small enough for one process, and from it the trajectories themselves,
part by part, in any process. Small data is indexed here, large data by Ray's tasks.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, numbers_on_ray, packed, stream
from atlas_ray.config import DataConfig, RayConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder, latest_places, reachable
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.decoders import Span
from atlas_ray.trajectories.item_ids import UniqueIds
from atlas_ray.trajectories.locate import is_run
from atlas_ray.trajectories.readers import Part, check_environments, iter_part, list_parts, warn_once
from atlas_ray.trajectories.rejected import Rejected, skipped_line
from atlas_ray.types import Trajectory

if TYPE_CHECKING:
    from ray.data import Dataset

OUTLINE = pa.schema([("id", pa.string()), ("env", pa.string()), ("item_id", pa.string()), ("n_steps", pa.int32())])
BUDGET = "budget"  # a further column of an outline: see `Trajectory`
SMALL = 16 << 20  # bytes of data that are read faster here than Ray's tasks are started,
_FEW = 20_000  # and how many trajectories that may be: Parquet may hold many in few bytes
_ROLES = ["messages.list.element.role", "messages.list.element.trainable"]


@dataclass(frozen=True, slots=True)
class Outline:
    """A trajectory without its texts."""

    id: str
    env: str
    item_id: str
    n_steps: int
    budget: int | None = None

    @property
    def steps(self) -> range:
        """Its steps' numbers, from 1."""
        return range(1, self.n_steps + 1)


def outlines_of(table: pa.Table) -> Iterator[Outline]:
    """Rows of the schema of `OUTLINE`, with budgets where there are any."""
    names = [*OUTLINE.names, *({BUDGET} & {*table.column_names})]
    return map(Outline, *(table[name].to_pylist() for name in names))


@dataclass(frozen=True)
class DataIndex:
    """The usable trajectories of a data set, in the order in which they are read.

    Attributes:
        config: Where the data lies, for any process.
        parts: What is read apart from each other.
        bounds: Of the trajectories that each part holds: the place of its first among those of all parts, and at the
            end their number.
        places: Of each trajectory that counts: its place among all of them.
        outline: `id` (unique), `env`, `item_id` and `n_steps` of each trajectory that counts.
        rejected: The unusable rows.
        is_small: Whether it is read faster here than Ray's tasks are started.
    """

    config: DataConfig
    parts: list[Part]
    bounds: np.ndarray
    places: np.ndarray
    outline: pa.Table
    rejected: list[Rejected]
    is_small: bool

    def reads(self, wanted: np.ndarray, rows_per_block: int) -> Iterator[PartRead]:
        """What is to be read of each part, where anything is.

        Args:
            wanted: Of each trajectory that counts, whether it is asked for.
            rows_per_block: Most trajectories of a block.
        """
        cuts = np.searchsorted(self.places, self.bounds)
        for number, part in enumerate(self.parts):
            inside = slice(cuts[number], cuts[number + 1])
            mine = wanted[inside]
            if mine.any():
                rows = self.places[inside][mine] - self.bounds[number]
                own = self.outline.slice(cuts[number], len(mine)).filter(pa.array(mine)).combine_chunks()
                yield PartRead(self.config, part, rows, own["id"], own.drop_columns(OUTLINE.names), rows_per_block)


@dataclass(frozen=True)
class PartRead:
    """Trajectories of one part: their places in it, and the ids and further columns of the outline that they have in
    the data set.
    """

    config: DataConfig
    part: Part
    rows: np.ndarray
    ids: pa.ChunkedArray
    columns: pa.Table
    rows_per_block: int

    def trajectories(self) -> Iterator[list[Trajectory]]:
        """The trajectories, block by block.

        Raises:
            UserError: If they are not there any more.
        """
        if self.part.file is None:
            yield from map(TRAJECTORIES.from_table, self.blocks())
            return
        held = BUDGET in self.columns.column_names
        budgets = self.columns[BUDGET].to_pylist() if held else [None] * len(self.rows)
        wanted = zip(self.rows.tolist(), self.ids.to_pylist(), budgets, strict=True)
        block: list[Trajectory] = []
        usable = (found for found in iter_part(self.part, self.config) if isinstance(found, Trajectory))
        place, id_, budget = next(wanted)
        for number, found in enumerate(usable):
            if number < place:
                continue
            same = found.id == id_ and budget is None
            block.append(found if same else replace(found, id=id_, budget=budget))
            place, id_, budget = next(wanted, (-1, "", None))
            if len(block) == self.rows_per_block or place < 0:
                yield block
                block = []
            if place < 0:
                return
        raise UserError(f"{self.config.path} changed while it was read", "run the same command again")

    def blocks(self) -> Iterator[pa.Table]:
        """The same as rows of `TRAJECTORIES`, with the further columns of the outline."""
        start = 0
        for table in self._tables():
            own = self.columns.slice(start, table.num_rows)
            start += table.num_rows
            yield pa.table({name: columns[name] for columns in (table, own) for name in columns.column_names})

    def _tables(self) -> Iterator[pa.Table]:
        if self.part.file is not None:
            yield from map(TRAJECTORIES.to_table, self.trajectories())
            return
        table = _run_table(self.part, self.config).take(self.rows)
        for start in range(0, table.num_rows, self.rows_per_block):
            yield table.slice(start, self.rows_per_block)


def blocks_on_ray(reads: Iterable[PartRead]) -> Dataset:
    """The blocks of parts, read by Ray's workers; each packed as `map_on_ray` unpacks it, for a worker of its own."""
    import ray

    refs = [ray.put(read) for read in reads]
    return map_on_ray(numbers_on_ray(len(refs)), _read_packed, refs).repartition(
        target_num_rows_per_block=1, strict=True
    )


def parts_read(table: pa.Table, refs: list[Any]) -> Iterator[PartRead]:
    """In a worker: what is to be read, of numbers (`numbers_on_ray`) and references."""
    import ray

    for number in table["id"].to_pylist():
        yield ray.get(refs[number])


def _read_packed(table: pa.Table, refs: list[Any]) -> Iterator[pa.Table]:
    for read in parts_read(table, refs):
        yield from packed(read.blocks())


def index_data(config: DataConfig, ray: RayConfig) -> DataIndex:
    """Reads a data set once for its index.

    Raises:
        UserError: If the data cannot be found or read as a whole, or holds nothing of an environment asked for.
    """
    parts, size = _parts(config)
    of_run = parts[0].file is None
    if size > SMALL:
        config = config.model_copy(update={"path": reachable(config.path)})
        parts, _ = _parts(config)
        found = list(_outlines_on_ray(parts, config, ray))
    else:
        found = [_outline(part, config) for part in parts]
    counts = [table.num_rows for table, _ in found]
    rejected = [row for _, rows in found for row in rows]
    outline = pa.concat_tables([table for table, _ in found])
    del found
    latest = latest_places(outline["id"])
    repeated, places = len(latest) < outline.num_rows, np.arange(outline.num_rows)
    if of_run and (repeated or config.limit is not None):
        places = np.sort(latest) if config.limit is None else latest
        outline = outline.take(places)
    if config.limit is not None or (repeated and not of_run):
        unique = UniqueIds(config.limit)
        pairs = zip(outline["env"].to_pylist(), outline["id"].to_pylist(), strict=True)
        ids = [unique.take(env, wanted) for env, wanted in pairs]
        counted = np.array([name is not None for name in ids], bool)
        outline = outline.set_column(0, "id", pa.array(ids, pa.string())).filter(pa.array(counted))
        places = places[counted]
        order = np.argsort(places, kind="stable")  # a run's first ones are chosen by id
        outline, places = outline.take(order), places[order]
    pa.default_memory_pool().release_unused()
    if line := skipped_line(rejected):
        warn_once(f"{config.path}: {line}")
    unusable = [row for row in rejected if row.is_unusable]
    check_environments(config, set(pc.unique(outline["env"]).to_pylist()), unusable)
    return DataIndex(
        config, parts, np.cumsum([0, *counts]), places, outline, rejected, size <= SMALL and outline.num_rows <= _FEW
    )


def _parts(config: DataConfig) -> tuple[list[Part], int]:
    """The parts of a data set, and their size in bytes.

    Raises:
        UserError: If there is none.
    """
    if is_run(config.path):
        sizes = RunFolder(config.path).shard_sizes(TRAJECTORIES)
        if not sizes:
            raise UserError(f"the run {config.path} holds no trajectories", "name the run folder of a collection")
        return [Part(config.path, None, span=Span(n, n + 1)) for n in range(len(sizes))], sum(sizes)
    parts = list_parts(config)
    files = {Path(part.root, part.file or "") for part in parts}
    return parts, sum(file.stat().st_size for file in files)


def _outline(part: Part, config: DataConfig) -> tuple[pa.Table, list[Rejected]]:
    """The trajectories of a part in its order, and its unusable rows; in any process."""
    if part.file is None:
        return _run_outline(part, config), []
    columns: tuple[list[Any], ...] = ([], [], [], [])
    rejected = []
    for found in iter_part(part, config):
        if isinstance(found, Rejected):
            rejected.append(found)
            continue
        steps = sum(message.trainable and message.role == "assistant" for message in found.messages)
        for column, value in zip(columns, (found.id, found.env, found.item_id, steps), strict=True):
            column.append(value)
    return pa.table([*columns], schema=OUTLINE), rejected


def _outlines_on_ray(
    parts: list[Part], config: DataConfig, ray: RayConfig
) -> Iterator[tuple[pa.Table, list[Rejected]]]:
    """The same of every part, in their order."""
    connect(ray)

    def outline(table: pa.Table) -> Iterator[pa.Table]:
        for number in table["id"].to_pylist():
            yield pa.table({"number": [number], "found": [pickle.dumps(_outline(parts[number], config))]})

    found = {}
    for table in stream(map_on_ray(numbers_on_ray(len(parts)), outline), "reading"):
        for row in table.to_pylist():
            found[row["number"]] = pickle.loads(row["found"])  # noqa: S301 (made by our own worker)
    yield from (found.pop(number) for number in range(len(parts)))


def _run_table(part: Part, config: DataConfig, columns: list[str] | None = None) -> pa.Table:
    folder = RunFolder(config.path)
    table = folder.shard(folder.shards(TRAJECTORIES)[part.span.start], columns)
    return table if config.envs is None else table.filter(pc.is_in(table["env"], pa.array(config.envs)))


def _run_outline(part: Part, config: DataConfig) -> pa.Table:
    table = _run_table(part, config, ["id", "env", "item_id", *_ROLES])
    messages = pa.concat_arrays(table["messages"].chunks)
    offsets, turns = messages.offsets.to_numpy(), messages.values
    is_step = pc.and_(pc.equal(turns.field("role"), "assistant"), turns.field("trainable"))
    before = np.concatenate([[0], np.cumsum(is_step.to_numpy(zero_copy_only=False))])
    steps = pa.array(before[offsets[1:]] - before[offsets[:-1]], pa.int32())
    return table.select(["id", "env", "item_id"]).append_column("n_steps", steps)
