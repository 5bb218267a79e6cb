"""All examples of a run: tokens and selections brought together.

Flows in: trajectories, their tokens and a selection; flows out: examples, and counts of what is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.source import local_model, trusted
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.text import printable
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.data.masking import Example, MaskStatistics, training_example
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.view import render_mask
from atlas_ray.types import Selection, Trajectory


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run trains on.

    Attributes:
        examples: Those with at least one token that carries loss.
        statistics: Over all trajectories that have a selection.
        unselected: Trajectories without a selection, or whose selection failed.
    """

    examples: list[Example]
    statistics: MaskStatistics
    unselected: int


def prepare(
    config: TrainConfig, corpus: Corpus, trajectories: Sequence[Trajectory], selections: Sequence[Selection] | None
) -> Prepared:
    """Masks trajectories.

    Args:
        corpus: Holds the tokens of all of them, and maybe of more.

    Raises:
        UserError: If selection and data do not belong together, nothing is left to train on, or a trajectory is longer
            than the model's context.
    """
    chosen: Mapping[str, Selection] | None = None
    if selections is not None:
        chosen = {s.trajectory_id: s for s in selections if s.error is None}
    found: list[Example] = []
    for trajectory in trajectories:
        if chosen is None:
            found.append(training_example(corpus[trajectory.id], None, config.max_length))
        elif (selection := chosen.get(trajectory.id)) is not None:
            if selection.n_steps != len(trajectory.steps):
                raise UserError(
                    f"{trajectory.id} has {len(trajectory.steps)} steps, {selection.n_steps} where it was selected",
                    "select and train on the same data",
                )
            found.append(training_example(corpus[trajectory.id], selection.chosen, config.max_length))
    examples = [example for example in found if example.loss_tokens]
    if not examples:
        raise UserError(
            f"nothing to train on: of {len(trajectories)} trajectories {len(found)} have a selection, and none of "
            f"these has a chosen step within {config.max_length} tokens",
            "select on the same data, or raise max_length",
        )
    longest = max(examples, key=lambda example: example.length)
    context = _context(config.model)
    if context is not None and longest.length > context:
        raise UserError(
            f"{longest.trajectory_id} has {longest.length} tokens, the model's context {context}",
            f"set max_length to at most {context}",
        )
    return Prepared(examples, MaskStatistics.of(found), len(trajectories) - len(found))


def _context(model: str) -> int | None:
    from transformers import AutoConfig

    known = AutoConfig.from_pretrained(local_model(model, whole=False), trust_remote_code=trusted())
    return getattr(known, "max_position_embeddings", None)


def show(prepared: Prepared, chat: ChatFormat) -> None:
    """Prints the first example with its mask, and what carries loss or is left out."""
    statistics = prepared.statistics
    first = printable(prepared.examples[0].trajectory_id)
    console.print(f"first trajectory ({first}), loss on the coloured tokens:")
    console.print(render_mask(prepared.examples[0], chat))
    console.print(
        f"{len(prepared.examples)} trajectories, {statistics.step_fraction:.1%} of steps and "
        f"{statistics.loss_token_fraction:.1%} of step tokens carry loss"
    )
    for count, why in (
        (prepared.unselected, "left out: no selection"),
        (statistics.dropped, "left out: no chosen step within max_length"),
        (statistics.steps_lost, "chosen steps lost: behind max_length"),
    ):
        if count:
            console.print(f"{count} {why}", style="yellow")


def read_selection(uri: str) -> list[Selection]:
    """The selections of a finished run of `atlas select`.

    Raises:
        UserError: If there is none.
    """
    folder = RunFolder(uri)
    if not folder.exists:
        raise UserError(f"{uri} holds no selection", "run `atlas select` first, or correct `selection`")
    if folder.finished is None:
        raise UserError(f"the selection in {uri} is not finished", "finish it: run its `atlas select` again")
    return folder.read(SELECTIONS)
