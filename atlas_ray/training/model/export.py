"""The trained model in Hugging Face format: safetensors, tokenizer and generation config.

Flows in: a module, sharded or not; flows out: a folder that transformers and vLLM load.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.settings import TrainConfig

if TYPE_CHECKING:
    import torch

    from atlas_ray.training.loop import StepLoss

MODEL = "model"


def export_model(
    folder: RunFolder, module: StepLoss, config: TrainConfig, dtype: torch.dtype, stop_ids: Iterable[int]
) -> None:
    """Writes `model/` of a run folder; every process takes part, the first one writes.

    Args:
        dtype: Of the weights on disk.
        stop_ids: Tokens that end a reply; they join those of the generation config.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from atlas_ray.training.loop import rank_and_world

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(module, options=options)
    if rank_and_world()[0] == 0:
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        with TemporaryDirectory() as path:
            _write(path, module.model, weights, config, dtype, stop_ids)
            folder.child(MODEL).copy_from(Path(path))


def _write(
    path: str, model: Any, weights: dict[str, Any], config: TrainConfig, dtype: torch.dtype, stop_ids: Iterable[int]
) -> None:
    if config.lora is not None:
        from atlas_ray.training.model.lora import merge_adapters, write_adapter
        from atlas_ray.training.model.quantized import whole_weights

        if config.lora.export == "adapter":
            write_adapter(path, weights, config.lora, config.model)
            return
        if config.quantized:
            weights = whole_weights(model, weights)
        weights = merge_adapters(weights, config.lora)
    # A tied weight once, as one process has it: gathered from several its names hold copies.
    names = [{name for name, _ in model.named_parameters(remove_duplicate=alone)} for alone in (False, True)]
    weights = {name: tensor.to(dtype) for name, tensor in weights.items() if name not in names[0] - names[1]}
    known = model.generation_config.eos_token_id
    known = known if isinstance(known, list) else [] if known is None else [known]
    model.generation_config.eos_token_id = list(dict.fromkeys([*stop_ids, *known]))
    cached, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(path, state_dict=weights, max_shard_size="2GB")
    model.config.dtype = dtype  # save_pretrained named that of the float32 weights which are trained
    model.config.save_pretrained(path)
    model.config.use_cache = cached


def write_tokenizer(folder: RunFolder, tokenizer: Any) -> None:
    """Writes the tokenizer with its chat template beside the weights."""
    with TemporaryDirectory() as path:
        tokenizer.save_pretrained(path)
        folder.child(MODEL).copy_from(Path(path))
