"""Settings of the perplexity selector, and what they mean for a plan and a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from atlas_ray.cluster import placement
from atlas_ray.cluster.connection import connect
from atlas_ray.config import PLACEMENT, EngineConfig, RayConfig, Renamed
from atlas_ray.selection.protocol import Forecast
from atlas_ray.selection.rescore import ScoringSelector
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Selection, Trajectory

UNSCORED = 0.0  # below any perplexity, which is at least 1
_FORMATS = {"auto": "bfloat16 on GPUs, float32 else", "bfloat16": "bfloat16", "float32": "float32"}


class PerplexitySelector(ScoringSelector):
    """The steps that the base model finds hardest to generate (App. B.2, Eq. 5)."""

    name: Literal["perplexity"] = "perplexity"
    ratio: float = Field(0.3, gt=0, le=1)
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPU")
    engine: Literal["auto", "torch", "vllm"] = Field("auto", description="auto: vllm on CPU in float32, else torch")
    batch_tokens: int = Field(4096, ge=64, description="tokens of one forward pass of the torch engine")
    max_length: int = Field(8192, ge=16, description="tokens of a trajectory that are read")
    num_workers: Annotated[int | None, PLACEMENT, Renamed("workers")] = Field(
        None, ge=1, description="null: one to each GPU of the cluster, one on CPU"
    )

    @property
    def eligible_above(self) -> float:
        """Steps beyond the limit are never chosen."""
        return UNSCORED

    def settled(self, run: str, ray: RayConfig, begun: Mapping[str, Any]) -> Self:
        """With its number format: as the run began, else by the cluster's devices."""
        adopted = super().settled(run, ray, begun)
        if adopted.dtype != "auto":
            return adopted
        dtype = begun.get("dtype")
        if dtype is None:
            connect(ray)
            dtype = dtype_of(self, placement.gpus())
        return adopted.model_copy(update={"dtype": dtype})

    def with_engine(self, engine: EngineConfig) -> Self:
        """As many workers as the engines have GPUs."""
        if self.num_workers is not None or "replicas" not in engine.model_fields_set:
            return self
        return self.model_copy(update={"num_workers": engine.replicas * engine.tensor_parallel})

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast:
        """One forward pass a trajectory."""
        number = sum(s.trajectories for s in shapes.values())
        workers = "a worker to each GPU" if self.num_workers is None else f"{self.num_workers} worker(s)"
        words = f"{number:,.0f} forward passes, one a trajectory; {workers}, {_FORMATS[self.dtype]}"
        return Forecast(words, read=sum(s.trajectories * s.tokens for s in shapes.values()))

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """The forward passes."""
        if self.scores is not None:
            return super().estimate(trajectories)
        return [f"{sum(1 for _ in trajectories)} forward passes, one a trajectory"]

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        """Steps beyond the limit."""
        return {"unscored_steps": sum(s.scores.count(UNSCORED) for s in selections)}


def dtype_of(config: PerplexitySelector, gpus: float) -> Literal["bfloat16", "float32"]:
    """The number format of scoring; `auto`: bfloat16 on GPUs, where float32 takes ten times as long, else float32."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if gpus else "float32"


def workers_of(config: PerplexitySelector, gpus: float, chunks: int) -> int:
    """Processes that score: as many as are asked for, else one to each GPU, as far as there are chunks for them."""
    return config.num_workers or max(1, min(int(gpus), chunks))


def engine_of(config: PerplexitySelector, gpus: float) -> Literal["torch", "vllm"]:
    """The engine that scores. `auto` takes the faster one where the two agree (`make bench-perplexity`).

    On CPU in float32 that is vLLM: 1.06 to 1.18 times as fast once it runs, and the same to 1e-5. In bfloat16 they
    differ by a percent, and on a GPU vLLM holds the logits of whole prompts in memory: there it is torch.
    """
    if config.engine != "auto":
        return config.engine
    return "vllm" if not gpus and dtype_of(config, gpus) == "float32" else "torch"
