"""Functions over blocks of rows on Ray Data, and what comes out of them: the one way in which stages use it.

Flows in: tables, or a data set, and a function of a table; flows out: tables. An error of ours that stops a worker
stops the stage, and reaches the driver as it is.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from atlas_ray.cluster.connection import AGAIN
from atlas_ray.errors import AtlasError

_PACKED = "packed block"

if TYPE_CHECKING:
    from ray.data import Dataset


def tables_on_ray(tables: Iterable[pa.Table]) -> Dataset:
    """A data set of tables, each a block; in Ray's object store one by one, and on disk what it has no room for."""
    import ray
    from ray.data import from_arrow_refs

    _hand_on_our_errors()
    refs: Any = [ray.put(table) for table in tables]
    found: Dataset = from_arrow_refs(refs)
    return found


def numbers_on_ray(count: int) -> Dataset:
    """A data set of the numbers below `count`, as `id`, each a block."""
    from ray.data import range as numbered

    _hand_on_our_errors()
    found: Dataset = numbered(count, override_num_blocks=count)
    return found


def _hand_on_our_errors() -> None:
    """Not Ray's around them; of data sets that are made from now on."""
    from ray.data import DataContext

    DataContext.get_current().raise_original_map_exception = True


def packed(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Each block as one row, so that Ray Data joins no two of them; `map_on_ray` unpacks them."""
    for block in blocks:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, block.schema) as writer:
            writer.write_table(block)
        yield pa.table({_PACKED: pa.array([sink.getvalue().to_pybytes()], pa.large_binary())})


def _unpacked(table: pa.Table) -> list[pa.Table]:
    if table.column_names != [_PACKED]:
        return [table]
    return [pa.ipc.open_stream(block.as_buffer()).read_all() for block in table[_PACKED]]


def _block_by_block(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or the class of functions, for tables that may hold packed blocks."""

    def tables(made: Any) -> Iterable[pa.Table]:
        return [made] if isinstance(made, pa.Table) else made

    if not isinstance(function, type):

        def mapped(table: pa.Table, *args: Any) -> Iterator[pa.Table]:
            for block in _unpacked(table):
                yield from tables(function(block, *args))

        return mapped
    call: Any = function.__call__
    if inspect.iscoroutinefunction(call):

        async def called(self: Any, table: pa.Table) -> AsyncIterator[pa.Table]:
            for made in await asyncio.gather(*(call(self, block) for block in _unpacked(table))):
                yield made
    else:

        def called(self: Any, table: pa.Table) -> Iterator[pa.Table]:  # type: ignore[misc]
            for block in _unpacked(table):
                yield from tables(call(self, block))

    return type(function.__name__, (function,), {"__call__": called})


def map_on_ray(
    rows: Dataset | Iterable[pa.Table], function: Callable[..., Any], *args: Any, workers: Any = None, **options: Any
) -> Dataset:
    """Maps blocks of rows: one table a block goes in, one or several come out.

    Args:
        rows: A data set, or its blocks.
        function: Of a table; a class where each worker holds something, which is made from `args`.
        *args: Further arguments of the function, or of the class.
        workers: Ray's strategy of the pool of workers, of a class.
        **options: Of `map_batches`: what a worker needs.
    """
    from ray.data import Dataset

    given: dict[str, Any] = {"fn_constructor_args" if isinstance(function, type) else "fn_args": args}
    if workers is not None:
        given["compute"] = workers
        _hear_once_of_restarts()
    data: Any = rows if isinstance(rows, Dataset) else tables_on_ray(rows)
    mapped: Dataset = data.map_batches(
        _block_by_block(function), batch_size=None, batch_format="pyarrow", **given, **options
    )
    return mapped


@cache
def _hear_once_of_restarts() -> None:
    """Has Ray's core say unseen what it says once a process: that actors which are restarted are made from objects.

    Ray Data makes all of its actors so, and holds the objects; its log has the line, which helps nobody on a screen.
    """
    import ray

    if os.environ.get("ATLAS_RAY_LOGS") == "1":
        return
    never = ray.remote(max_restarts=-1, num_cpus=0, resources={"no node has this": 1})(_Nothing)
    screen = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            actor: Any = never.remote(ray.put(None))
        finally:
            os.dup2(screen, 2)
            os.close(screen)
    ray.kill(actor)


class _Nothing:
    def __init__(self, _: object) -> None: ...


def stream(found: Dataset, doing: str) -> Iterator[pa.Table]:
    """The blocks of a data set as they are made; none is held here.

    Args:
        found: What `map_on_ray` gives.
        doing: What the stage does, for errors.

    Raises:
        AtlasError: What a worker raised; or Ray's failure, in one line.
    """
    import ray

    tables: Any = found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        yield from tables
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, AtlasError):
            raise type(cause)(cause.what, cause.remedy) from None
        # behind a cause's own words Ray says what it has tried; else it ends with the reason
        said = str(cause or error).strip().splitlines() or [type(cause or error).__name__]
        raise AtlasError(f"{doing} failed: {said[0] if cause else said[-1]}", AGAIN) from error
