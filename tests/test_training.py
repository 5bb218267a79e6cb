"""Training: batches lose nothing, loss and gradients are exact, a resumed loop repeats an undisturbed one."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.config import DataConfig
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training import loop
from atlas_ray.training.batching import collate, global_batch_of, plan, total_steps
from atlas_ray.training.masking import Example, training_example
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Message, Selection, Trajectory
from tests.tiny import WORDS, tiny_llama, tiny_tokenizer

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
            Message("assistant", f"Thought: {word}\nAction: go {words[k - 1]}", True),
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
    return [training_example(t, CHOSEN[t.id], chat, 500) for t in TRAJECTORIES_HERE]


def a_config(**options: Any) -> TrainConfig:
    plain: dict[str, Any] = {
        "data": DataConfig(path="data"),
        "dtype": "float32",
        "learning_rate": 1e-3,
        "global_batch": 3,
        "micro_batch_tokens": 120,
        "use_gpu": False,
        "max_length": 500,
        "epochs": 2,
    }
    return TrainConfig(**plain | options)


def write_base(folder: Path) -> str:
    tokenizer = tiny_tokenizer()
    tiny_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# --- batches


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    global_batch=st.integers(1, 12),
    ranks=st.integers(1, 4),
    budget=st.integers(16, 600),
    seed=st.integers(0, 9),
)
def test_every_token_goes_through_once_an_epoch(
    lengths: list[int], global_batch: int, ranks: int, budget: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    examples = [
        Example(str(i), rng.integers(5, 99, n).astype(np.int32), rng.random(n) < 0.5, 1, 1, 0, n)
        for i, n in enumerate(lengths)
    ]
    per_epoch = total_steps(len(examples), global_batch, 1)
    for epoch in range(2):
        seen: Counter[str] = Counter()
        tokens, targets = 0, 0
        for step in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
            batch = global_batch_of(step, len(examples), global_batch, seed)
            assert 1 <= len(batch) <= global_batch
            shares = plan(batch, lengths, ranks, budget)
            assert len({len(share) for share in shares}) == 1
            assert len(shares) == ranks
            for micro_batch in (m for share in shares for m in share):
                ids, loss_mask = collate([examples[i] for i in micro_batch], 0)
                assert ids.numel() <= budget or len(micro_batch) <= 1
                tokens, targets = tokens + int((ids != 0).sum()), targets + int(loss_mask.sum())
                seen.update(examples[i].trajectory_id for i in micro_batch)
        assert seen == {e.trajectory_id: 1 for e in examples}
        assert (tokens, targets) == (sum(lengths), sum(e.loss_tokens for e in examples))


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    first = [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert first == [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert len({tuple(order) for order in first}) == 3


def test_ranks_share_tokens_evenly() -> None:
    lengths = [1000, 400, 300, 200, 100]
    shares = plan(range(5), lengths, 2, 10_000)
    assert [sum(lengths[i] for m in share for i in m) for share in shares] == [1000, 1000]


def test_steps_round_up() -> None:
    assert [total_steps(10, 4, e) for e in (0.1, 1, 1.5, 3)] == [1, 3, 5, 9]


def test_padding_stands_to_the_right_without_loss() -> None:
    short, long = sorted(the_examples(), key=lambda e: e.length)[:: len(TRAJECTORIES_HERE) - 1]
    ids, loss_mask = collate([long, short], 1)
    assert ids.shape == loss_mask.shape == (2, long.length)
    assert ids[1, : short.length].tolist() == short.ids.tolist()
    assert set(ids[1, short.length :].tolist()) == {1}
    assert not loss_mask[1, short.length :].any()
    assert [t.tolist() for t in collate([], 1)] == [[[1]], [[False]]]


# --- loss


def test_hand_computed_loss() -> None:
    """A model that knows only the last token: P(1|0) = 1/2, P(2|1) = 1/4, P(0|2) = 1/8."""
    p = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.125, 0.5, 0.375]])

    class Bigram(torch.nn.Module):
        config = SimpleNamespace()

        def get_decoder(self) -> Any:
            return lambda input_ids, use_cache: SimpleNamespace(
                last_hidden_state=torch.nn.functional.one_hot(input_ids, 3).float()
            )

        def get_output_embeddings(self) -> Any:
            return lambda states: states @ p.log()

    module = loop.StepLoss(Bigram())
    ids = torch.tensor([[0, 1, 2, 0, 1]])
    masks = {(1,): 2, (2,): 4, (3,): 8, (1, 2, 3): 64, (): 1, (0,): 1}
    for targets, inverse_probability in masks.items():
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[0, list(targets)] = True
        assert module(ids, mask).item() == pytest.approx(math.log(inverse_probability), abs=1e-6)


def test_logits_in_parts_are_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    module = loop.StepLoss(tiny_llama(99))
    ids = torch.randint(0, 99, (3, 40), generator=torch.Generator().manual_seed(0))
    mask = ids % 2 == 0
    whole = module(ids, mask)
    whole.backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    monkeypatch.setattr(loop, "LOGIT_ROWS", 7)
    parts = module(ids, mask)
    parts.backward()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close([p.grad for p in module.parameters()], gradients, rtol=1e-4, atol=1e-6)


def test_a_model_that_changes_its_logits_is_refused() -> None:
    with pytest.raises(UserError, match="final_logit_softcapping"):
        loop.StepLoss(tiny_llama(99, final_logit_softcapping=30.0))


def reference(examples: list[Example], model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one global batch by plain transformers: trajectory by trajectory, labels of -100."""
    count = sum(e.loss_tokens for e in examples)
    total = 0.0
    for e in examples:
        ids = torch.tensor(e.ids.tolist())[None]
        labels = torch.where(torch.tensor(e.loss_mask.tolist()), ids[0], -100)[None]
        loss = model(input_ids=ids, labels=labels).loss * e.loss_tokens / count
        loss.backward()
        total += loss.item()
    return total, {name: p.grad for name, p in model.named_parameters()}


