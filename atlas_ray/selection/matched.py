"""The control of a selector: random steps with as many loss tokens as it chose, trajectory by trajectory.

Flows in: trajectories and a finished selection; flows out: selections. Tokens are counted as training counts them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field

from atlas_ray.config import BackboneConfig, ChatTemplate, EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.protocol import ModelUse
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import record
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.selection.rows import RowSelector, Rule
from atlas_ray.selection.sources import of_trajectory, read_source
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory


class MatchedRandomSelector(RowSelector):
    """Random steps with as many loss tokens as `reference` chose, to within one step of each trajectory."""

    drawn: ClassVar[bool] = True

    name: Literal["matched_random"] = "matched_random"
    reference: str = Field(description="a finished selection: see `sources.py`")
    model: str | None = Field(None, description="that is trained: its tokenizer counts; a recipe says it")
    chat_template: ChatTemplate | None = Field(None, description="of the model, where its tokenizer's is not used")
    max_length: int | None = Field(None, description="of training: steps that end behind it carry no loss")

    def sources(self) -> list[str]:
        return [self.reference]

    def for_seed(self, named: Callable[[str], str]) -> Self:
        return self.model_copy(update={"reference": named(self.reference)})

    def for_arm(self, start: BackboneConfig, engine: EngineConfig, own_engine: EngineConfig) -> Self:
        if self.model is not None:
            return self
        template = self.chat_template or start.chat_template
        return self.model_copy(update={"model": start.path, "chat_template": template})

    def models(self) -> list[ModelUse]:
        return [] if self.model is None else [ModelUse(self.model, tokenizer_only=True)]

    def stage(self, context: StageContext) -> Stage:
        """The rule, applied to each.

        Raises:
            UserError: If the source is no finished selection, or no model is named.
        """
        if self.model is None:
            raise UserError("selector.model is missing: tokens are counted by it", "name the model that is trained")
        found = self.model_copy(update={"model": reachable(self.model)})  # workers may have started elsewhere
        return super(MatchedRandomSelector, found).stage(context)

    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        assert self.model is not None
        chat, held = ChatFormat.load(self.model, template=self.chat_template), read_source(sources[self.reference])
        return lambda t: select_matched(t, self, seed, held, loss_tokens(t, chat, self.max_length))


def loss_tokens(trajectory: Trajectory, chat: ChatFormat, max_length: int | None) -> dict[int, int]:
    """By step, the tokens that carry loss where it is chosen; without those that training loses."""
    sequences = chat.render(trajectory.messages, trajectory.tools)
    ends = {
        step.index: s.spans[step.position] for s in sequences for step in trajectory.steps if s.spans[step.position]
    }
    return {t: s[1] - s[0] for t, s in ends.items() if s is not None and (max_length is None or s[1] <= max_length)}


def select_matched(
    trajectory: Trajectory | Outline,
    config: MatchedRandomSelector,
    seed: int,
    reference: Mapping[str, Selection],
    sizes: Mapping[int, int],
) -> Selection:
    """Takes steps in random order as far as their tokens fit, then the shortest of the others by chance.

    The chance is the share of it that is still open, so that the expected number of tokens is the reference's.

    Args:
        trajectory: What to select in.
        config: The selector's section.
        seed: The run's.
        reference: The finished selection by trajectory id.
        sizes: Tokens by step.
    """
    found = of_trajectory(trajectory, config.reference, reference)
    if isinstance(found, str):
        return record(trajectory, config, error=f"no reference: {found}")
    draw = random.Random(derive_seed(seed, "matched_random", trajectory.id))
    left, chosen, others = sum(sizes.get(t, 0) for t in found.chosen), list[int](), list[int]()
    for t in draw.sample(sorted(sizes), len(sizes)):
        fits = sizes[t] <= left
        (chosen if fits else others).append(t)
        left -= fits * sizes[t]
    shortest = min(others, key=lambda t: sizes[t], default=None)
    if shortest is not None and draw.random() * sizes[shortest] < left:
        chosen.append(shortest)
    return record(trajectory, config, chosen)
