"""A model in numbers, from its configuration alone: what the memory estimate is made of.

Flows in: a training configuration; flows out: counts of parameters and widths. No weights are loaded or drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.models.source import local_model, trusted
from atlas_ray.training.settings import TrainConfig


def outline(config: TrainConfig) -> Any:
    """The model that will be trained, adapters and all, without any weights (on torch's meta device).

    Raises:
        UserError: If there is no such model, or it is no causal language model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        try:
            trust = trusted()
            place = local_model(config.model, whole=False)
            known = AutoConfig.from_pretrained(place, trust_remote_code=trust)
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=trust)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot read the model {config.model!r}: {reason}", "check the model's name") from None
        if config.lora is not None:
            from atlas_ray.training.model.lora import add_adapters

            add_adapters(model, config.lora, seed=None)
    return model


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A causal language model in numbers.

    Attributes:
        parameters: All, each counted once.
        trained: Those that training changes.
        tables: Embedding and head, which are one where they are tied.
        head: Of the head.
        layer: Of the largest layer.
        width: Bytes of a weight as the model is written.
        hidden, inner: Width of the residual stream and of the feed-forward part.
        attention: Query heads times their size; `cached` the same for keys and values.
    """

    parameters: int
    trained: int
    tables: int
    head: int
    layer: int
    layers: int
    hidden: int
    inner: int
    attention: int
    cached: int
    vocabulary: int
    width: int

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """Counts a model, on whatever device it is."""
        from torch import nn

        layers = next(m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList))
        text = model.config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        head = model.get_output_embeddings().weight
        tables = {id(p): p.numel() for p in (head, model.get_input_embeddings().weight)}
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            tables=sum(tables.values()),
            head=head.numel(),
            layer=max(sum(p.numel() for p in layer.parameters()) for layer in layers),
            layers=len(layers),
            hidden=text.hidden_size,
            inner=text.intermediate_size,
            attention=size * text.num_attention_heads,
            cached=size * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
            vocabulary=head.shape[0],
            width=model.dtype.itemsize,
        )
