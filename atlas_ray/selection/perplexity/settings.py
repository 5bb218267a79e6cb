"""The perplexity selector's section of the settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from atlas_ray.config import PLACEMENT, Renamed
from atlas_ray.selection.rescore import ScoringSettings


class PerplexitySettings(ScoringSettings):
    """How steps are scored by what the base model makes of them."""

    name: Literal["perplexity"] = "perplexity"
    ratio: float = Field(0.3, gt=0, le=1)
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPU")
    engine: Literal["auto", "torch", "vllm"] = Field("auto", description="auto: vllm on CPU in float32, else torch")
    batch_tokens: int = Field(4096, ge=64, description="tokens of one forward pass of the torch engine")
    max_length: int = Field(8192, ge=16, description="tokens of a trajectory that are read")
    num_workers: Annotated[int | None, PLACEMENT, Renamed("workers")] = Field(
        None, ge=1, description="null: one to each GPU of the cluster, one on CPU"
    )
