"""The export stage: data with loss on the chosen steps alone, written as another trainer reads it.

Flows in: an `ExportConfig`; flows out: a folder with `data/`, what the trainer is to be told beside it, and
`manifest.json`. Ray's workers read, render and write, a file for each block of trajectories; this process holds ids and
counts. A run that was stopped goes on with the blocks that are missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, stream, tables_on_ray
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.failures import failure_recorded
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import Tracker
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.training.data.examples import finished_selection
from atlas_ray.training.export.trainers import files_for
from atlas_ray.training.export.writer import BLOCK, CHOSEN, EXPORTED, Writer, unpacked, write_block
from atlas_ray.training.settings import ExportConfig
from atlas_ray.trajectories.index import DataIndex, blocks_on_ray, index_data
from atlas_ray.trajectories.rejected import rejected_figures, write_rejected

_VERSION = 1  # of what a row of a format looks like
_BLOCK = 256  # trajectories of a file
_SAMPLE = 64  # trajectories rendered for a plan


def export(config: ExportConfig, *, clean: bool = False) -> RunFolder:
    """Writes data for a trainer, or goes on where an earlier run stopped. A finished export is left alone.

    Args:
        clean: Starts anew where the folder holds an earlier export.

    Raises:
        UserError: If the folder holds something else, nothing is chosen in the data, the form has no place for any of
            it, or the chat template makes several sequences of a trajectory that is to be one row of turns.
    """
    begun, folder = time.monotonic(), RunFolder(config.out)
    if not folder.exists and (held := sorted(folder.names())):
        what = f"{config.out} holds files that no export wrote: {', '.join(held[:3])}"
        raise UserError(what, "name another folder with --out")
    folder.begin(config, stage="export", clean=clean)
    if folder.finished is None:
        with failure_recorded(folder):
            _export(config, folder, begun)
    return folder


def settings_of_run(uri: str) -> dict[str, Any]:
    """What a run of `atlas select` or `atlas train` was made of, as settings of an export.

    Raises:
        UserError: If none lies there.
    """
    folder = RunFolder(uri)
    held: dict[str, Any] = {"stage": "nothing"}
    if folder.exists:
        held = folder.read_json("manifest.json")
    if held["stage"] == "select":
        return {"data": held["config"]["data"], "selection": uri}
    if held["stage"] == "train":
        names = ("data", "selection", "model", "chat_template", "loss", "max_length")
        return {name: held["config"][name] for name in names}
    raise UserError(
        f"{uri} holds no selection or training, but {held['stage']}", "name a run folder of `atlas select` or `train`"
    )


def plan_lines(config: ExportConfig) -> list[str]:
    """What an export will write; a sample of it is rendered where a model is named.

    Raises:
        UserError: If data, selection or model cannot be read, or nothing is chosen.
    """
    index = index_data(config.data, config.ray)
    chosen = with_chosen(index, config.selection)
    wanted = _wanted(chosen)
    count = int(wanted.sum())
    few = np.zeros(len(wanted), bool)
    few[np.flatnonzero(wanted)[:: max(1, count // _SAMPLE)]] = True
    writer = Writer(config, ChatFormat.load(config.model, template=config.chat_template) if config.model else None)
    told = [
        writer.rows(trajectory, steps)[1]
        for read in chosen.reads(few, _BLOCK)
        for block in read.blocks()
        for trajectory, steps in zip(*unpacked(block), strict=True)
    ]
    scale, about = count / len(told), "" if len(told) == count else "about "
    rows = scale * sum(t.rows for t in told)
    lines = [f"{count} of {len(wanted)} trajectories have a chosen step; {about}{rows:,.0f} rows"]
    if config.model:
        tokens, loss_tokens = (scale * sum(getattr(t, name) or 0 for t in told) for name in ("tokens", "loss_tokens"))
        lines.append(f"{about}{tokens:,.0f} tokens, {loss_tokens:,.0f} of them with loss")
    if why := next((f"{t.id}: {t.refused}" for t in told if t.refused), ""):
        lines.append(f"{about}{scale * sum(t.refused is not None for t in told):,.0f} are refused; the first: {why}")
    return lines


def with_chosen(index: DataIndex, selection: str | None) -> DataIndex:
    """The index with a column of the steps chosen in each trajectory; null where there is no selection of it.

    Args:
        selection: Run folder; None chooses all steps.

    Raises:
        UserError: If it is not finished, or made from other data.
    """
    outline = index.outline
    if selection is None:
        every = pa.array([list(range(1, n + 1)) for n in outline["n_steps"].to_pylist()], pa.list_(pa.int32()))
        return replace(index, outline=outline.append_column(CHOSEN, every))
    columns = ["id", "n_steps", "chosen", "error"]
    made = pa.concat_tables(finished_selection(selection).latest(SELECTIONS, columns))
    made = made.filter(made["error"].is_null()).combine_chunks()
    at = pc.index_in(outline["id"], made["id"].combine_chunks())
    differing = pc.fill_null(pc.not_equal(made["n_steps"].take(at), outline["n_steps"]), False)
    if pc.any(differing).as_py():
        first = outline.filter(differing).slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{first['id']} has {first['n_steps']} steps, and another number where it was selected",
            "export the data that the selection was made from",
        )
    return replace(index, outline=outline.append_column(CHOSEN, made["chosen"].take(at)))


def _wanted(index: DataIndex) -> np.ndarray:
    """bool, (trajectories,): those with a chosen step.

    Raises:
        UserError: If there is none.
    """
    counts = pc.fill_null(pc.list_value_length(index.outline[CHOSEN]), 0)
    wanted: np.ndarray = pc.greater(counts, 0).to_numpy()
    if not wanted.any():
        what = f"nothing to export: of {len(wanted)} trajectories in {index.config.path} none has a chosen step"
        raise UserError(what, "name the selection that was made from this data")
    return wanted


def _in_blocks(index: DataIndex, wanted: np.ndarray) -> DataIndex:
    """The index with a column of the block, and so the file, of each trajectory that is wanted."""
    first, blocks, count = np.searchsorted(index.places, index.bounds), np.zeros(len(wanted), np.int32), 0
    for start, end in pairwise(first):
        mine = start + np.flatnonzero(wanted[start:end])
        blocks[mine] = count + np.arange(len(mine)) // _BLOCK
        count += -(-len(mine) // _BLOCK)
    return replace(index, outline=index.outline.append_column(BLOCK, pa.array(blocks)))


def _export(config: ExportConfig, folder: RunFolder, begun: float) -> None:
    """Writes what is missing, and what says that all of it is there."""
    index = with_chosen(index_data(config.data, config.ray), config.selection)
    write_rejected(folder, index.rejected)
    wanted = _wanted(index)
    index = _in_blocks(index, wanted)
    done = pc.is_in(index.outline["id"], folder.done_ids(EXPORTED)).to_numpy()
    todo = wanted & ~done
    chat = ChatFormat.load(config.model, template=config.chat_template) if config.model else None
    with Tracker(f"export ({config.format})", int(wanted.sum()), int((wanted & done).sum())) as tracker:
        for told in _written(config, folder, index, todo, chat) if todo.any() else ():
            tracker.advance(told.num_rows)
    folder.compact(EXPORTED)
    counts = {
        **_counts(folder),
        "without_selection": index.outline[CHOSEN].null_count,
        "without_chosen_steps": int((~wanted).sum()) - index.outline[CHOSEN].null_count,
        **rejected_figures(index.rejected),
    }
    if not counts["rows"]:
        why = counts.get("first_refused", "no chosen step ends within max_length")
        raise UserError(f"nothing was written: {why}", "choose another format, or raise max_length")
    for name, text in files_for(config, chat).items():
        folder.write_bytes(name, text.encode())
    template = None if chat is None else hashlib.sha256(str(chat.tokenizer.chat_template).encode()).hexdigest()
    made_of: dict[str, Any] = {"source": {"data": config.data.path, "selection": config.selection}}
    made_of |= {"format": config.format, "format_version": _VERSION, "chat_template_sha256": template}
    folder.write_json("manifest.json", folder.read_json("manifest.json") | made_of | {"counts": counts})
    folder.finish(**counts, seconds=round(time.monotonic() - begun, 3))


def _counts(folder: RunFolder) -> dict[str, Any]:
    """Sums of what was written, over all attempts."""
    batches = list(folder.latest(EXPORTED))
    table = pa.concat_tables(batches) if batches else EXPORTED.to_table([])
    refused = table.filter(table["refused"].is_valid())
    found = {"trajectories": table.num_rows - refused.num_rows}
    for name in ("rows", "steps", "lost", "tokens", "loss_tokens"):
        found[name] = pc.sum(table[name]).as_py()
    if refused.num_rows:
        first = refused.slice(0, 1).to_pylist()[0]
        return found | {"refused": refused.num_rows, "first_refused": f"{first['id']}: {first['refused']}"}
    return found


def _written(
    config: ExportConfig, folder: RunFolder, index: DataIndex, todo: np.ndarray, chat: ChatFormat | None
) -> Iterator[pa.Table]:
    """What was written of each trajectory, block by block; what takes less time than Ray's start is done here."""
    reads = index.reads(todo, _BLOCK)
    blocks = (block for read in reads for block in read.blocks())
    if index.is_small and (chat is None or int(todo.sum()) <= _BLOCK):
        yield from (Writer(config, chat)(block, folder) for block in blocks)
        return
    connect(config.ray)
    config = config.model_copy(update={"model": config.model and reachable(config.model)})
    rows = tables_on_ray(blocks) if index.is_small else blocks_on_ray(reads)
    yield from stream(map_on_ray(rows, write_block, config, folder), "exporting")
