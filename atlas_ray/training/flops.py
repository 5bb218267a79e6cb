"""What training costs in floating-point operations: for balancing work and for MFU.

Flows in: a model; flows out: operations per example. Only what the result needs is counted (6 per weight and token:
one multiplication and addition forward, two backward); what checkpointing computes twice is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of one forward and backward pass.

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
        config = model.config.get_text_config()
        head = _cost(model.get_output_embeddings().weight)
        matrices = sum(_cost(p) for m in model.get_decoder().layers for p in m.parameters() if p.ndim == 2)
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(matrices, head, 12 * config.num_hidden_layers * heads * size)

    def of_example(self, tokens: int, loss_tokens: int) -> float:
        """Of one trajectory under causal attention."""
        return self.layers * tokens + self.head * loss_tokens + self.pairs * tokens * (tokens + 1) / 2


# bfloat16, dense, as the makers' data sheets give them
_PEAKS = {
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
    return next((peak for name, peak in _PEAKS.items() if name in device_name), None)


def _cost(weight: Any) -> int:
    return (6 if weight.requires_grad else 4) * weight.numel()
