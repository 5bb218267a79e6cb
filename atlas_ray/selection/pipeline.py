"""The selection stage: reads trajectories, runs one selector, writes selections; streamed from end to end.

Flows in: a `SelectConfig`; flows out: a run folder with the table `selections`. Workers read, select and write; this
process holds ids and counts, never trajectories or selections. No selector is known here by name.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, numbers_on_ray, stream, tables_on_ray
from atlas_ray.errors import UserError
from atlas_ray.runs.failures import check_failed, failure_recorded
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import Tracker
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.runs.units import rows_finished
from atlas_ray.selection.protocol import Selector, Stage, StageContext
from atlas_ray.selection.rows import RowStage
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.sources import watch_sources
from atlas_ray.trajectories.index import BUDGET, DataIndex, blocks_on_ray, index_data, outlines_of, parts_read
from atlas_ray.trajectories.rejected import rejected_figures, write_rejected
from atlas_ray.types import Usage

if TYPE_CHECKING:
    from ray.data import Dataset

_OUTLINES = 16384  # of a block
_TOLD = ["id", "error", "usage"]  # of each selection, to this process


def select_steps(config: SelectConfig, *, clean: bool = False) -> RunFolder:
    """Selects critical steps in a data set, or goes on where an earlier run stopped.

    A finished run is left alone, unless it holds failures of calls or rollouts: those are tried again.

    Args:
        config: What to select in, by which selector, and where to write.
        clean: Starts anew; paid replies are kept.

    Raises:
        UserError: If the folder holds a run of another configuration, the data set is unusable, or a selector's
            setting is.
        TooManyFailed: If no selection was made, or too few.
        AtlasError: If a model, an endpoint or Ray fails as a whole.
    """
    begun = time.monotonic()
    folder = RunFolder(config.run)
    config = settled(config, folder, clean)
    selector = config.selector
    folder.begin(config, stage="select", clean=clean, keep=selector.kept_on_clean())
    watch_sources(folder, selector, config.run)
    finished, outdated = folder.finished, selector.outdated(folder)
    if finished is not None and not outdated:
        failed = sum(finished["errors"].values())
        if not failed or not (selector.retries_failures or failed > config.max_failed * finished["trajectories"]):
            return folder

    with failure_recorded(folder):
        _select(config, folder, outdated, begun)
    return folder


def _select(config: SelectConfig, folder: RunFolder, outdated: bool, begun: float) -> None:
    """Selects what is to do, and marks the run finished, unless too much of it failed."""
    selector, index = config.selector, index_data(config.data, config.ray)
    write_rejected(folder, index.rejected)
    if not index.outline.num_rows:
        why = next((f"; the first reason: {row}" for row in index.rejected), "")
        raise UserError(f"{config.data.path} holds no usable trajectory{why}", f"see rejected.jsonl in {config.run}")
    done = pa.array([], pa.string()) if outdated else folder.done_ids(SELECTIONS)
    todo = pc.invert(pc.is_in(index.outline["id"], done))
    total, count, failed, usage = pc.sum(todo).as_py(), 0, 0, Usage()
    with Tracker(f"select ({selector.name})", len(todo), len(todo) - total) as tracker:
        for told in _selected(config, folder, index, todo.to_numpy(), tracker) if total else ():
            rows_finished(folder.stage, folder.uri, "selections", told)
            count, usage = count + told.num_rows, usage + _sum(told["usage"])
            failed += told.num_rows - told["error"].null_count
            note = [selector.note(usage, count, total) if count else None, f"{failed} failed" if failed else None]
            tracker.advance(told.num_rows, ", ".join(filter(None, note)) or None)
    figures = rejected_figures(index.rejected)
    del index, todo, done  # the ids of what was written take their place
    for kept in (SELECTIONS, *selector.kept_on_clean()):
        folder.compact(kept)
    figures = _figures(folder, selector) | figures
    failed = sum(figures["errors"].values())
    check_failed(folder, "selections", failed, figures["trajectories"], figures.get("first_error"), config.max_failed)
    folder.finish(**figures, seconds=round(time.monotonic() - begun, 3))


def settled(config: SelectConfig, folder: RunFolder, clean: bool) -> SelectConfig:
    """The configuration with all that its selector decides before the run begins."""
    begun = {} if clean or not folder.exists else folder.read_json("manifest.json")["config"].get("selector", {})
    return config.model_copy(update={"selector": config.selector.settled(config.run, config.ray, begun)})


def _selected(
    config: SelectConfig, folder: RunFolder, index: DataIndex, todo: np.ndarray, tracker: Tracker
) -> Iterator[pa.Table]:
    """Has the selections of what is to do made and written; gives a few columns of each, as they are written."""
    if (budgets := config.selector.budgets(index.outline)) is not None:
        index = replace(index, outline=index.outline.append_column(BUDGET, budgets))
    outline = index.outline.append_column("todo", pa.array(todo))
    rejected = list(index.rejected)
    context = StageContext(folder, config.data, config.seed, config.environments, config.ray, outline, rejected)
    with config.selector.stage(context) as stage:
        if len(rejected) > len(index.rejected):
            index.rejected[:] = rejected
            write_rejected(folder, rejected)
        # what is not to be written again
        done = outline["id"].filter(pa.array(~todo)).combine_chunks() if stage.whole_blocks else None
        write = _Writer(folder, done)
        if isinstance(stage, RowStage) and index.is_small:
            yield from map(write, _rows_here(stage, index, todo))
            return
        connect(config.ray, config.selector.modules)
        if stage.checked:
            stage.check(_blocks(index, _first_of_each(index.outline["env"], todo, stage.checked), 1))
        tracker.between_units(stage.heartbeat)
        yield from stream(_on_ray(stage, index, todo, write), "selecting")


def _rows_here(stage: RowStage, index: DataIndex, todo: np.ndarray) -> Iterator[pa.Table]:
    """A rule applied in this process: small data is done before Ray has started."""
    if stage.outlines:
        yield from stage.select(outlines_of(index.outline.filter(pa.array(todo))))
        return
    for read in index.reads(todo, stage.rows_per_block):
        for rows in read.trajectories():
            yield from stage.select(rows)


def _on_ray(stage: Stage, index: DataIndex, todo: np.ndarray, write: _Writer) -> Dataset:
    """What is told of each selection: read, selected and written by Ray's workers."""
    import ray

    if isinstance(stage, RowStage) and stage.outlines:
        rows = index.outline if todo.all() else index.outline.filter(pa.array(todo))
        slices = (rows.slice(start, _OUTLINES) for start in range(0, rows.num_rows, _OUTLINES))
        return map_on_ray(slices, lambda table: map(write, stage.select(outlines_of(table))))
    wanted = _whole_blocks(index, todo, stage.rows_per_block) if stage.whole_blocks else todo
    if isinstance(stage, RowStage) and not index.is_small:
        refs = [ray.put(read) for read in index.reads(wanted, stage.rows_per_block)]
        return map_on_ray(numbers_on_ray(len(refs)), _read_and_select, refs, stage, write)
    return map_on_ray(stage.apply(_blocks(index, wanted, stage.rows_per_block)), write)


