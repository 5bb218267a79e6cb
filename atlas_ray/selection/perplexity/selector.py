"""The perplexity selector: what its settings mean for a plan and a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from atlas_ray.cluster import placement
from atlas_ray.cluster.connection import connect
from atlas_ray.config import EngineConfig, RayConfig
from atlas_ray.selection.perplexity.scores import UNSCORED, dtype_of
from atlas_ray.selection.perplexity.settings import PerplexitySettings
from atlas_ray.selection.protocol import Forecast, Stage, StageContext
from atlas_ray.selection.rescore import ScoringSelector
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Selection, Trajectory

_FORMATS = {"auto": "bfloat16 on GPUs, float32 else", "bfloat16": "bfloat16", "float32": "float32"}


class PerplexitySelector(PerplexitySettings, ScoringSelector):
    """The steps that the base model finds hardest to generate (App. B.2, Eq. 5)."""

    @property
    def eligible_above(self) -> float:
        return UNSCORED

    def settled(self, run: str, ray: RayConfig, begun: Mapping[str, Any]) -> Self:
        adopted = super().settled(run, ray, begun)
        if adopted.dtype != "auto":
            return adopted
        dtype = begun.get("dtype")
        if dtype is None:
            connect(ray)
            dtype = dtype_of(self, placement.gpus())
        return adopted.model_copy(update={"dtype": dtype})

    def scoring(self, context: StageContext) -> Stage:
        from atlas_ray.selection.perplexity.stage import PerplexityStage

        return PerplexityStage(self, context)

    def with_engine(self, engine: EngineConfig) -> Self:
        if self.num_workers is not None or "replicas" not in engine.model_fields_set:
            return self
        return self.model_copy(update={"num_workers": engine.replicas * engine.tensor_parallel})

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast:
        number = sum(s.trajectories for s in shapes.values())
        workers = "a worker to each GPU" if self.num_workers is None else f"{self.num_workers} worker(s)"
        words = f"{number:,.0f} forward passes, one a trajectory; {workers}, {_FORMATS[self.dtype]}"
        return Forecast(words, read=sum(s.trajectories * s.tokens for s in shapes.values()))

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        if self.scores is not None:
            return super().estimate(trajectories)
        return [f"{sum(1 for _ in trajectories)} forward passes, one a trajectory"]

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        unscored = computed = 0
        for s in selections:
            unscored += s.scores.count(UNSCORED)
            computed += s.usage.prompt_tokens - s.usage.cached_tokens
        return {"unscored_steps": unscored, "tokens_computed": computed}
