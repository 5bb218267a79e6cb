"""The value selector: what its settings mean for a plan and a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

from atlas_ray.config import EngineConfig
from atlas_ray.selection.protocol import Forecast, Stage, StageContext
from atlas_ray.selection.rescore import ScoringSelector
from atlas_ray.selection.value.settings import ValueSettings
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Selection, Trajectory, Usage

_SAVED = 5  # times fewer inferences of the economical mode, at least (`make bench-values`)


class ValueSelector(ValueSettings, ScoringSelector):
    """Steps after which Monte-Carlo rollouts do better by more than a threshold (section 4.5.4, App. B.3)."""

    retries_failures: ClassVar[bool] = True

    @property
    def plays(self) -> bool:
        return self.scores is None

    def sources(self) -> list[str]:
        return [*super().sources(), *([self.propose] if self.propose and self.plays else [])]

    def for_seed(self, named: Callable[[str], str]) -> Self:
        return self.model_copy(update={"propose": named(self.propose)}) if self.propose else self

    def scoring(self, context: StageContext) -> Stage:
        from atlas_ray.selection.value.stage import ValueStage

        return ValueStage(self, context)

    def with_engine(self, engine: EngineConfig) -> Self:
        own = {key: getattr(self.engine, key) for key in self.engine.model_fields_set}
        return self.model_copy(update={"engine": engine.model_copy(update=own)})

    def engines(self) -> list[EngineConfig]:
        return [self.engine] if self.plays else []

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast:
        starts = sum(s.trajectories * s.steps for s in shapes.values())
        inferences = self.rollouts * sum(s.trajectories * s.steps * (s.steps + 1) / 2 for s in shapes.values())
        words = (
            f"{self.rollouts * starts:,.0f} rollouts = {self.rollouts} x {starts:,.0f} starts, about {inferences:,.0f} "
            "inferences = half a trajectory's steps each"
        )
        half = [(self.rollouts * s.trajectories * s.steps / 2, s) for s in shapes.values()]
        read, written = sum(n * s.read for n, s in half), sum(n * s.written for n, s in half)
        if self.propose:
            words += f"; at most, for they are played around the steps of `{self.propose}` alone"
        if self.mode == "economical":
            read, written = read / _SAVED, written / _SAVED
            words += f"; the economical mode makes about 1/{_SAVED} of them"
        return Forecast(f"{words}; {self.engine.replicas} engine replica(s)", read, written)

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        if self.scores is not None:
            return super().estimate(trajectories)
        steps = sum(len(t.steps) for t in trajectories)
        whole = f"{steps * self.rollouts} rollouts: {self.rollouts} from each of {steps} starts"
        if self.propose:
            return [f"fewer than {whole}: around the steps of `{self.propose}` alone"]
        return [whole if self.mode == "exhaustive" else f"fewer than the exhaustive mode's {whole}"]

    def note(self, usage: Usage, done: int, total: int) -> str | None:
        return f"prefix cache {usage.hit_rate:.0%}"

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        from atlas_ray.selection.value.estimators import value_figures

        return value_figures(selections, self)
