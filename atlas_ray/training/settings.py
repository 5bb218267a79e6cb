"""Settings of the training stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, ChatTemplate, DataConfig, FrozenConfig, LabelSelector, RayConfig, Renamed
from atlas_ray.trajectories.settings import CollectConfig

Objective = Literal["token", "step", "trajectory"]
ExportFormat = Literal["agenttraj", "sharegpt", "openai", "axolotl", "llamafactory", "trl", "tinker", "parquet"]


class LoraConfig(FrozenConfig):
    """Low-rank adapters instead of all weights, through peft (`pip install 'atlas-ray[lora]'`)."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32, gt=0, description="an adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="names of modules, e.g. q_proj")
    base: Literal["whole", "4bit"] = Field(
        "whole", description="4bit: its layers' matrices are held in 4 bits (QLoRA; `pip install 'atlas-ray[qlora]'`)"
    )
    export: Literal["merged", "adapter"] = Field(
        "merged", description="a whole model, which all stages read, or peft's"
    )


class TrainConfig(FrozenConfig):
    """Fine-tuning with loss on the selected steps only (section 3.3, App. B.1: the defaults)."""

    run: Annotated[str, PLACEMENT] = "runs/train"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    chat_template: ChatTemplate | None = Field(
        None, description="of the model, where its tokenizer's is not used; the trained model brings it along"
    )
    data: DataConfig
    selection: str | None = Field(None, description="run folder of a selection; all steps where not given")
    rendered: Annotated[str | None, PLACEMENT] = Field(
        None, description="folder of token ids, shared by runs on the same data; None: in the run folder"
    )
    epochs: float = Field(3, gt=0)
    match_loss_tokens: bool = Field(
        False, description="goes on until as many tokens carried loss as all steps have in `epochs`, whatever is chosen"
    )
    loss: Objective = Field("token", description="what the loss is a mean of, over a global batch")
    optimizer: Literal["adam", "adam8bit", "muon"] = Field(
        "adam",
        description="adam8bit: its moments in 8 bits (`pip install 'atlas-ray[adam8bit]'`); muon: for matrices, AdamW "
        "for the rest",
    )
    learning_rate: float = Field(2e-5, gt=0)
    muon_learning_rate: float = Field(2e-2, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    global_batch_size: Annotated[int, Renamed("global_batch")] = Field(
        128, ge=1, description="trajectories an optimizer step"
    )
    micro_batch_tokens: int = Field(16384, ge=16, description="packed tokens a forward pass and worker")
    max_length: int = Field(8192, ge=16)
    max_grad_norm: Annotated[float, Renamed("clip")] = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="what is computed in; auto: bfloat16 on GPUs, and on CPUs with instructions for it unless the "
        "model is tiny; float32 else",
    )
    activation_checkpointing: bool | None = Field(
        None, description="recompute layers instead of keeping their activations; None: on GPUs"
    )
    num_workers: Annotated[int, PLACEMENT, Renamed("workers")] = Field(1, ge=1)
    context_parallel: Annotated[int, PLACEMENT] = Field(
        1, ge=1, description="workers that share each sequence, for those too long for one; divides num_workers"
    )
    shard_size: Annotated[int | None, PLACEMENT] = Field(
        None,
        ge=1,
        description="workers that hold one copy of the model between them, such as those of a node (hybrid sharding); "
        "divides num_workers; None: all",
    )
    offload: Annotated[bool, PLACEMENT] = Field(
        False, description="GPU workers keep weights, gradients and moments in their host's memory, and step there"
    )
    use_gpu: bool | None = Field(None, description="None: where the cluster has GPUs")
    cpus_per_worker: Annotated[int, PLACEMENT] = Field(1, ge=1)
    label_selector: Annotated[LabelSelector | None, PLACEMENT] = Field(
        None, description="labels of the workers' nodes; None: `group: train` where the cluster has such nodes"
    )
    lora: LoraConfig | None = None
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="share of the tasks held back from training")
    keep: Literal["last", "best"] = Field("last", description="best: the epoch of least validation loss")
    loggers: Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], PLACEMENT] = Field(
        [], description="besides metrics.jsonl"
    )
    memory_gb: Annotated[float | None, PLACEMENT] = Field(
        None, gt=0, description="of one worker's device, for the estimate; None: looked up"
    )
    checkpoint_steps: Annotated[int, PLACEMENT] = Field(
        25, ge=1, description="optimizer steps between checkpoints; each epoch ends in one"
    )
    keep_checkpoint: Annotated[bool, PLACEMENT] = Field(
        False, description="keep the last one of a finished run: twelve bytes a weight"
    )
    max_failures: Annotated[int, PLACEMENT] = Field(2, ge=0)
    seed: int = 0
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()

    @property
    def quantized(self) -> bool:
        """Whether the frozen base of adapters is held in 4 bits."""
        return self.lora is not None and self.lora.base == "4bit"

    def in_bfloat16(self, fast: bool) -> bool:
        """Whether a worker computes in bfloat16.

        Args:
            fast: Whether its device is made for that.
        """
        return fast if self.dtype == "auto" else self.dtype == "bfloat16"

    def passes(self, loss_token_fraction: float) -> float:
        """Passes over the data, where that share of the tokens of all steps carries loss."""
        return self.epochs / loss_token_fraction if self.match_loss_tokens and loss_token_fraction else self.epochs

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.keep == "best" and not self.validation_fraction:
            raise ValueError("keep: best needs a validation loss; set validation_fraction, e.g. 0.05")
        if self.lora and self.optimizer == "muon":
            raise ValueError("lora trains with optimizer: adam only")
        for name in ("context_parallel", "shard_size"):
            if self.num_workers % (getattr(self, name) or 1):
                raise ValueError(f"{name}: {getattr(self, name)} does not divide num_workers: {self.num_workers}")
        if self.offload and self.optimizer == "muon":
            raise ValueError("offload trains with optimizer: adam or adam8bit")
        if self.quantized and (self.offload or self.optimizer == "adam8bit"):
            raise ValueError(
                "lora.base: 4bit stays on its device, and adapters are few: leave offload and adam8bit out"
            )
        return self


