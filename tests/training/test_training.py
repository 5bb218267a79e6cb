"""The training loop: it learns, reports, and a resumed loop repeats an undisturbed one."""

from __future__ import annotations

import math

import pytest
import torch

from atlas_ray.errors import AtlasError
from atlas_ray.training import loop
from tests.support.tiny import tiny_llama
from tests.support.training import a_config, run_locally

# --- the loop


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [loop.schedule(step, 10, 0.2) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 8)])
    assert loop.schedule(1, 1, 0.0) == 1.0


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "adam"), ("bfloat16", "adam"), ("float32", "muon")])
def test_training_learns_and_reports(dtype: str, optimizer: str) -> None:
    checkpoints: list[int] = []
    config = a_config(dtype=dtype, optimizer=optimizer, epochs=8, checkpoint_steps=5, learning_rate=5e-3)
    module, _, steps = run_locally(config, on_checkpoint=checkpoints.append)
    assert [s["step"] for s in steps] == list(range(1, 25))
    assert checkpoints == sorted({*range(5, 25, 5), *range(3, 25, 3)})
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert steps[-1]["eta_seconds"] == 0 < steps[0]["eta_seconds"]
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_matrices_are_multiplied_in_the_type_that_the_device_has_kernels_for(dtype: str) -> None:
    """By default float32 on CPU, where bfloat16 is emulated unless the CPU is a rare one, and bfloat16 on GPUs."""
    model, computed = tiny_llama(80), set[torch.dtype]()
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *given: computed.add(given[2].dtype))
    config = a_config(dtype=dtype, epochs=1)
    run_locally(config, model)
    assert computed == {torch.bfloat16 if dtype == "bfloat16" else torch.float32}
    assert config.in_bfloat16(fast=True) == (dtype != "float32")


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = tiny_llama(80)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(AtlasError, match="loss is nan at step 1"):
        run_locally(a_config(), model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(value: float) -> None:
    model, config = tiny_llama(80), a_config()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.model.norm.weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    with pytest.raises(AtlasError, match=rf"the gradient's norm is {value} at step 1\n  lower learning_rate"):
        run_locally(config, model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
