"""The check of one GPU, in the small form that it has on CPU; what it would refuse on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import gpu

FIGURES = {"flops": 2e12, "gemm": 4e12, "sheet": 8e12, "memory": 60.0, "expected": 66.0, "states": 50.0, "layers": 24}


def test_training_is_held_against_the_data_sheet_the_matrix_product_and_the_estimate() -> None:
    entries = gpu.entries_of("training", FIGURES)
    found = {entry.name: entry.ratio for entry in entries}
    assert found == pytest.approx({"training.mfu": 0.25, "training.floor": 0.5, "training.memory": 1.1})
    assert [entry.share for entry in entries] == pytest.approx([0.5, 0.5, 50 / 60])
    unknown = gpu.entries_of("training", FIGURES | {"sheet": None})
    assert [entry.name for entry in unknown] == ["training.floor", "training.memory"]


@pytest.mark.parametrize(
    ("part", "figures", "named"),
    [
        ("training", FIGURES | {"memory": 70.0}, ["training.memory"]),
        ("training", FIGURES, []),
        ("numerics", {"loss": 0.02, "gradients": 0.01}, ["numerics.loss"]),
        ("numerics", {"loss": 0.001, "gradients": 0.2}, ["numerics.gradients"]),
        ("rollouts", {"together": 1.0, "alone": 2.0, "tokens": 5.0}, []),
    ],
)
def test_wrong_numerics_and_memory_beyond_the_estimate_are_faults(
    part: str, figures: dict[str, float], named: list[str]
) -> None:
    assert [line.split(":")[0] for line in gpu.faults(gpu.entries_of(part, figures), "cuda")] == named


def test_bfloat16_is_within_its_error_of_float32() -> None:
    torch.set_num_threads(1)
    found = gpu.numerics("cpu", tiny=True)
    assert 0 < found["loss"] < gpu.LOSS_TOLERANCE
    assert 0 < found["gradients"] < gpu.GRADIENT_TOLERANCE


def test_the_engines_model_has_as_many_words_as_its_shape_says(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    size = gpu.size_of("cpu")
    gpu.write_model(str(tmp_path), size, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == AutoConfig.from_pretrained(tmp_path).vocab_size >= size.shape["vocab_size"]
    words = {word for trajectory in gpu._data(size) for m in trajectory.messages for word in m.content.split()}
    assert tokenizer.unk_token_id not in tokenizer(" ".join(sorted(words)))["input_ids"]
    assert gpu.size_of("cuda").shape["num_hidden_layers"] == 32
    assert gpu.size_of("cuda", 16).shape["num_hidden_layers"] == 16
