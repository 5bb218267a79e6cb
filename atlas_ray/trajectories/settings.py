"""Settings of the collection of trajectories."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, ActionProtocol, EnvironmentsConfig, FrozenConfig, MaxFailed, RayConfig


class CollectConfig(FrozenConfig):
    """Trajectories of a scripted agent in built-in environments."""

    run: Annotated[str, PLACEMENT] = "runs/collect"
    envs: list[str] = ["maze", "textcraft", "wordle"]
    role: Literal["expert", "novice"] = "expert"
    split: Literal["train", "test"] = "train"
    tasks: int | dict[str, int] | None = Field(None, description="by environment or for each; all where not given")
    samples: int | dict[str, int] = Field(1, description="trajectories a task, by environment or for each")
    protocol: ActionProtocol = Field("react", description="whether the agent acts by text, or by native calls of tools")
    max_rounds: int | None = Field(None, ge=1, description="cuts episodes short of the environment's own cap")
    keep_failures: bool = False
    waste: float = Field(0.0, ge=0, le=0.5, description="share of an expert's steps that lie on detours, about")
    seed: int = 0
    max_failed: MaxFailed = 0.5
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()

    @model_validator(mode="after")
    def _experts_alone_recover(self) -> Self:
        if self.waste and self.role == "novice":
            raise ValueError("`waste` is an expert's: a novice does not recover from its errors")
        return self
