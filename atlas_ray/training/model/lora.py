"""LoRA through peft: low-rank adapters beside a model's frozen matrices.

Flows in: a model and `LoraConfig`; flows out: the same model with adapters in place, and their weights in peft's form
or merged into the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.settings import LoraConfig

_NAME = "default"  # peft's own for the only adapter


def add_adapters(model: Any, lora: LoraConfig, seed: int | None) -> None:
    """Freezes the model and puts adapters, the same ones in every process, beside its target modules.

    Args:
        model: May be on torch's meta device; the adapters are drawn in memory, in float32, none the less.
        seed: None: nothing is drawn; shapes are all that is wanted.

    Raises:
        UserError: If peft is missing, or the model has no such modules.
    """
    import torch

    peft = _peft()
    try:
        peft.inject_adapter_in_model(_peft_config(lora), model, adapter_name=_NAME)
    except ValueError as error:
        names = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise UserError(
            f"lora.targets {lora.targets} do not fit {type(model).__name__}: {str(error).splitlines()[0]}",
            f"its linear modules are {', '.join(names)}; or set all-linear",
        ) from None
    for name, parameter in list(model.named_parameters()):
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name and seed is not None:  # peft leaves them on the model's device, and in its type
            path, _, own = name.rpartition(".")
            setattr(model.get_submodule(path), own, torch.nn.Parameter(torch.empty(parameter.shape)))
    if seed is not None:
        torch.manual_seed(derive_seed(seed, "lora"))
        for module in model.modules():
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters(_NAME, init_lora_weights=True)


def merge_adapters(weights: Mapping[str, Any], lora: LoraConfig) -> dict[str, Any]:
    """The model's own weights with W + (alpha / rank) B A in place of W."""
    plain: dict[str, Any] = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        own = name.replace(".base_layer.", ".")
        plain[own] = weight
        if own != name and name.endswith(".weight"):
            down, up = (weights[name.replace("base_layer", f"lora_{part}.{_NAME}")].float() for part in "AB")
            plain[own] = weight.float() + lora.alpha / lora.rank * (up @ down)
    return plain


def write_adapter(folder: str | Path, weights: Mapping[str, Any], lora: LoraConfig, base: str) -> None:
    """Writes the adapters alone, as peft and vLLM load them.

    Args:
        base: Folder or hub id of the model that they belong to.
    """
    from safetensors.torch import save_file

    config = _peft_config(lora)
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(folder)
    own = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.contiguous()
        for name, tensor in weights.items()
        if ".lora_" in name
    }
    save_file(own, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def _peft_config(lora: LoraConfig) -> Any:
    options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": lora.targets}
    return _peft().LoraConfig(task_type="CAUSAL_LM", **options)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("lora needs peft, which is not installed", "pip install 'atlas-ray[lora]'") from None
    return peft
