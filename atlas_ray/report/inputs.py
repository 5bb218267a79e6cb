"""What a report is made of: plain records of every stage. Flows in: what the run folders hold; flows out: the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.types import Episode, Selection, Trajectory


@dataclass(frozen=True, slots=True)
class Arm:
    """One model under evaluation: how it was trained, and the episodes it played.

    Attributes:
        selector, ratio: Whose steps it was trained on, and what that asked for; None for an untrained model.
        step_fraction: Steps with loss over all steps of the training data; None without training, as the next two.
        loss_token_fraction: Tokens with loss over all trainable tokens.
        train_steps: Optimizer steps.
        losses: Training loss of every optimizer step.
        validation: Step and validation loss, where tasks were held back.
        start: Name of the model that it was trained from, or its own where it was not trained.
        selection: Name of the selection whose steps it was trained on; the arm's own where None.
        reference: Name of the selection that its steps are the control or the rest of, if of any.
        words: What it is, for who has not seen the recipe.
        match_loss_tokens: Whether passes were repeated until as many tokens carried loss as all steps have.
        runs: Seeds that it was trained and evaluated under, none where it could not be loaded; the losses are the first
            one's.
        context: Tokens that a conversation could have; None where that is not known, as behind an endpoint.
        weights: What the weights are that it starts from, where they are not those of the model's name.
    """

    name: str
    model: str
    selector: str | None
    ratio: float | None
    step_fraction: float | None
    loss_token_fraction: float | None
    train_steps: int | None
    episodes: Sequence[Episode]
    losses: Sequence[float] = ()
    validation: Sequence[tuple[int, float]] = ()
    start: str = "base"
    selection: str | None = None
    reference: str | None = None
    words: str = ""
    match_loss_tokens: bool = False
    runs: int = 1
    context: int | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report tells about one run of a recipe.

    Attributes:
        seconds: Wall time by stage.
        arms: In the order of the tables.
        trajectories: The expert's, which were trained on.
        selections: By selector's name in the run.
        specs: Of the environments evaluated, in the order of the tables.
        n_expected: Episodes that each arm was asked to play, by environment.
        preflight: What became of the preflight of the last run.
        openings: By environment where the opening turns come from, and their texts, as the manifest has them.
        critical: Name of the arm trained on critical steps, whose benefit is in question.
        other_tasks: Beside the paper's tables, environments whose tasks are not the paper's, and whose they are.
        max_excluded: Share of infrastructure failures that flags a cell.
        failures: Why models could not be loaded, by the arm with its seed, or `verify`.
        made_base: The base model was trained in this run, once.
    """

    recipe: str
    seeds: Sequence[int]
    git_commit: str | None
    versions: Mapping[str, str]
    seconds: Mapping[str, float]
    arms: Sequence[Arm]
    trajectories: Sequence[Trajectory]
    selections: Mapping[str, Sequence[Selection]]
    specs: Mapping[str, EnvironmentSpec]
    n_expected: Mapping[str, int]
    temperature: float = 0.0
    preflight: str | None = None
    openings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    critical: str = "gold"
    max_excluded: float = 0.02
    failures: Mapping[str, str] = field(default_factory=dict)
    made_base: bool = False
    other_tasks: Mapping[str, str] = field(default_factory=dict)
