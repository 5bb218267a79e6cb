"""What a training run will take before anything is loaded: memory, disk, optimizer steps, tokens, operations, hours.

Flows in: a configuration, and the model's own without its weights; flows out: lines for people, and a refusal of what
cannot fit. Activations are counted for layers like Llama's, and so are an estimate; weights, gradients and moments are
exact. Of operations only what the result needs is counted (6 per weight and token: one multiplication and addition
forward, two backward); what checkpointing computes twice is not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import asdict, astuple, dataclass
from heapq import nlargest
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.models.source import fast_in_bfloat16, local_model, trusted
from atlas_ray.training.settings import TrainConfig

_GB = 2**30
_LOGIT_ROWS = 2048  # as in the loss
_PROCESS_ON_CPU = 0.7 * _GB  # torch, transformers and Ray themselves
_BITS4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes: four bits, a constant of 8 bits for 64, one of float32 for 256 of those
_BITS8 = 1 + 4 / 256  # bytes: eight bits, and a scale in float32 for 256
# Operations a second in bfloat16, dense, as the makers' data sheets give them
PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10": 125e12,
    "L4": 121e12,
}


def peak_flops(device_name: str) -> float | None:
    """Operations a second that a GPU could do at most in bfloat16; None for one that is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name), None)


def gpu_hours(operations: float, peak: float, mfu: float) -> float:
    """Hours of one GPU of `peak` operations a second, of which training reaches the share `mfu`."""
    return operations / (mfu * peak) / 3600


def meta_model(config: TrainConfig) -> Any:
    """The model that will be trained, adapters and all, on torch's meta device: no weights are loaded or drawn.

    Raises:
        UserError: If there is no such model, or it is no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        try:
            trust = trusted()
            known = AutoConfig.from_pretrained(local_model(config.model, whole=False), trust_remote_code=trust)
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot read the model {config.model!r}: {reason}", "check the model's name") from None
        if config.lora is not None:
            from atlas_ray.training.model.lora import add_adapters

            add_adapters(model, config.lora, seed=None)
    return model


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations of one forward and backward pass.

    Attributes:
        layers: Per token that goes through the layers.
        head: Per token that carries loss.
        pairs: Per pair of a token and one before it, in all layers' attention.
    """

    layers: float
    head: float
    pairs: float

    @classmethod
    def of(cls, model: Any) -> Flops:
        """Of a Hugging Face causal language model.

        Embeddings are looked up, not multiplied. A frozen weight needs no gradient of its own: 4 instead of 6. A pair
        of tokens costs two products of `head size` per head forward.
        """
        from atlas_ray.models.attention import decoder_layers

        def cost(weights: Iterable[Any]) -> int:
            return sum((6 if p.requires_grad else 4) * p.numel() for p in weights if p.ndim == 2)

        layers, shape = decoder_layers(model), ModelShape.of(model)
        return cls(
            cost(layers.parameters()), cost([model.get_output_embeddings().weight]), 12 * shape.layers * shape.queries
        )

    def of_example(self, tokens: int, loss_tokens: int) -> float:
        """Of one trajectory under causal attention."""
        return self.layers * tokens + self.head * loss_tokens + self.pairs * tokens * (tokens + 1) / 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A causal language model in numbers.

    Attributes:
        parameters: All, each counted once.
        trained: Those that training changes.
        embeddings: Embedding and head, which are one where they are tied.
        head: Of the head.
        layer: Of the largest layer.
        frozen_matrices: Of all layers, those that training leaves alone.
        width: Bytes of a weight as the model is written.
        hidden, intermediate: Width of the residual stream and of the feed-forward part.
        queries: Query heads times their size; `keys` the same for keys, and for values.
    """

    parameters: int
    trained: int
    embeddings: int
    head: int
    layer: int
    frozen_matrices: int
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    width: int

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Counts a model, on whatever device it is."""
        from atlas_ray.models.attention import decoder_layers

        layers, text = decoder_layers(model), model.config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        head = model.get_output_embeddings().weight
        embeddings = {id(p): p.numel() for p in (head, model.get_input_embeddings().weight)}
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            embeddings=sum(embeddings.values()),
            head=head.numel(),
            layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
            frozen_matrices=sum(p.numel() for p in layers.parameters() if p.ndim == 2 and not p.requires_grad),
            layers=len(layers),
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            queries=size * text.num_attention_heads,
            keys=size * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
            vocabulary=head.shape[0],
            width=model.dtype.itemsize,
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one worker's device at the worst moment of a step.

    Attributes:
        weights, gradients, moments: This worker's share, for the whole run.
        casts: Weights gathered from other workers or cast to bfloat16, with the gradients that leave again.
        activations: What a forward pass keeps for the backward one.
        logits: One chunk of the head's output, and its gradient.
        checkpoint: The copy of weights and moments that is written while training goes on; a GPU's is in the host's
            memory.
        host: What lies in the memory of a GPU's host for the whole run, and is none of the total.
    """

    weights: float
    gradients: float
    moments: float
    casts: float
    activations: float
    logits: float
    checkpoint: float
    process: float
    host: float = 0.0

    @property
    def states(self) -> float:
        """What no setting of the batch changes."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> float:
        """All of it."""
        return sum(astuple(self)) - self.host

    def __str__(self) -> str:
        sizes = {name: size / _GB for name, size in asdict(self).items() if name != "host"}
        return ", ".join(f"{name} {size:.2f}" for name, size in sizes.items() if size >= 0.005)


