"""Settings of the selection stage: one section per selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
    engine: Literal["torch", "vllm"] = "torch"
    batch_tokens: int = Field(4096, ge=64, description="tokens of one forward pass of the torch engine")
    max_length: int = Field(8192, ge=16, description="tokens of a trajectory that are read")
    workers: int = Field(1, ge=1)
    scores: str | None = Field(None, description="run folder of a finished selection whose scores are used")


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
    scores: str | None = Field(None, description="run folder of a finished selection whose scores are used")
    engine: EngineConfig = EngineConfig()


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
