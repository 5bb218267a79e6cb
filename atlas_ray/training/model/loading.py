"""The model to train: its shape first, its weights once they are sharded, so that no process ever holds all of them.

Flows in: a model's folder or hub id; flows out: the model on torch's meta device, and then, in every process, the rows
of its own shards, read from the safetensors files where they lie. A model whose files hold its weights under other
names (transformers merges and renames those of some architectures) is loaded whole by transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from atlas_ray.errors import UserError
from atlas_ray.models.source import trusted, weights


class Weights:
    """Where a model's weights lie.

    Args:
        files: The safetensors file of each weight, by the name it has there.
        dtype: In which they are written.
    """

    def __init__(self, files: dict[str, str], dtype: torch.dtype) -> None:
        self._files, self.dtype = files, dtype

    @classmethod
    def of(cls, model: str) -> Weights:
        """Finds the files of a folder, or of a hub id in the hub's cache, into which they are brought first.

        Raises:
            OSError: If there are none.
        """
        from transformers.utils.hub import cached_file, get_checkpoint_shard_files

        if (single := cached_file(model, "model.safetensors", _raise_exceptions_for_missing_entries=False)) is not None:
            with safe_open(single, "pt") as file:
                return cls(dict.fromkeys(file.keys(), single), _dtype(single))
        index = cached_file(model, "model.safetensors.index.json")
        paths, content = get_checkpoint_shard_files(model, index)
        named = {Path(path).name: path for path in paths}
        return cls({name: named[file] for name, file in content["weight_map"].items()}, _dtype(paths[0]))

    def cover(self, model: nn.Module) -> bool:
        """Whether all that `model` has is here, by its own names; of weights that are one under several, any."""
        names: dict[int, set[str]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            names.setdefault(id(tensor), set()).add(name)
        return all(alike & self._files.keys() for alike in names.values())

    def fill(self, module: nn.Module, device: torch.device, prefix: str) -> None:
        """Gives every weight that is on the meta device its memory on `device`, and its values: a shard its rows.

        Args:
            prefix: What stands before the model's own names in the module's.
        """
        made: dict[int, nn.Parameter] = {}
        to_read: dict[str, list[tuple[str, Tensor]]] = {}
        for path, part in module.named_modules():
            for name, weight in list(part._parameters.items()):
                if weight is None or not weight.is_meta:
                    continue
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(torch.empty_like(weight, device=device), weight.requires_grad)
                part.register_parameter(name, made[id(weight)])
                own = f"{path}.{name}".removeprefix(prefix).replace(".base_layer.", ".")
                if own in self._files:
                    to_read.setdefault(self._files[own], []).append((own, made[id(weight)].data))
        buffers = {name.removeprefix(prefix): buffer for name, buffer in module.named_buffers()}
        for own in buffers.keys() & self._files.keys():
            to_read.setdefault(self._files[own], []).append((own, buffers[own]))
        for path, tensors in to_read.items():
            with safe_open(path, "pt") as file:
                for own, tensor in tensors:
                    _read(file, own, tensor)


def _read(file: Any, name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, DTensor):
        tensor.copy_(file.get_tensor(name))
        return
    # FSDP cuts the first dimension into as many pieces of equal size as processes hold a copy; the last are smaller.
    mesh, local = tensor.device_mesh, tensor.to_local()
    rows = -(-tensor.shape[0] // mesh.size(-1))
    start = min(mesh.get_local_rank(-1) * rows, tensor.shape[0])
    local.copy_(file.get_slice(name)[start : start + local.shape[0]])


def _dtype(path: str) -> torch.dtype:
    """Of the first weight that is no integer."""
    with safe_open(path, "pt") as file:
        slices = map(file.get_slice, file.keys())
        found = (weight[:1].dtype for weight in slices if weight.get_shape())
        return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)


def load_model(model: str) -> tuple[Any, Weights | None]:
    """A model without its weights, and where they lie; or with them, and None, where only transformers can read them.

    Raises:
        UserError: If there is no such model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    try:
        known = AutoConfig.from_pretrained(model, trust_remote_code=trusted())
        files = Weights.of(model)
        with _without_memory():
            found = AutoModelForCausalLM.from_config(
                known, dtype=known.dtype or files.dtype, trust_remote_code=trusted()
            )
        if not files.cover(found):
            return AutoModelForCausalLM.from_pretrained(model, dtype="auto", **weights()), None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {model!r}: {str(error).splitlines()[0]}", "check the model") from None
    with suppress(OSError):  # it has none: what its configuration says holds
        found.generation_config = GenerationConfig.from_pretrained(model)
    return found, files


@contextmanager
def _without_memory() -> Iterator[None]:
    """Parameters that are made within have no memory; buffers, such as rotary frequencies, are computed as ever."""
    register = nn.Module.register_parameter

    def register_meta(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
        if weight is not None and not weight.is_meta:
            weight = nn.Parameter(weight.to("meta"), weight.requires_grad)
        register(module, name, weight)

    nn.Module.register_parameter = register_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
