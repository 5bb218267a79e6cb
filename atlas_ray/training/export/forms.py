"""What each trainer reads: rows of turns that say whether they are learnt, or rows of tokens with labels or weights.

Flows in: a trajectory whose trainable turns are the chosen steps, or an example of training; flows out: a row. Each row
of turns is read back by the format that reads it and compared, so that what a form has no place for is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from atlas_ray.errors import DataError
from atlas_ray.training.data.batching import token_weights
from atlas_ray.training.data.examples import Example
from atlas_ray.training.settings import Objective
from atlas_ray.trajectories.formats import agenttraj, openai, sharegpt
from atlas_ray.trajectories.formats.registry import FORMATS
from atlas_ray.types import Message, Trajectory, with_call_ids

IGNORED = -100  # the label of a token without loss, as PyTorch's cross-entropy and all that build on it have it
_NEXT_RESULT = "\n</tool_response>\n<tool_response>\n"
Row = dict[str, Any]


@dataclass(frozen=True)
class TextForm:
    """Rows of turns.

    Attributes:
        reads: The data format that reads them.
        write: Makes the row of a trajectory; a `DataError` refuses it.
        write_inline: The same with thoughts in the text, for a model whose chat template knows none; None: as ever.
        last_only: Whether its trainer learns the last turn of a row alone: each chosen step is a row then.
        as_read: The trajectory that a row stands for, where the trainer wants its turns otherwise.
    """

    reads: str
    write: Callable[[Trajectory], Row]
    write_inline: Callable[[Trajectory], Row] | None = None
    last_only: bool = False
    as_read: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory


@dataclass(frozen=True)
class TokenForm:
    """Rows of tokens.

    Attributes:
        write: Makes the row of an example; its tokens are weighed by the objective.
        schema: Of the Parquet file; None: lines of JSON.
    """

    write: Callable[[Example, Objective], Row]
    schema: pa.Schema | None = None


def chosen_only(trajectory: Trajectory, chosen: Collection[int] | None) -> Trajectory:
    """The same with the chosen steps alone to be learnt, cut behind the last of them: nothing later carries loss.

    Args:
        trajectory: Has at least one chosen step.
        chosen: Steps from 1; None chooses all.
    """
    kept = {step.position for step in trajectory.steps if chosen is None or step.index in chosen}
    messages = [replace(m, trainable=i in kept) for i, m in enumerate(trajectory.messages[: max(kept) + 1])]
    # gold marks number all steps
    return replace(trajectory, messages=tuple(messages), gold=trajectory.gold if chosen is None else None)


def step_by_step(trajectory: Trajectory) -> list[Trajectory]:
    """One for each step, cut behind it, with this step alone to be learnt."""
    every = range(1, len(trajectory.steps) + 1)
    return [chosen_only(trajectory, [step]) for step in every]


def checked_row(form: TextForm, trajectory: Trajectory) -> Row:
    """The row of a trajectory.

    Raises:
        DataError: If the form has no place for a part of it, so that it would be read as another one.
    """
    trajectory = form.as_read(trajectory)
    row = form.write(trajectory)
    read = FORMATS.find(form.reads).read(row)
    pairs = zip(_essence(read.messages), _essence(trajectory.messages), strict=False)
    differing = next((n for n, (got, had) in enumerate(pairs, 1) if got != had), None)
    if differing is not None or len(read.messages) != len(trajectory.messages):
        where = "" if differing is None else f"turn {differing}: "
        raise DataError(f"{where}the form has no place for it as it is: it would be read as another turn")
    if _json(read.tools) != _json(trajectory.tools):
        raise DataError("the form has no place for its tools as they are")
    return row


def _essence(messages: Sequence[Message]) -> list[tuple[Any, ...]]:
    """All of messages that shapes tokens: without the spacing of JSON, and of line breaks between thought and text."""
    return [
        (
            m.role,
            m.content.lstrip("\n") if m.thought else m.content,
            m.trainable,
            m.thought.strip(),
            [(call.name, call.id, _json(call.arguments)) for call in m.calls],
            m.call_id,
        )
        for m in with_call_ids(messages)
    ]


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _labels(example: Example, objective: Objective) -> Row:
    labels = np.where(example.loss_mask, example.ids, IGNORED).astype(np.int32)
    return {"id": example.trajectory_id, "input_ids": example.ids, "labels": labels}


def _weights(example: Example, objective: Objective) -> np.ndarray:
    """float32, (length,): how much each token counts as a target."""
    weights = np.zeros(example.length, np.float32)
    weights[example.loss_mask] = token_weights(example, objective)
    return weights


def _weighed(example: Example, objective: Objective) -> Row:
    return {
        "id": example.trajectory_id,
        "start": example.start,
        "input_ids": example.ids,
        "loss_mask": example.loss_mask,
        "weights": _weights(example, objective),
    }


def _datum(example: Example, objective: Objective) -> Row:
    """What Tinker's `Datum` is made of: the target of each token is the next one."""
    return {
        "id": example.trajectory_id,
        "model_input": example.ids[:-1].tolist(),
        "target_tokens": example.ids[1:].tolist(),
        "weights": _weights(example, objective)[1:].tolist(),
    }


def _results_joined(trajectory: Trajectory) -> Trajectory:
    """Results of calls that were made at once as one turn, as LLaMA-Factory joins them itself in OpenAI's form."""
    found: list[Message] = []
    for m in with_call_ids(trajectory.messages):
        if m.role == "tool" and found[-1].role == "tool":
            found[-1] = replace(found[-1], content=_NEXT_RESULT.join((found[-1].content, m.content)))
        else:
            found.append(m)
    return replace(trajectory, messages=tuple(found))


def _llamafactory_row(trajectory: Trajectory) -> Row:
    """ShareGPT's row; tools stand in each, for a column has to be there.

    Raises:
        DataError: If LLaMA-Factory would skip it, or there is no place for a part of it.
    """
    replies = [m.role == "assistant" for m in trajectory.messages if m.role != "system"]
    if any(reply != (number % 2 == 1) for number, reply in enumerate(replies)):
        raise DataError("LLaMA-Factory skips conversations in which replies and others do not take turns")
    return {"tools": ""} | sharegpt.to_row(trajectory)


_IDS = pa.list_(pa.int32())
FORMS: dict[str, TextForm | TokenForm] = {
    "agenttraj": TextForm("agenttraj", agenttraj.to_row),
    "sharegpt": TextForm("sharegpt", sharegpt.to_row),
    "openai": TextForm("openai", openai.to_openai_row),
    "axolotl": TextForm("openai", openai.to_open_row, partial(openai.to_open_row, inline=True)),
    "llamafactory": TextForm("sharegpt", _llamafactory_row, last_only=True, as_read=_results_joined),
    "trl": TokenForm(_labels, pa.schema({"id": "string", "input_ids": _IDS, "labels": _IDS})),
    "tinker": TokenForm(_datum),
    "parquet": TokenForm(
        _weighed,
        pa.schema(
            {
                "id": "string",
                "start": "int32",
                "input_ids": _IDS,
                "loss_mask": pa.list_(pa.bool_()),
                "weights": pa.list_(pa.float32()),
            }
        ),
    ),
}
