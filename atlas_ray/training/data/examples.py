"""What a model is trained on: tokens and selections brought together, and which tokens carry loss (section 3.3).

Flows in: trajectories, their tokens and a selection; flows out: examples, and counts of what is left out. The loss
falls on the tokens of the chosen steps' thoughts and actions and on their end of turn; all other tokens, unchosen steps
among them, are context only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from atlas_ray.errors import DataError, UserError
from atlas_ray.models.source import longest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.training.data.corpus import Corpus, Tokens
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Selection, Trajectory

_NO_IDS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence of a trajectory as a model sees it in training, cut behind the last token that carries loss.

    Where a trajectory has several, the first one counts its steps, and the others none.

    Attributes:
        ids: int32, (length,); empty where nothing carries loss.
        spans: int32, (steps that carry loss, 2), in order: the half-open range of each one's tokens in `ids`.
        steps: |tau|, before any cut.
        steps_chosen: Steps chosen, those lost included.
        steps_lost: Chosen steps that end behind the length limit.
        step_tokens: Tokens of all steps, chosen or not, before any cut.
        start: Where it begins in the trajectory's tokens.
    """

    trajectory_id: str
    ids: NDArray[np.int32]
    spans: NDArray[np.int32]
    steps: int
    steps_chosen: int
    steps_lost: int
    step_tokens: int
    start: int = 0

    @property
    def length(self) -> int:
        """Tokens that go through the model."""
        return len(self.ids)

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """bool, (length,); True where the token itself is a target, predicted from all before it."""
        mask = np.zeros(self.length, dtype=bool)
        for start, end in self.spans:
            mask[start:end] = True
        return mask


def training_examples(tokens: Tokens, chosen_steps: Collection[int] | None, max_length: int) -> list[Example]:
    """Marks the tokens of a trajectory's chosen steps, in each of its sequences that holds such; at least one.

    What follows the last chosen step is left out: under causal attention it changes nothing. A chosen step that ends
    behind `max_length` tokens is lost as a whole, for half a step teaches no end of turn.

    Args:
        tokens: Of the trajectory.
        chosen_steps: Steps from 1; None chooses all.
        max_length: Of a sequence.

    Raises:
        DataError: If a chosen step does not exist.
    """
    steps = len(tokens.spans)
    chosen = set(range(1, steps + 1) if chosen_steps is None else chosen_steps)
    if unknown := sorted(chosen - set(range(1, steps + 1))):
        raise DataError(
            f"trajectory {tokens.id} has {steps} steps, but steps {unknown} are chosen",
            "make the selection from the same data",
        )
    spans = tokens.spans[[index - 1 for index in sorted(chosen)]]
    begins = tokens.starts[np.searchsorted(tokens.starts, spans[:, 0], side="right") - 1]
    fits = spans[:, 1] - begins <= max_length
    found = [
        Example(tokens.id, tokens.ids[start : own[-1, 1]], own - start, 0, 0, 0, 0, int(start))
        for start in tokens.starts
        if len(own := spans[fits & (begins == start)])
    ]
    first = found[0] if found else Example(tokens.id, _NO_IDS, spans[:0], 0, 0, 0, 0)
    counted = replace(
        first,
        steps=steps,
        steps_chosen=len(chosen),
        steps_lost=len(chosen) - int(fits.sum()),
        step_tokens=int((tokens.spans[:, 1] - tokens.spans[:, 0]).sum()),
    )
    return [counted, *found[1:]]


def without_ids(examples: Iterable[Example]) -> list[Example]:
    """Examples to be sent where the corpus is at hand."""
    return [replace(example, ids=_NO_IDS) for example in examples]


def with_ids(examples: Iterable[Example], corpus: Corpus) -> list[Example]:
    """Examples with the token ids that `without_ids` took from them: views of the corpus."""
    return [replace(e, ids=corpus[e.trajectory_id].ids[e.start :][: e.spans[-1, 1]]) for e in examples]


