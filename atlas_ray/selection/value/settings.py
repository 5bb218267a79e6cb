"""Settings of the value selector, and what they mean for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, EngineConfig, FrozenConfig, LimitsConfig
from atlas_ray.selection.protocol import Forecast
from atlas_ray.selection.rescore import ScoringSelector
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Selection, Trajectory, Usage

_DIGITS = 9  # to which scores are rounded, and the threshold with them
_SAVED = 5  # times fewer inferences of the economical mode, at least (`make bench-values`)


class Economy(FrozenConfig):
    """Devices of the economical mode, each by itself; see `selection/economy.py`.

    Attributes:
        stop: A start gets no further sample once its step is settled.
        share: A rollout that rejoins the expert's path ends there; the later starts tell the rest.
        skip: Starts go from the end, and end where the value is too low for an earlier step to have raised it.
        rejoin: What must agree with the expert's next turn, beside the answer to it: the action, or the whole text.
        probes: First turns drawn at a start before anything is played out.
        played: Rollouts played out at a start, at most.
        sureness: Standard deviations between a difference and the threshold that settle a step.
    """

    stop: bool = True
    share: bool = True
    skip: bool = True
    rejoin: Literal["action", "text"] = "action"
    probes: int = Field(6, ge=1)
    played: int = Field(1, ge=1)
    sureness: float = Field(0.3, gt=0)


class ValueSelector(ScoringSelector):
    """Steps after which Monte-Carlo rollouts do better by more than a threshold (section 4.5.4, App. B.3)."""

    retries_failures: ClassVar[bool] = True

    name: Literal["value"] = "value"
    rollouts: int = Field(5, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    threshold: float = 0.1
    estimator: Literal["mean_reward", "discounted", "eq9"] = "mean_reward"
    gamma: float = Field(0.99, gt=0, le=1)
    ratio: float | None = Field(None, gt=0, le=1, description="caps the steps only where given")
    mode: Literal["exhaustive", "economical"] = "exhaustive"
    economy: Economy = Field(Economy(), description="read by the economical mode only")
    engine: EngineConfig = EngineConfig()
    limits: Annotated[LimitsConfig, PLACEMENT] = LimitsConfig()

    @model_validator(mode="after")
    def _has_an_estimator(self) -> ValueSelector:
        if self.mode == "economical" and self.estimator == "eq9":
            raise ValueError("`eq9` sums over the values of all starts: it needs mode `exhaustive`")
        return self

    @property
    def eligible_above(self) -> float:
        """The threshold."""
        return round(self.threshold, _DIGITS)

    @property
    def plays(self) -> bool:
        """Unless scores are read again."""
        return self.scores is None

    def with_engine(self, engine: EngineConfig) -> Self:
        """On these, with what the section says of its own."""
        own = {key: getattr(self.engine, key) for key in self.engine.model_fields_set}
        return self.model_copy(update={"engine": engine.model_copy(update=own)})

    def engines(self) -> list[EngineConfig]:
        """What plays the rollouts."""
        return [self.engine] if self.plays else []

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast:
        """Rollouts from every start, each half a trajectory long."""
        starts = sum(s.trajectories * s.steps for s in shapes.values())
        inferences = self.rollouts * sum(s.trajectories * s.steps * (s.steps + 1) / 2 for s in shapes.values())
        words = (
            f"{self.rollouts * starts:,.0f} rollouts = {self.rollouts} x {starts:,.0f} starts, about {inferences:,.0f} "
            "inferences = half a trajectory's steps each"
        )
        half = [(self.rollouts * s.trajectories * s.steps / 2, s) for s in shapes.values()]
        read, written = sum(n * s.read for n, s in half), sum(n * s.written for n, s in half)
        if self.mode == "economical":
            read, written = read / _SAVED, written / _SAVED
            words += f"; the economical mode makes about 1/{_SAVED} of them"
        return Forecast(f"{words}; {self.engine.replicas} engine replica(s)", read, written)

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """The rollouts."""
        if self.scores is not None:
            return super().estimate(trajectories)
        steps = sum(len(t.steps) for t in trajectories)
        whole = f"{steps * self.rollouts} rollouts: {self.rollouts} from each of {steps} starts"
        return [whole if self.mode == "exhaustive" else f"fewer than the exhaustive mode's {whole}"]

    def note(self, usage: Usage, done: int, total: int) -> str | None:
        """How much of the prompts was in the prefix cache."""
        return f"prefix cache {usage.hit_rate:.0%}"

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        """What became of the rollouts."""
        from atlas_ray.selection.value.estimators import value_figures

        return value_figures(selections, self)