def a_recorder() -> Any:
    """Makes optimizers that change nothing, with the gradients they are given; nested, so that it travels by value."""

    def recorder(module: Any) -> tuple[Any, dict[str, Any]]:
        import torch

        optimizer, seen = torch.optim.SGD(module.parameters(), lr=0.0), {}

        def note(*_: Any) -> None:
            for name, p in module.named_parameters():
                full = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                seen[name.removeprefix("model.")] = full.clone()

        optimizer.register_step_pre_hook(note)
        return [optimizer], seen

    return recorder


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("micro_batch_tokens", [16, 120, 10_000])
def test_loss_and_gradients_equal_plain_transformers(micro_batch_tokens: int) -> None:
    examples = the_examples()
    config = a_config(global_batch=7, epochs=1, clip=1e9, micro_batch_tokens=micro_batch_tokens)
    module = loop.prepare(tiny_llama(80), config, CPU)
    optimizers, seen = a_recorder()(module)
    steps: list[dict[str, Any]] = []
    loop.fit(module, optimizers, examples, config, CPU, on_step=steps.append)
    loss, gradients = reference(examples, tiny_llama(80))
    assert [s["loss"] for s in steps] == [pytest.approx(loss, abs=1e-5)]
    assert steps[0]["loss_tokens"] == sum(e.loss_tokens for e in examples)
    assert_equal_gradients(seen, gradients)


def test_the_reference_notices_a_mask_that_is_off_by_one() -> None:
    examples = the_examples()
    loss, _ = reference(examples, tiny_llama(80))
    for e in examples:
        e.loss_mask[:] = np.roll(e.loss_mask, -1)
    shifted, _ = reference(examples, tiny_llama(80))
    assert abs(loss - shifted) > 1e-3


def test_two_ranks_equal_plain_transformers(ray_cluster: None, tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    examples, base = the_examples(), write_base(tmp_path / "base")
    config = a_config(global_batch=7, epochs=1, clip=1e9)
    recorder = a_recorder()

    def work(_: dict[str, Any]) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from atlas_ray.training import loop

        torch.set_num_threads(1)
        module = loop.prepare(AutoModelForCausalLM.from_pretrained(base), config, torch.device("cpu"))
        (optimizers, seen), steps = recorder(module), []
        loop.fit(module, optimizers, examples, config, torch.device("cpu"), on_step=steps.append)
        return steps, {k: v.numpy() for k, v in seen.items()}, type(module).__name__

    trainer = TorchTrainer(
        work,
        train_loop_config={},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    )
    steps, found, kind = trainer.fit().return_value
    tokenizer_size = len(tiny_tokenizer())
    loss, gradients = reference(examples, tiny_llama(tokenizer_size))
    assert kind == "FSDPStepLoss"
    assert [s["loss"] for s in steps] == [pytest.approx(loss, abs=1e-5)]
    assert_equal_gradients({k: torch.from_numpy(v) for k, v in found.items()}, gradients)


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


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_resuming_repeats_an_undisturbed_run_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = a_config(optimizer=optimizer, epochs=3, checkpoint_steps=4)
    whole, _, steps = run_locally(config)

    class StopError(Exception):
        pass

    module = loop.prepare(tiny_llama(80), config, CPU)
    optimizers = loop.make_optimizers(module, config)

    def stop(step: int) -> None:
        if step == 4:
            loop.save_state(tmp_path / "state", module, optimizers, step)
            raise StopError

    first: list[dict[str, Any]] = []
    with pytest.raises(StopError):
        loop.fit(module, optimizers, the_examples(), config, CPU, on_step=first.append, on_checkpoint=stop)

    module = loop.prepare(tiny_llama(80, seed=1), config, CPU)
    optimizers = loop.make_optimizers(module, config)
    done = loop.load_state(tmp_path / "state", module, optimizers)
    second: list[dict[str, Any]] = []
    loop.fit(module, optimizers, the_examples(), config, CPU, on_step=second.append, done=done)
    assert done == 4
    assert curve(first + second) == curve(steps)
    torch.testing.assert_close(module.state_dict(), whole.state_dict(), rtol=0, atol=0)


def curve(steps: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(s[k] for k in ("step", "loss", "grad_norm", "learning_rate", "tokens")) for s in steps]


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = tiny_llama(80)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(AtlasError, match="loss is nan at step 1"):
        run_locally(a_config(), model)
