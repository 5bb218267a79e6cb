"""What the training benchmark trains on, and models of which size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atlas_ray.selection.budget import budget
from bench import training, training_setup

TINY = training_setup.setup_of("cpu", tiny=True)


def test_ours_trains_on_what_is_left_behind_the_last_chosen_step() -> None:
    torch.set_num_threads(1)
    found = training.run_ours(TINY, "cpu")
    examples, wholes = training_setup.examples_of(TINY)
    assert len(found["losses"]) == TINY.steps
    assert 0 < found["trained_tokens"] < TINY.tokens
    for example, whole in zip(examples, wholes, strict=True):
        assert example.ids.tolist() == whole[: example.length].tolist()
        assert example.loss_mask[-1]
        assert example.steps_chosen == len(example.spans) == budget(0.3, example.steps)


def test_the_gpu_part_has_the_shape_of_llama_31_8b() -> None:
    setup = training_setup.setup_of("cuda", tiny=False)
    with torch.device("meta"):
        model = training_setup.a_model(setup, 32, "meta")
    assert model.num_parameters() == 8_030_261_248
    assert 8190 <= max(len(whole) for whole in training_setup.examples_of(setup)[1]) <= 8192


@pytest.mark.parametrize("model", ["head", "layers"])
def test_the_cpu_part_has_5_million_parameters_and_27_thousand_tokens(model: training_setup.Model) -> None:
    setup = training_setup.setup_of("cpu", tiny=False, model=model)
    made = training_setup.a_model(setup, setup.shape["num_hidden_layers"], "cpu")
    examples, wholes = training_setup.examples_of(setup)
    assert made.num_parameters() == pytest.approx(5e6, rel=0.02)
    assert sum(map(len, wholes)) == pytest.approx(27_000, rel=0.01)
    fractions = [e.steps_chosen / e.steps for e in examples]
    assert np.mean(fractions) == pytest.approx(0.26, abs=0.02)  # 30 %, rounded down


def test_a_model_of_the_cpu_part_has_smollm2s_shape() -> None:
    setup = training_setup.setup_of("cpu", tiny=False, model="smollm2")
    with torch.device("meta"):
        made = training_setup.a_model(setup, setup.shape["num_hidden_layers"], "meta")
    assert made.num_parameters() == 134_515_008
    assert setup.dtype == "bfloat16"
