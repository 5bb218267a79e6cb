"""Settings of evaluation and of step verification."""

from __future__ import annotations

from pydantic import Field

from atlas_ray.config import DataConfig, EngineConfig, EnvironmentsConfig, RayConfig, Strict


class EvaluateConfig(Strict):
    """Models in live environments; greedy, as AgentGym's evaluator."""

    run: str = "runs/evaluate"
    models: dict[str, str] = Field(description="arm name -> model folder or hub id")
    tasks: dict[str, int | None] = Field(description="environment -> number of test tasks (null: all)")
    instructions: str | None = Field(None, description="data set whose opening instructions are used")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    max_excluded: float = Field(0.02, ge=0, le=1, description="share of infrastructure failures that flags a cell")
    retries: int = Field(2, ge=0)
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()


class VerifyConfig(Strict):
    """A model from scratch and from right after each critical step (section 4.6, Table 6)."""

    run: str = "runs/verify"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    data: DataConfig
    selection: str = Field(description="run folder of a selection of the same data")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()
