"""Blocks of trajectories as files of an export, and what is told of each.

Flows in: rows of `TRAJECTORIES` with the steps chosen in each; flows out: a file of `data/`, whole or not at all, and
then a shard of the table `exported`, which says that it is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_ray.errors import DataError, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES, TableSpec
from atlas_ray.training.data.corpus import chat_format, tokens_of
from atlas_ray.training.data.examples import Example, training_examples
from atlas_ray.training.export.forms import FORMS, Row, TextForm, checked_row, chosen_only, step_by_step
from atlas_ray.training.settings import ExportConfig
from atlas_ray.types import Trajectory

DATA = "data"  # the folder of the rows
CHOSEN, BLOCK = "chosen", "block"  # columns beside those of a trajectory: its chosen steps, and the number of its file


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written of one trajectory.

    Attributes:
        rows: Lines, or rows of a table.
        steps: Those with loss, behind the length limit or not.
        lost: Those behind it, of formats that hold tokens.
        tokens: Of all its sequences as training cuts them; None where no model was named.
        loss_tokens: Those of them that carry loss.
        refused: Why there is no row of it.
    """

    id: str
    rows: int = 0
    steps: int = 0
    lost: int = 0
    tokens: int | None = None
    loss_tokens: int | None = None
    refused: str | None = None


EXPORTED: TableSpec[Exported] = TableSpec(
    "exported",
    pa.schema(
        [
            ("id", pa.string()),
            *((name, pa.int32()) for name in ("rows", "steps", "lost")),
            *((name, pa.int64()) for name in ("tokens", "loss_tokens")),
            ("refused", pa.string()),
        ]
    ),
    lambda one: {name: getattr(one, name) for name in Exported.__slots__},
    lambda row: Exported(**row),
)


def write_block(block: pa.Table, config: ExportConfig, folder: RunFolder) -> pa.Table:
    """In a worker, which loads the tokenizer once."""
    return Writer(config, chat_format(config.model, config.chat_template) if config.model else None)(block, folder)


def unpacked(block: pa.Table) -> tuple[list[Trajectory], list[list[int]]]:
    """The trajectories of a block, and the steps chosen in each."""
    return TRAJECTORIES.from_table(block.select(TRAJECTORIES.schema.names)), block[CHOSEN].to_pylist()


class Writer:
    """Makes the rows of trajectories.

    Args:
        config: Of the export.
        chat: Of its model; None: no model was named.
    """

    def __init__(self, config: ExportConfig, chat: ChatFormat | None) -> None:
        form = FORMS[config.format]
        if isinstance(form, TextForm) and form.write_inline and chat and chat.template.inlines_thoughts:
            form = replace(form, write=form.write_inline)
        self._config, self._chat, self._form = config, chat, form
        self._by_step = config.rows == "step" or (isinstance(form, TextForm) and form.last_only)

    def __call__(self, block: pa.Table, folder: RunFolder) -> pa.Table:
        """Writes a block's file, and then what is in it; gives the latter.

        Raises:
            UserError: If a trajectory that is to be one row of turns is several sequences by the chat template.
        """
        made = [self.rows(trajectory, chosen) for trajectory, chosen in zip(*unpacked(block), strict=True)]
        if rows := [row for own, _ in made for row in own]:
            self._write(rows, f"{DATA}/{block[BLOCK][0].as_py():05}", folder)
        told = EXPORTED.to_table(one for _, one in made)
        folder.write_table(EXPORTED, told)
        return told

    def _write(self, rows: list[Row], name: str, folder: RunFolder) -> None:
        schema = None if isinstance(self._form, TextForm) else self._form.schema
        if schema is None:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            folder.write_bytes(f"{name}.jsonl", lines.encode())
            return
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
        folder.write_bytes(f"{name}.parquet", sink.getvalue().to_pybytes())

    def rows(self, trajectory: Trajectory, chosen: list[int]) -> tuple[list[Row], Exported]:
        """The rows of one trajectory, and their counts."""
        if isinstance(self._form, TextForm):
            return self._text_rows(trajectory, chosen, self._form)
        assert self._chat is not None, "the settings ask for a model"
        examples = self._examples(trajectory, chosen)
        rows = [self._form.write(example, self._config.loss) for example in examples if example.loss_tokens]
        return rows, _told(trajectory, rows, len(chosen), examples)

    def _text_rows(self, trajectory: Trajectory, chosen: list[int], form: TextForm) -> tuple[list[Row], Exported]:
        whole = chosen_only(trajectory, chosen)
        written = step_by_step(whole) if self._by_step else [whole]
        try:
            rows = [checked_row(form, one) for one in written]
        except DataError as error:
            return [], Exported(trajectory.id, refused=error.what)
        if self._chat is None:
            return rows, _told(trajectory, rows, len(chosen), None)
        examples = [self._examples(one, None) for one in written]
        if any(len(own) > 1 for own in examples):
            raise UserError(
                f"the chat template of {self._config.model} writes earlier turns anew, so that {trajectory.id} is "
                f"several sequences; a row of turns is rendered as one, where steps stand behind other prompts than "
                f"the model is given for them",
                "set rows=step: each chosen step becomes a row that ends with it; or export tokens: "
                "--format trl, tinker or parquet",
            )
        return rows, _told(trajectory, rows, len(chosen), [example for own in examples for example in own])

    def _examples(self, trajectory: Trajectory, chosen: list[int] | None) -> list[Example]:
        assert self._chat is not None
        return training_examples(tokens_of(trajectory, self._chat), chosen, self._config.max_length)


def _told(trajectory: Trajectory, rows: list[Row], steps: int, examples: list[Example] | None) -> Exported:
    if examples is None:
        return Exported(trajectory.id, len(rows), steps)
    return Exported(
        trajectory.id,
        len(rows),
        steps,
        sum(example.steps_lost for example in examples),
        sum(example.length for example in examples),
        sum(example.loss_tokens for example in examples),
    )
