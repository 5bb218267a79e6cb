"""Settings of the selection stage: one section per selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from atlas_ray.config import DataConfig, EndpointConfig, EngineConfig, EnvironmentsConfig, RayConfig, Strict


class AllSelector(Strict):
    """Every step: ordinary fine-tuning on whole trajectories."""

    name: Literal["all"] = "all"


class RandomSelector(Strict):
    """Steps drawn uniformly (section 4.5.3)."""

    name: Literal["random"] = "random"
    ratio: float = Field(0.3, gt=0, le=1)


class GoldSelector(Strict):
    """The built-in expert's own annotation, cut to the budget by its ranks."""

    name: Literal["gold"] = "gold"
    ratio: float = Field(0.3, gt=0, le=1)


class ComplementSelector(Strict):
    """As many steps as the reference chose, drawn from those it did not choose (section 4.5.1)."""

    name: Literal["complement"] = "complement"
    ratio: float = Field(0.3, gt=0, le=1)
    reference: str = Field("gold", description="`gold`, or the run folder of a finished selection")


class PerplexitySelector(Strict):
    """The steps that the base model finds hardest to generate (App. B.2, Eq. 5)."""

    name: Literal["perplexity"] = "perplexity"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    dtype: Literal["bfloat16", "float32"] = "float32"
    batch_tokens: int = Field(8192, ge=64)
    max_length: int = Field(8192, ge=16)
    workers: int = Field(1, ge=1)


class Economy(Strict):
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


class ValueSelector(Strict):
    """Steps after which Monte-Carlo rollouts do better by more than a threshold (section 4.5.4, App. B.3)."""

    name: Literal["value"] = "value"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
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

    @model_validator(mode="after")
    def _has_an_estimator(self) -> ValueSelector:
        if self.mode == "economical" and self.estimator == "eq9":
            raise ValueError("`eq9` sums over the values of all starts: it needs mode `exhaustive`")
        return self


class LlmSelector(Strict):
    """An LLM reads the trajectory and names its critical steps (section 3.2, App. D.1)."""

    name: Literal["llm"] = "llm"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "gpt-4o-2024-08-06"
    endpoint: EndpointConfig = EndpointConfig()
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=16)
    prompt_file: str | None = None
    max_cost: float | None = Field(None, gt=0, description="US dollars; stops cleanly and resumes")


def _paper_default(value: Any) -> Any:
    """A selector section without a name is the paper's: the LLM."""
    return {"name": "llm", **value} if isinstance(value, Mapping) else value


SelectorConfig = Annotated[
    AllSelector | RandomSelector | GoldSelector | ComplementSelector | PerplexitySelector | ValueSelector | LlmSelector,
    Field(discriminator="name"),
    BeforeValidator(_paper_default),
]


class SelectConfig(Strict):
    """Critical steps of a data set by one selector."""

    run: str = "runs/select"
    data: DataConfig
    selector: SelectorConfig = LlmSelector()
    seed: int = 0
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()
