"""The training loop: it learns, reports, and a resumed loop repeats an undisturbed one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_ray.config import DataConfig
from atlas_ray.errors import AtlasError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training import loop
from atlas_ray.training.data.masking import Example, tokens_of, training_example
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Message, Selection, Trajectory
from tests.support.tiny import WORDS, tiny_llama, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def a_trajectory(number: int, turns: int) -> Trajectory:
    words = [WORDS[(7 * number + 3 * k) % len(WORDS)] for k in range(turns)]
    messages = [
        message
        for k, word in enumerate(words)
        for message in (
            Message("user", f"see {word} " * (1 + (number + k) % 3)),
            Message("assistant", f"Thought: {word} {'see ' * (k % 3)}\nAction: go {words[k - 1]}", True),
        )
    ]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(messages))


TRAJECTORIES_HERE = [a_trajectory(number, 2 + number % 5) for number in range(7)]
CHOSEN = {t.id: (1, len(t.steps)) if number % 2 else (2,) for number, t in enumerate(TRAJECTORIES_HERE)}
SELECTIONS_HERE = [
    Selection(t.id, t.env, t.item_id, "gold", 0.3, len(t.steps), CHOSEN[t.id]) for t in TRAJECTORIES_HERE
]


def the_examples() -> list[Example]:
    chat = ChatFormat(tiny_tokenizer())
    return [training_example(tokens_of(t, chat), CHOSEN[t.id], 500) for t in TRAJECTORIES_HERE]


def a_config(**options: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "data": DataConfig(path="data"),
        "dtype": "float32",
        "learning_rate": 1e-3,
        "global_batch_size": 3,
        "micro_batch_tokens": 120,
        "use_gpu": False,
        "max_length": 500,
        "epochs": 2,
    }
    return TrainConfig(**plain | options)


def write_base(folder: Path, dtype: torch.dtype = torch.float32) -> str:
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- the loop


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [loop.schedule(step, 10, 0.2) for step in range(1, 11)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[3:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(1, 8)])
    assert loop.schedule(1, 1, 0.0) == 1.0


def run_locally(config: TrainConfig, model: Any = None, **options: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    module = loop.prepare(model or tiny_llama(80), config, CPU)
    optimizers, steps = loop.make_optimizers(module, config), list[dict[str, Any]]()
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=steps.append, **options)
    return module, optimizers, steps


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


def curve(steps: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(s[k] for k in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for s in steps]


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
