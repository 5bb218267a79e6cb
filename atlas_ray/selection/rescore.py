"""Selectors that score steps by a model, and another ratio from scores that an earlier selection kept.

Flows in: a section that may name a finished run under `scores`; flows out: the same section with that run's own
settings of scoring, and its selections cut anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Self

from pydantic import Field

from atlas_ray.config import BackboneConfig, ChatTemplate, EngineConfig, RayConfig
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import ModelUse
from atlas_ray.selection.budget import BudgetSettings, record, recut
from atlas_ray.selection.protocol import Selector, Stage, StageContext
from atlas_ray.selection.rows import RowStage
from atlas_ray.selection.sources import find_source, read_source
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory, Usage

_CUT = {"ratio", "rounding", "threshold", "scores"}  # what chooses among scores; all other keys made them


class ScoringSettings(BudgetSettings):
    """By which model steps are scored, or whose scores are used."""

    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    chat_template: ChatTemplate | None = Field(None, description="of the model, where its tokenizer's is not used")
    scores: str | None = Field(None, description="run folder of a finished selection whose scores are used")


class ScoringSelector(ScoringSettings, Selector):
    """A selector that scores every step by a model, and keeps the scores."""

    @property
    @abstractmethod
    def eligible_above(self) -> float:
        """A step whose score is this or less is never chosen."""

    def sources(self) -> list[str]:
        return [] if self.scores is None else [self.scores]

    def settled(self, run: str, ray: RayConfig, begun: Mapping[str, Any]) -> Self:
        """With the settings under which `scores` was scored, so that the manifest tells which model they come from.

        Raises:
            UserError: If that is no finished selection by the same selector, or was scored under another value of a
                key that is set here.
        """
        if self.scores is None:
            return self
        remedy = "name a finished selection by the same selector"
        held = find_source(self.scores, run).read_json("manifest.json")["config"].get("selector", {})
        if held.get("name") != self.name:
            raise UserError(f"selector.scores: {self.scores} holds no selection by `{self.name}`", remedy)
        asked = self.model_dump(mode="json", exclude_unset=True)
        for key in sorted(asked.keys() & held.keys() - _CUT):
            if asked[key] != held[key] and not isinstance(held[key], dict):
                raise UserError(
                    f"selector.{key}: {asked[key]!r}, but {self.scores} was scored with {held[key]!r}",
                    f"leave selector.{key} out, or selector.scores to score anew",
                )
        return self.model_validate(held | self.model_dump(mode="json", include=_CUT))

    def for_arm(self, start: BackboneConfig, engine: EngineConfig, own_engine: EngineConfig) -> Self:
        if "model" in self.model_fields_set:
            return self.with_engine(engine)
        template = self.chat_template or start.chat_template
        return self.model_copy(update={"model": start.path, "chat_template": template}).with_engine(own_engine)

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        return ["scores are read again: no model call, no dollars"]

    def stage(self, context: StageContext) -> Stage:
        if self.scores is None:
            return self.scoring(context)
        source = find_source(self.scores, context.run)
        return RowStage(lambda: rescored(self, read_source(source)), outlines=True)

    @abstractmethod
    def scoring(self, context: StageContext) -> Stage:
        """What scores every step."""

    @abstractmethod
    def with_engine(self, engine: EngineConfig) -> Self:
        """On a recipe's engines, as far as the section does not say otherwise."""

    def models(self) -> list[ModelUse]:
        return [ModelUse(self.model, chat_template=self.chat_template)]


def rescored(selector: ScoringSelector, held: Mapping[str, Selection]) -> Callable[[Outline], Selection]:
    """The function that cuts the scores kept of one trajectory; one without any there gets an error."""

    def of(trajectory: Outline) -> Selection:
        found = held.get(trajectory.id)
        if found is None:
            return record(trajectory, selector, error=f"no scores: {selector.scores} holds no such trajectory")
        if found.error is not None:
            return record(trajectory, selector, model=found.model, error=f"no scores: {found.error}")
        if found.n_steps != len(trajectory.steps):
            why = f"{selector.scores} counted {found.n_steps} steps, the data has {len(trajectory.steps)}"
            return record(trajectory, selector, error=f"no scores: {why}")
        k = selector.budget(trajectory)
        return replace(recut(found, selector.ratio, selector.eligible_above, k), usage=Usage())

    return of