@dataclass(frozen=True, slots=True)
class MaskStatistics:
    """What a set of examples holds; counts are sums over trajectories.

    Attributes:
        dropped: Trajectories where nothing carries loss.
        steps_lost: Chosen steps behind the length limit.
        step_fraction: Steps trained on, of all steps.
        loss_token_fraction: Tokens that carry loss, of the tokens of all steps.
        tokens: Tokens that go through the model in one epoch, padding not counted.
    """

    dropped: int
    steps_lost: int
    step_fraction: float
    loss_tokens: int
    loss_token_fraction: float
    tokens: int

    @classmethod
    def of(cls, examples: Collection[Example]) -> MaskStatistics:
        """Sums up."""
        steps_lost, loss_tokens = sum(e.steps_lost for e in examples), sum(e.loss_tokens for e in examples)
        return cls(
            dropped=sum(e.loss_tokens == 0 for e in examples),
            steps_lost=steps_lost,
            step_fraction=(sum(e.steps_chosen for e in examples) - steps_lost) / max(1, sum(e.steps for e in examples)),
            loss_tokens=loss_tokens,
            loss_token_fraction=loss_tokens / max(1, sum(e.step_tokens for e in examples)),
            tokens=sum(e.length for e in examples),
        )


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """What a run trains on.

    Attributes:
        examples: Those with at least one token that carries loss.
        statistics: Over all trajectories that have a selection.
        unselected: Trajectories without a selection, or whose selection failed.
    """

    examples: list[Example]
    statistics: MaskStatistics
    unselected: int


def trajectories_of(examples: Iterable[Example]) -> int:
    """How many trajectories examples are sequences of."""
    return len({example.trajectory_id for example in examples})


def build_examples(
    config: TrainConfig, corpus: Corpus, trajectories: Sequence[Trajectory], selections: Sequence[Selection] | None
) -> ExampleSet:
    """Masks trajectories.

    Args:
        corpus: Holds the tokens of all of them, and maybe of more.
        selections: None chooses all steps.

    Raises:
        UserError: If selection and data do not belong together, nothing is left to train on, or a trajectory is longer
            than the model's context.
    """
    selected = {s.trajectory_id: s for s in selections or () if s.error is None}
    found, selected_here = list[Example](), 0
    for t in trajectories if selections is None else [t for t in trajectories if t.id in selected]:
        selection = selected.get(t.id)
        if selection is not None and selection.n_steps != len(t.steps):
            what = f"{t.id} has {len(t.steps)} steps, {selection.n_steps} where it was selected"
            raise UserError(what, "select and train on the same data")
        selected_here += 1
        found += training_examples(corpus[t.id], selection.chosen if selection else None, config.max_length)
    examples = [example for example in found if example.loss_tokens]
    if not examples:
        none = "" if not found else f", and none of these has a chosen step within {config.max_length} tokens"
        why = next((f"; the first selection failed: {s.error}" for s in selections or () if s.error), "")
        raise UserError(
            f"nothing to train on: of {len(trajectories)} trajectories {selected_here} have a selection{none}{why}",
            "mend that and select again" if why else "select on the same data, or raise max_length",
        )
    if config.loss == "trajectory" and trajectories_of(examples) < len(examples):
        what = "the chat template writes earlier turns anew, so that a trajectory is several sequences"
        raise UserError(f"{what}, and loss: trajectory weighs it as one", "set loss: step, or token")
    long = max(examples, key=lambda example: example.length)
    context = longest(config.model)
    if context is not None and long.length > context:
        raise UserError(
            f"{long.trajectory_id} has {long.length} tokens, the model's context {context}",
            f"set max_length to at most {context}",
        )
    return ExampleSet(examples, MaskStatistics.of(found), len(trajectories) - selected_here)


def hold_back(
    trajectories: Sequence[Trajectory], fraction: float, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Splits trajectories into those to train on and those held back for validation: a fraction of the tasks, whole.

    At least one is held back where it is above 0. The draw knows only the run's seed and the tasks, so that all arms of
    a recipe hold back the same ones.

    Raises:
        UserError: If nothing would be left to train on.
    """
    tasks = {(t.env, t.item_id) for t in trajectories}
    count = max(1, round(fraction * len(tasks))) if fraction else 0
    if count >= len(tasks) > 0:
        what = f"validation_fraction {fraction:g} holds back all {len(tasks)} tasks"
        raise UserError(what, "lower it, or set it to 0")
    held = set(sorted(tasks, key=lambda task: (derive_seed(seed, "validation", *task), task))[:count])
    return (
        [t for t in trajectories if (t.env, t.item_id) not in held],
        [t for t in trajectories if (t.env, t.item_id) in held],
    )


def read_selection(uri: str) -> list[Selection]:
    """The selections of a finished run of `atlas select`; raises what `finished_selection` does."""
    return finished_selection(uri).read(SELECTIONS)


def finished_selection(uri: str) -> RunFolder:
    """The run folder of a finished `atlas select`.

    Raises:
        UserError: If there is none.
    """
    folder = RunFolder(uri)
    if not folder.exists:
        raise UserError(f"{uri} holds no selection", "run `atlas select` first, or correct `selection`")
    if folder.finished is None:
        why = failure_of(folder)
        what = f"the selection in {uri} " + (f"has failed: {why}" if why else "is not finished")
        raise UserError(what, "run its `atlas select` again" if why is None else "mend that and select again")
    return folder
