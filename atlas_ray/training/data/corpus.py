"""A data set as token ids: rendered once, kept as Parquet, read by every run on the same data with the same tokenizer.

Flows in: trajectories and a chat format; flows out: each one's tokens with the spans of its steps, whole. Which steps
carry loss is for a selection to say, and where to cut for a run's max_length, so that all arms of a recipe read the
same files. They lie in a folder named by a digest of all that shapes them: trajectories, tokenizer, template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, stream
from atlas_ray.config import RayConfig
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import Tracker
from atlas_ray.runs.tables import TRAJECTORIES, TableSpec
from atlas_ray.types import Trajectory

CHUNK = 256  # trajectories in a shard, and in a task
_NAMED = 5  # unknown words that a warning names
_VERSION = 2  # raise it with every change of what models/chat.py writes: older files are not read then


@dataclass(frozen=True, slots=True)
class Tokens:
    """One trajectory as token ids, whole.

    Attributes:
        id: Of the trajectory.
        ids: int32, (tokens,): of its sequences, one behind the other; most chat templates make one.
        spans: int32, (steps, 2): the half-open range of each step's own tokens in `ids`.
        starts: int32, (sequences,): where each begins in `ids`.
    """

    id: str
    ids: NDArray[np.int32]
    spans: NDArray[np.int32]
    starts: NDArray[np.int32]

    @classmethod
    def of(cls, name: str, ids: NDArray[np.int32], spans: NDArray[np.int32], starts: NDArray[np.int32]) -> Tokens:
        """From columns of the table, where spans are flat."""
        return cls(name, ids, spans.reshape(-1, 2), starts)


TOKENS: TableSpec[Tokens] = TableSpec(
    "tokens",
    pa.schema([("id", pa.string()), *((name, pa.list_(pa.int32())) for name in ("ids", "spans", "starts"))]),
    lambda tokens: {"id": tokens.id, "ids": tokens.ids, "spans": tokens.spans.ravel(), "starts": tokens.starts},
    lambda row: Tokens.of(row["id"], *(np.array(row[name], np.int32) for name in ("ids", "spans", "starts"))),
)
Render = Callable[[Sequence[Trajectory]], Iterable[pa.Table]]


class Corpus:
    """The tokens of a data set by trajectory id, in Arrow's memory: arrays are views of it, not copies.

    Attributes:
        tables: Of the schema of `TOKENS`, all of them.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self.tables = [table.combine_chunks() for table in tables if table.num_rows]
        self._columns = [[_lists(table, name) for name in ("ids", "spans", "starts")] for table in self.tables]
        self._places = {
            name: (number, row)
            for number, table in enumerate(self.tables)
            for row, name in enumerate(table["id"].to_pylist())
        }

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], chat: ChatFormat) -> Corpus:
        """Rendered on the spot, and kept nowhere."""
        return cls(render(trajectories, chat))

    def __getitem__(self, trajectory_id: str) -> Tokens:
        number, row = self._places[trajectory_id]
        columns = (values[offsets[row] : offsets[row + 1]] for values, offsets in self._columns[number])
        return Tokens.of(trajectory_id, *columns)


def _lists(table: pa.Table, column: str) -> tuple[Any, Any]:
    lists = table[column].chunk(0)
    return lists.values.to_numpy(), lists.offsets.to_numpy()


def unknown_words(corpus: Corpus, trajectories: Sequence[Trajectory], chat: ChatFormat) -> str:
    """What the tokenizer has no token for, as a warning; empty where it knows every word."""
    if chat.unknown_id is None:
        return ""
    ids = [corpus[t.id].ids for t in trajectories]
    counts = [int((own == chat.unknown_id).sum()) for own in ids]
    if not any(counts):
        return ""
    hit = islice((t for t, count in zip(trajectories, counts, strict=True) if count), CHUNK)
    words = dict.fromkeys(word for t in hit for m in t.messages for word in chat.unknown_words(m.content))
    named = ", ".join([*map(repr, islice(words, _NAMED)), *(["..."] if len(words) > _NAMED else [])])
    return (
        f"{sum(counts) / sum(map(len, ids)):.1%} of all tokens are words that the tokenizer does not know ({named}): "
        f"the model reads {chat.tokenizer.unk_token} in place of each, and cannot write them; "
        "take a model whose tokenizer knows this data"
    )


