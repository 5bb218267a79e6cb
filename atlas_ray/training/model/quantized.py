"""A frozen base whose layers' matrices are held in 4 bits (QLoRA), through transformers and bitsandbytes.

Flows in: a model's folder or hub id; flows out: the model, each matrix quantized as it is read, and whole weights again
for the export. Embedding, head and norms keep their type. Each process holds all of the base: 4 bits travel badly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atlas_ray.errors import UserError
from atlas_ray.models.source import weights


def load_in_4bit(model: str, computed: torch.dtype, device: torch.device) -> Any:
    """A model on its device, its layers' matrices in NF4 with constants of 8 bits, as QLoRA has them.

    Args:
        computed: The type that products are computed in, and that other weights have.

    Raises:
        UserError: If bitsandbytes is missing, or there is no such model.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        remedy = "pip install 'atlas-ray[qlora]'"
        raise UserError("lora.base: 4bit needs bitsandbytes, which is not installed", remedy) from None
    form = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
    )
    options: dict[str, Any] = {"quantization_config": form, "dtype": computed, "device_map": {"": device}}
    try:
        found = AutoModelForCausalLM.from_pretrained(model, **options, **weights())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {model!r}: {str(error).splitlines()[0]}", "check the model") from None
    # It is saved as the whole model that it stands for.
    found.hf_quantizer = None  # type: ignore[assignment]
    del found.config.quantization_config
    return found


def quantized_weights(model: nn.Module) -> set[nn.Parameter]:
    """Those held in 4 bits, which are not sharded."""
    return {p for p in model.parameters() if hasattr(p, "quant_state")}


def whole_weights(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's weights without what quantization adds to them, and with its matrices as they are computed with."""
    from bitsandbytes.functional import dequantize_4bit

    held = {name: p for name, p in model.named_parameters() if hasattr(p, "quant_state")}
    plain = {name: tensor for name, tensor in state.items() if not any(name.startswith(f"{own}.") for own in held)}
    return plain | {name: dequantize_4bit(p.data, p.quant_state).cpu() for name, p in held.items()}
