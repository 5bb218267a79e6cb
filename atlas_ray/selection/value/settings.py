"""The value selector's section of the settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, EngineConfig, FrozenConfig, LimitsConfig
from atlas_ray.selection.rescore import ScoringSettings

_DIGITS = 9  # to which scores are rounded, and the threshold with them


class Economy(FrozenConfig):
    """Devices of the economical mode, each by itself; see `selection/value/backward_sampler.py`.

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


class ValueSettings(ScoringSettings):
    """How rollouts are played from every step, and what makes a step critical."""

    name: Literal["value"] = "value"
    rollouts: int = Field(5, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    threshold: float = 0.1
    estimator: Literal["mean_reward", "discounted", "eq9"] = "mean_reward"
    gamma: float = Field(0.99, gt=0, le=1)
    ratio: float | None = Field(None, gt=0, le=1, description="caps the steps only where given")
    propose: str | None = Field(
        None, description="a finished selection, by a cheap score: rollouts verify its steps alone; see `sources.py`"
    )
    mode: Literal["exhaustive", "economical"] = "exhaustive"
    economy: Economy = Field(Economy(), description="read by the economical mode only")
    engine: EngineConfig = EngineConfig()
    limits: Annotated[LimitsConfig, PLACEMENT] = LimitsConfig()

    @model_validator(mode="after")
    def _has_an_estimator(self) -> Self:
        if self.mode == "economical" and self.estimator == "eq9":
            raise ValueError("`eq9` sums over the values of all starts: it needs mode `exhaustive`")
        if self.propose and (self.mode == "economical" or self.estimator == "eq9"):
            raise ValueError("`propose` leaves starts without a value: it needs mode `exhaustive`, and not `eq9`")
        return self

    @property
    def eligible_above(self) -> float:
        return round(self.threshold, _DIGITS)
