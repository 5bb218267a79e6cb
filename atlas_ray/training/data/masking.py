"""The mask: which tokens of a trajectory carry loss (paper section 3.3).

Flows in: a trajectory and its chosen steps; flows out: token ids and a mask. Rendering knows no selection, and marking
no text, so that a trajectory is rendered once for all selections. The loss falls on the tokens of the chosen
steps' thoughts and actions and on their end of turn; all other tokens, unchosen steps among them, are context only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_ray.errors import DataError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.types import Trajectory


@dataclass(frozen=True, slots=True)
class Tokens:
    """One trajectory as token ids, whole.

    Attributes:
        id: Of the trajectory.
        ids: int32, (tokens,).
        spans: int32, (steps, 2): the half-open range of each step's own tokens in `ids`.
    """

    id: str
    ids: NDArray[np.int32]
    spans: NDArray[np.int32]


def tokens_of(trajectory: Trajectory, chat: ChatFormat) -> Tokens:
    """Renders a trajectory.

    Raises:
        UserError: If the chat template cannot be masked.
    """
    rendered = chat.render(trajectory.messages)
    spans = [rendered.spans[step.position] for step in trajectory.steps]
    return Tokens(trajectory.id, np.array(rendered.ids, np.int32), np.array(spans, np.int32).reshape(-1, 2))


@dataclass(frozen=True, slots=True)
class Example:
    """One trajectory as a model sees it in training, cut behind the last token that carries loss.

    Attributes:
        ids: int32, (length,); empty where nothing carries loss.
        spans: int32, (steps that carry loss, 2), in order: the half-open range of each one's tokens in `ids`.
        steps: |tau|, before any cut.
        steps_chosen: Steps chosen, those lost included.
        steps_lost: Chosen steps that end behind the length limit.
        step_tokens: Tokens of all steps, chosen or not, before any cut.
    """

    trajectory_id: str
    ids: NDArray[np.int32]
    spans: NDArray[np.int32]
    steps: int
    steps_chosen: int
    steps_lost: int
    step_tokens: int

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


def training_example(tokens: Tokens, chosen_steps: Collection[int] | None, max_length: int) -> Example:
    """Marks the tokens of a trajectory's chosen steps.

    What follows the last chosen step is left out: under causal attention it changes nothing. A chosen step that ends
    behind `max_length` tokens is lost as a whole, for half a step teaches no end of turn.

    Args:
        chosen_steps: Steps from 1; None chooses all.

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
    kept = spans[spans[:, 1] <= max_length]
    return Example(
        trajectory_id=tokens.id,
        ids=tokens.ids[: kept[-1, 1] if len(kept) else 0],
        spans=kept,
        steps=steps,
        steps_chosen=len(chosen),
        steps_lost=len(chosen) - len(kept),
        step_tokens=int((tokens.spans[:, 1] - tokens.spans[:, 0]).sum()),
    )


@dataclass(frozen=True, slots=True)
class MaskStatistics:
    """What a set of examples holds; counts are sums over trajectories.

    Attributes:
        trajectories: Those looked at.
        dropped: Those of them where nothing carries loss.
        steps_lost: Chosen steps behind the length limit.
        step_fraction: Steps trained on, of all steps.
        loss_token_fraction: Tokens that carry loss, of the tokens of all steps.
        tokens: Tokens that go through the model in one epoch, padding not counted.
    """

    trajectories: int
    dropped: int
    steps: int
    steps_lost: int
    step_fraction: float
    loss_tokens: int
    loss_token_fraction: float
    tokens: int

    @classmethod
    def of(cls, examples: Collection[Example]) -> MaskStatistics:
        """Sums up."""
        steps = sum(e.steps for e in examples)
        steps_lost = sum(e.steps_lost for e in examples)
        loss_tokens = sum(e.loss_tokens for e in examples)
        return cls(
            trajectories=len(examples),
            dropped=sum(e.loss_tokens == 0 for e in examples),
            steps=steps,
            steps_lost=steps_lost,
            step_fraction=(sum(e.steps_chosen for e in examples) - steps_lost) / max(1, steps),
            loss_tokens=loss_tokens,
            loss_token_fraction=loss_tokens / max(1, sum(e.step_tokens for e in examples)),
            tokens=sum(e.length for e in examples),
        )
