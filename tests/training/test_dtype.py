"""Which number format `auto` is, by the device and the width of the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from atlas_ray.training.estimate import ModelShape, memory_of, meta_model
from atlas_ray.training.model.precision import with_dtype
from tests.support.training import CPU, a_config, llama_8b


def chosen(width: int, dtype: str = "auto") -> str:
    return with_dtype(a_config(dtype=dtype), width, CPU).dtype


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16"])
def test_a_cpu_that_multiplies_bfloat16_computes_all_but_tiny_models_in_it(
    instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, instruction: True})
    assert (chosen(576), chosen(4096)) == ("bfloat16", "bfloat16")
    assert chosen(128) == "float32"  # the same on all machines
    assert chosen(576, "float32") == "float32"


def test_a_cpu_that_would_emulate_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True, "avx512_bf16": False})
    assert chosen(4096) == "float32"
    assert chosen(4096, "bfloat16") == "bfloat16"


def test_memory_is_estimated_for_what_is_computed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape.of(meta_model(llama_8b(tmp_path)))

    def activations(dtype: str) -> float:
        return memory_of(llama_8b(tmp_path, dtype=dtype), shape, cuda=False).activations

    for instructions, same in (({"avx512_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=instructions: known)
        assert activations("auto") == activations(same)
    assert activations("bfloat16") < activations("float32")