def _blocks(index: DataIndex, wanted: np.ndarray, rows_per_block: int) -> Dataset:
    """Blocks of trajectories: small data is read here, large data by Ray's tasks."""
    reads = index.reads(wanted, rows_per_block)
    if index.is_small:
        return tables_on_ray(block for read in reads for block in read.blocks())
    return blocks_on_ray(reads)


def _first_of_each(environments: pa.ChunkedArray, todo: np.ndarray, most: int) -> np.ndarray:
    """The first trajectories of each environment in which something is to do: the same ones at every attempt."""
    names, chosen = environments.to_numpy(), np.zeros(len(todo), bool)
    for name in set(names[todo]):
        chosen[np.flatnonzero(names == name)[:most]] = True
    return chosen


def _whole_blocks(index: DataIndex, todo: np.ndarray, size: int) -> np.ndarray:
    """All trajectories of the blocks in which something is to do; blocks begin anew with each part."""
    first = np.searchsorted(index.places, index.bounds)
    begins = np.repeat(first[:-1], np.diff(first))
    block = begins + (np.arange(len(todo)) - begins) // size  # unlike for any two blocks
    return np.isin(block, block[todo])


def _read_and_select(table: pa.Table, refs: list[Any], stage: RowStage, write: _Writer) -> Iterator[pa.Table]:
    """Selections of a part by a rule, without a table of its texts in between."""
    for read in parts_read(table, refs):
        for rows in read.trajectories():
            yield from map(write, stage.select(rows))


class _Writer:
    """Writes blocks of selections where they end; gives what this process is told of them.

    Args:
        folder: The run's.
        done: Ids of selections that are not to be written again, if any may come.
    """

    def __init__(self, folder: RunFolder, done: pa.Array | None) -> None:
        self._folder, self._done = folder, done

    def __call__(self, selections: pa.Table) -> pa.Table:
        if self._done is not None:
            selections = selections.filter(pc.invert(pc.is_in(selections["id"], self._done)))
        if selections.num_rows:
            self._folder.write_table(SELECTIONS, selections)
        return selections.select(_TOLD)


def _sum(usage: pa.ChunkedArray) -> Usage:
    sums = {name: pc.sum(pc.struct_field(usage, name)).as_py() or 0 for name in Usage.__slots__}
    return Usage(**sums)


def _figures(folder: RunFolder, selector: Selector) -> dict[str, Any]:
    """What the run found, counted over all attempts."""
    number = steps = chosen = empty = 0
    errors, first, usage = Counter[str](), None, Usage()
    for batch in folder.latest(SELECTIONS, ["n_steps", "chosen", "error", "usage"]):
        number, usage = number + batch.num_rows, usage + _sum(batch["usage"])
        failed = [error for error in batch["error"].drop_null().to_pylist() if error]
        errors.update(error.split(":")[0] for error in failed)
        first = first or next(iter(failed), None)
        good = batch.filter(batch["error"].is_null())
        counts = pc.list_value_length(good["chosen"])
        steps, chosen = steps + (pc.sum(good["n_steps"]).as_py() or 0), chosen + (pc.sum(counts).as_py() or 0)
        empty += pc.sum(pc.equal(counts, 0)).as_py() or 0  # training leaves these out
    figures = {
        "trajectories": number,
        "steps": steps,
        "chosen": chosen,
        "requested": getattr(selector, "ratio", None),
        "actual": chosen / steps if steps else None,
        "empty": empty,
        "errors": dict(errors),
        **({"first_error": first} if first else {}),
        "usage": asdict(usage),
    }
    return figures | selector.figures(folder.stream(SELECTIONS))