def tokens_of(trajectory: Trajectory, chat: ChatFormat) -> Tokens:
    """Renders a trajectory.

    Raises:
        UserError: If the chat template cannot be masked.
    """
    rendered = chat.render(trajectory.messages, trajectory.tools)
    starts = np.cumsum([0, *(len(sequence.ids) for sequence in rendered)], dtype=np.int32)
    spans = [
        (start + span[0], start + span[1])
        for step in trajectory.steps
        for start, sequence in zip(starts, rendered, strict=False)
        if (span := sequence.spans[step.position])
    ]
    ids = np.array([token for sequence in rendered for token in sequence.ids], np.int32)
    return Tokens.of(trajectory.id, ids, np.array(spans, np.int32), starts[:-1])


def render(trajectories: Sequence[Trajectory], chat: ChatFormat) -> Iterator[pa.Table]:
    """Renders in this process, into tables of the schema of `TOKENS`.

    Raises:
        UserError: If the chat template cannot be masked.
    """
    for start in range(0, len(trajectories), CHUNK):
        yield TOKENS.to_table(tokens_of(t, chat) for t in trajectories[start : start + CHUNK])


def render_on_ray(
    trajectories: Sequence[Trajectory], chat: ChatFormat, model: str, template: str | None, ray_config: RayConfig
) -> Iterator[pa.Table]:
    """The same in Ray Data's tasks, a chunk of trajectories in each, in any order. A single chunk needs no Ray.

    Args:
        model: Whose tokenizer the tasks load.
        template: In place of the tokenizer's own.

    Raises:
        UserError: If the chat template cannot be masked.
    """
    if len(trajectories) <= CHUNK:
        yield from render(trajectories, chat)
        return
    connect(ray_config)
    chunks = (trajectories[i : i + CHUNK] for i in range(0, len(trajectories), CHUNK))
    rendered = map_on_ray(map(TRAJECTORIES.to_table, chunks), _render_chunk, reachable(model), template)
    yield from stream(rendered, "rendering")


def _render_chunk(table: pa.Table, model: str, template: str | None) -> pa.Table:
    """One task's chunk."""
    return pa.concat_tables(render(TRAJECTORIES.from_table(table), chat_format(model, template)))


@cache
def chat_format(model: str, template: str | None) -> ChatFormat:
    """Loaded once in a process, which runs many tasks."""
    return ChatFormat.load(model, template=template)


def open_corpus(place: str, trajectories: Sequence[Trajectory], chat: ChatFormat, by: Render) -> Corpus:
    """Reads what earlier runs rendered below `place`, and lets `by` render the rest, shard by shard.

    Args:
        by: Renders trajectories into tables of the schema of `TOKENS`, in any order.
    """
    folder = RunFolder(place).child(_digest(trajectories, chat))
    if folder.finished is None:
        done = folder.done(TOKENS)
        missing = [t for t in trajectories if t.id not in done]
        with Tracker("trajectories to tokens", len(trajectories), len(trajectories) - len(missing)) as tracker:
            for table in by(missing):
                folder.write_table(TOKENS, table)
                tracker.advance(table.num_rows)
        folder.finish(trajectories=len(trajectories))
    return Corpus(folder.tables(TOKENS))


def _digest(trajectories: Iterable[Trajectory], chat: ChatFormat) -> str:
    tokenizer = chat.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
    shaped_by = [_VERSION, type(tokenizer).__name__, words, tokenizer.chat_template, tokenizer.special_tokens_map]
    digest = hashlib.sha256(json.dumps(shaped_by, sort_keys=True, default=str).encode())
    for t in sorted(trajectories, key=lambda t: t.id):
        digest.update(json.dumps([t.id, t.tools, [astuple(m) for m in t.messages]]).encode())
    return digest.hexdigest()[:12]
