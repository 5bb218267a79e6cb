"""The model as it is loaded: bit for bit what transformers loads, and no process reads more than its own shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from atlas_ray.errors import UserError
from atlas_ray.training import loop
from atlas_ray.training.model import loading
from atlas_ray.training.model.lora import add_adapters
from atlas_ray.training.settings import LoraConfig
from tests.support.tiny import tiny_llama
from tests.support.training import CPU, a_config

LORA = LoraConfig(rank=4, alpha=8)
ODD = 83  # words: two processes have 42 and 41 of them


def written(folder: Path, name: str) -> str:
    """A model's folder; its norms are no ones, which a model that was not loaded has too."""
    model = tiny_llama(ODD, tie_word_embeddings="own head" not in name, rope_scaling=LLAMA_3)
    for number, weight in enumerate(model.parameters()):
        weight.data += number / 1000
    if "bfloat16" in name:
        model.to(torch.bfloat16)
    model.generation_config.eos_token_id = [7, 8]
    model.save_pretrained(folder, max_shard_size="60KB" if "in files" in name else "1GB")
    assert (folder / "model.safetensors.index.json").exists() is ("in files" in name)
    return str(folder)


LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
NAMES = ["tied", "own head", "own head, bfloat16, in files", "tied, bfloat16"]


def options(tuned: str) -> dict[str, Any]:
    return {"lora": LORA if tuned == "lora" else None, "dtype": "bfloat16" if tuned == "lora" else "float32"}


def streamed(folder: str, tuned: str, shard: bool) -> Any:
    model, weights = loading.load_model(folder)
    assert weights is not None
    assert all(weight.is_meta for weight in model.parameters())
    if tuned == "lora":
        add_adapters(model, LORA, seed=0)
    return loop.place_model(model, a_config(**options(tuned)), CPU, weights, shard=shard)


def whole(folder: str, tuned: str) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    if tuned == "lora":
        add_adapters(model, LORA, seed=0)
    return loop.place_model(model, a_config(**options(tuned)), CPU)


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_loaded_as_transformers_does(tmp_path: Path, name: str, tuned: str) -> None:
    folder = written(tmp_path, name)
    found, expected = streamed(folder, tuned, shard=False), whole(folder, tuned)
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(dict(found.named_buffers()), dict(expected.named_buffers()), rtol=0, atol=0)
    assert (found.model.lm_head.weight is found.model.model.embed_tokens.weight) is ("tied" in name)
    assert found.model.dtype is expected.model.dtype
    assert found.model.config.to_dict() == expected.model.config.to_dict()
    assert found.model.generation_config.to_dict() == expected.model.generation_config.to_dict()


class Counted:
    """A safetensors file that counts the numbers read from it."""

    read = 0

    def __init__(self, *given: Any) -> None:
        self._inner = safe_open(*given)

    def __enter__(self) -> Any:
        self._file = self._inner.__enter__()
        return self

    def __exit__(self, *given: Any) -> None:
        self._inner.__exit__(*given)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._count(self._file.get_tensor(name))

    def get_slice(self, name: str) -> Any:
        return _Slice(self._file.get_slice(name))

    def keys(self) -> Any:
        return self._file.keys()

    @classmethod
    def _count(cls, tensor: torch.Tensor) -> torch.Tensor:
        cls.read += tensor.numel()
        return tensor


class _Slice:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getitem__(self, rows: Any) -> torch.Tensor:
        return Counted._count(self._inner[rows])

    def get_shape(self) -> list[int]:
        return list(self._inner.get_shape())


safe_open = loading.safe_open


def _load_sharded(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    loading.safe_open, found = Counted, {}
    for name in NAMES:
        for tuned in ("full", "lora"):
            Counted.read = 0
            module = streamed(str(folder / name), tuned, shard=True)
            parts = {n: p.to_local().numel() for n, p in module.named_parameters()}
            read = Counted.read
            full = {n: p.full_tensor() for n, p in module.named_parameters()}
            found[name, tuned] = parts, read, full, dict(module.named_buffers())
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_each_process_reads_its_own_shards_and_no_more(tmp_path: Path) -> None:
    for name in NAMES:
        written(tmp_path / name, name)
    torch.multiprocessing.spawn(_load_sharded, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for (name, tuned), (parts, read, full, buffers) in first.items():
        expected = whole(str(tmp_path / name), tuned)
        torch.testing.assert_close(full, dict(expected.named_parameters()), rtol=0, atol=0)
        torch.testing.assert_close(buffers, dict(expected.named_buffers()), rtol=0, atol=0)
        others, read_there = second[name, tuned][:2]
        size = {n: p.numel() for n, p in expected.named_parameters()}
        assert {n: parts[n] + others[n] for n in parts} == size
        stored = sum(count for n, count in size.items() if "lora_" not in n)
        spare = 200  # a row here and there, to see in which type a file is
        assert stored <= read + read_there < stored + 2 * spare
        assert max(read, read_there) < 0.51 * stored + spare


def test_model_with_other_weight_names_is_loaded_by_transformers(tmp_path: Path) -> None:
    model = tiny_llama(ODD)
    model.model.save_pretrained(tmp_path)  # without the head: its names begin elsewhere
    model.config.save_pretrained(tmp_path)
    found, weights = loading.load_model(str(tmp_path))
    assert weights is None
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load"):
        loading.load_model(str(tmp_path / "nothing"))
    tiny_llama(ODD).config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"cannot load .*safetensors"):
        loading.load_model(str(tmp_path))