class ExportConfig(FrozenConfig):
    """Data with loss on the chosen steps alone, as another trainer reads it."""

    out: Annotated[str, PLACEMENT] = "runs/export"
    format: ExportFormat
    data: DataConfig
    selection: str | None = Field(None, description="run folder of a selection; all steps where not given")
    model: str | None = Field(
        None, description="whose tokenizer and chat template; formats of turns need none, and are checked against it"
    )
    chat_template: ChatTemplate | None = Field(None, description="in place of the tokenizer's own")
    rows: Literal["trajectory", "step"] | None = Field(
        None, description="of turns: one for each trajectory, or each chosen step; None: as the trainer needs it"
    )
    loss: Objective = Field("token", description="what tokens are weighed by, in the formats that have weights")
    max_length: int = Field(8192, ge=16, description="tokens; of turns it is the trainer's own setting")
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.format in ("trl", "tinker", "parquet"):
            if self.model is None:
                raise ValueError(f"format: {self.format} holds tokens; name the model whose they are: model=...")
            if self.rows is not None:
                raise ValueError(f"format: {self.format} holds tokens, with a row for each sequence; leave rows out")
        elif self.format == "llamafactory" and self.rows == "trajectory":
            raise ValueError("LLaMA-Factory masks no single turns, but learns the last turn of a row: rows: step")
        return self


class TinyConfig(FrozenConfig):
    """A tiny Llama with its own tokenizer, trained on the spot on novice trajectories: the laptop's base model.

    `novice` and `train` hold the keys of collection and training; their run folders are set by the recipe.
    """

    novice: CollectConfig
    hidden_size: int = Field(128, ge=32)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    context: int = Field(1024, ge=64, description="tokens")
    train: dict[str, Any] = {}