def memory_of(config: TrainConfig, shape: ModelShape, cuda: bool, lengths: Collection[int] = ()) -> Memory:
    """Estimates the memory of one worker.

    Args:
        cuda: Whether workers have GPUs, where layers are recomputed unless the configuration says otherwise.
        lengths: Of the examples, in tokens; micro-batches are taken to be full where there are none.
    """
    each = 2 if config.in_bfloat16(cuda or fast_in_bfloat16(shape.hidden)) else 4
    workers, held = config.num_workers, config.shard_size or config.num_workers
    quantized = shape.frozen_matrices if config.quantized else 0  # which every worker holds all of
    frozen = shape.parameters - shape.trained - quantized
    recomputed = recomputes(config, cuda)
    sharded = workers > 1 or (cuda and config.optimizer != "muon")
    if sharded:  # the embedding and the head stay for the pass; of the layers one computes while the next one comes
        # (of 4 bits one matrix at a time is computed with)
        gathered = shape.embeddings + (1 if quantized else 2) * shape.layer
        casts = each * gathered + (4 + each) * gathered * shape.trained / shape.parameters
    else:  # the head's gradient before it is added, and weights in bfloat16 for as long as a backward pass wants them
        casts = 4 * shape.head * shape.trained / shape.parameters
        casts += 0 if each == 4 else 2 * (shape.head + shape.layer * (1 if recomputed else shape.layers))
    row = _largest_row(config, lengths)
    tokens = math.ceil(row / config.context_parallel)
    # Keys and values of a shared row, with what their backward pass makes of them, as measured: gathered and in order;
    # by pieces, for each query head where no kernel shares them among several.
    by_head = shape.keys if cuda and each == 2 else shape.queries
    gathered = 0 if config.context_parallel == 1 else row * each * (8 * shape.keys + 12 * by_head)
    heads = 3 * shape.queries + 2 * shape.keys  # queries, output and its copy by heads; keys and values
    layer = tokens * (each * (2 * shape.hidden + heads + 4 * shape.intermediate) + 4 * 4 * shape.hidden) + gathered
    boundary = tokens * shape.hidden * (each if sharded else 4)
    weights = (4 * shape.trained + each * frozen) / held + _BITS4 * quantized
    gradients, moments = 4 * shape.trained / held, _moments(config, shape) / held
    host = 0.0
    if config.offload and cuda:
        host, weights, gradients, moments = weights + gradients + moments, 0.0, 0.0, 0.0
    return Memory(
        weights=weights,
        gradients=gradients,
        moments=moments,
        casts=casts,
        activations=shape.layers * boundary + layer if recomputed else shape.layers * layer,
        logits=min(_LOGIT_ROWS, tokens) * shape.vocabulary * (4 if each == 4 else 8),
        checkpoint=0.0 if cuda else _checkpoint(config, shape) / held,
        process=0.0 if cuda else _PROCESS_ON_CPU,
        host=host,
    )


def _largest_row(config: TrainConfig, lengths: Collection[int]) -> int:
    """Tokens of a micro-batch at most, of all workers that share it: a global batch may not fill it."""
    full = config.micro_batch_tokens * config.context_parallel
    if not lengths:
        return max(full, config.max_length)
    return min(max(full, *lengths), sum(nlargest(config.global_batch_size, lengths)))


def _moments(config: TrainConfig, shape: ModelShape) -> float:
    """Bytes of the optimizers' moments: two of Adam's, one of Muon's."""
    if config.optimizer == "adam8bit":
        return 2 * _BITS8 * shape.trained
    matrices = shape.trained - shape.embeddings if config.optimizer == "muon" else 0
    return 8 * shape.trained - 4 * matrices


def _checkpoint(config: TrainConfig, shape: ModelShape) -> float:
    """Bytes of weights and moments as they are written, all in float32."""
    adam = config.model_copy(update={"optimizer": "adam"}) if config.optimizer == "adam8bit" else config
    return 4 * shape.trained + _moments(adam, shape)


def recomputes(config: TrainConfig, cuda: bool) -> bool:
    """Whether layers are computed again in the backward pass instead of kept."""
    return cuda if config.activation_checkpointing is None else config.activation_checkpointing


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes of a run where it lies.

    Attributes:
        model: As it is exported.
        checkpoint: Of one, all workers' parts together; a second one is there while it is written.
        kept: Whether the last one stays.
    """

    model: float
    checkpoint: float
    kept: bool

    @property
    def peak(self) -> float:
        """While it trains."""
        return self.model + 2 * self.checkpoint

    @property
    def finished(self) -> float:
        """What stays."""
        return self.model + (self.checkpoint if self.kept else 0)

    def __str__(self) -> str:
        return (
            f"disk: at most {self.peak / _GB:.1f} GB (the model, {self.model / _GB:.1f}, and two checkpoints of "
            f"{self.checkpoint / _GB:.1f}; one being written is in the hosts' memory too), "
            f"{self.finished / _GB:.1f} GB when it is finished"
        )


def disk_of(config: TrainConfig, shape: ModelShape) -> Disk:
    """What a run takes on the disk or in the store that its folder is in, without its tokens and metrics."""
    adapters = shape.trained if config.lora is not None else 0
    alone = config.lora is not None and config.lora.export == "adapter"
    model = 4 * adapters if alone else shape.width * (shape.parameters - adapters)
    return Disk(model, _checkpoint(config, shape), config.keep_checkpoint)
