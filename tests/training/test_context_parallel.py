"""Workers that share sequences compute what one worker does: the same loss and gradients, whoever has which token."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.models.attention import attend_behind_prefix
from atlas_ray.training import loop
from atlas_ray.training.data.batching import collate, pieces_of
from atlas_ray.training.data.examples import Example
from atlas_ray.training.estimate import ModelShape, memory_of
from atlas_ray.training.model.lora import add_adapters
from atlas_ray.training.model.loss import StepLoss
from atlas_ray.training.settings import LoraConfig, TrainConfig
from tests.support.tiny import tiny_llama
from tests.support.training import CPU, a_config, noted_gradients

TOKENS = 8192
WITHIN = 1e-5
LORA = LoraConfig(rank=4, alpha=8)
CELLS = [
    ("single", "full", False),
    ("single", "lora", True),
    ("packed", "full", True),
    ("packed", "lora", False),
    ("short", "full", False),
    ("short", "lora", True),
]


def examples_of(lengths: list[int]) -> list[Example]:
    """Loss on every other stretch of 50 tokens, so that some of it stands at every boundary between workers."""
    generator, made = np.random.default_rng(0), []
    for number, n in enumerate(lengths):
        spans = np.array([(a, min(a + 50, n)) for a in range(1, n, 100)], np.int32).reshape(-1, 2)
        ids = generator.integers(5, 80, n, dtype=np.int32)
        made.append(Example(str(number), ids, spans, len(spans), len(spans), 0, n))
    return made


ROWS = {"single": [TOKENS], "packed": [5000, 2041, 1151], "short": [30, 3, 2, 7]}


def computed(rows: str, tuned: str, recomputed: bool, ranks: int) -> dict[str, Any]:
    """Loss and gradients of one optimizer step of the loop."""
    config = a_config(
        global_batch_size=9,
        epochs=1,
        max_grad_norm=1e9,
        micro_batch_tokens=TOKENS // ranks,
        max_length=TOKENS,
        activation_checkpointing=recomputed,
        num_workers=ranks,
        context_parallel=ranks,
        lora=LORA if tuned == "lora" else None,
    )
    model = tiny_llama(80, layers=2, num_key_value_heads=1, max_position_embeddings=TOKENS)
    if tuned == "lora":
        add_adapters(model, LORA, seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data = torch.full(weight.shape, 0.01)
    module = loop.place_model(model, config, CPU)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
    gradients, steps = noted_gradients(module, optimizer), list[dict[str, Any]]()
    examples = examples_of(ROWS[rows])
    loop.fit(module, [optimizer], examples, config, CPU, validation=examples, on_step=steps.append)
    return {"gradients": gradients} | {k: steps[0][k] for k in ("loss", "validation_loss", "grad_norm", "tokens")}


def sharing(rank: int, world: int, folder: Path, cells: list[tuple[str, str, bool]]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    try:
        torch.save({cell: computed(*cell, ranks=world) for cell in cells}, folder / f"{world}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(sharing, (2, folder, CELLS), nprocs=2)
    return [torch.load(folder / f"2-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("rows", "tuned", "recomputed"), CELLS)
def test_two_ranks_that_share_sequences_compute_what_one_does(
    rows: str, tuned: str, recomputed: bool, two_ranks: list[dict[Any, Any]]
) -> None:
    expected = computed(rows, tuned, False, ranks=1)
    assert expected["tokens"] == sum(ROWS[rows])
    for here in (rank[rows, tuned, recomputed] for rank in two_ranks):
        for name in ("loss", "validation_loss", "grad_norm", "tokens"):
            assert here[name] == pytest.approx(expected[name], rel=WITHIN), name
        assert here["gradients"].keys() == expected["gradients"].keys()
        for name, wanted in expected["gradients"].items():
            off = (here["gradients"][name] - wanted).norm() / wanted.norm()
            assert off < WITHIN, (name, off)


def _one_long_step(rank: int, folder: Path, config: TrainConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = loop.place_model(tiny_llama(80, layers=1, max_position_embeddings=config.max_length), config, CPU)
    examples, steps = examples_of([config.max_length]), list[dict[str, Any]]()
    loop.fit(module, loop.make_optimizers(module, config), examples, config, CPU, on_step=steps.append)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.save((steps[0]["loss"], peak), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_131072_tokens_train_within_the_estimate(tmp_path: Path) -> None:
    tokens = 131_072
    config = a_config(epochs=1, max_length=tokens, num_workers=2, context_parallel=2, activation_checkpointing=True)
    estimate = memory_of(config, ModelShape.of(tiny_llama(80, layers=1)), cuda=False, lengths=[tokens])
    torch.multiprocessing.spawn(_one_long_step, (tmp_path, config), nprocs=2)
    (loss, first), (same, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert loss == same == pytest.approx(np.log(80), rel=0.05)  # of a model that knows nothing yet
    assert estimate.total / 2 < max(first, second) < estimate.total


# --- who has what


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_every_token_belongs_to_one_rank_and_all_have_equal_work(ranks: int) -> None:
    lengths = [1000, 77, 640, 3]
    shares = [pieces_of(lengths, ranks, rank) for rank in range(ranks)]
    places = [(i, k) for share in shares for i, a, b in share for k in range(a, b)]
    assert sorted(places) == [(i, k) for i, n in enumerate(lengths) for k in range(n)]
    pairs = [sum(b * (b + 1) - a * (a + 1) for _, a, b in share) for share in shares]
    assert max(pairs) < 1.05 * min(pairs)


def test_a_token_that_carries_loss_is_predicted_by_the_rank_that_has_the_one_before_it() -> None:
    example = examples_of([16])[0]
    parts = [collate([example], "step", 2, rank) for rank in range(2)]
    assert [part.positions.tolist() for part in parts] == [
        [[0, 1, 2, 3, 12, 13, 14, 15]],
        [[4, 5, 6, 7, 8, 9, 10, 11]],
    ]
    predicted = {
        int(part.positions[0, row]) + 1: int(target)
        for part in parts
        for row, target in zip(part.rows, part.targets, strict=True)
    }
    assert predicted == {place: int(example.ids[place]) for place in range(1, 16)}
    assert sum(float(part.weights.sum()) for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("lengths", [[], [1], [3, 2]])
def test_every_rank_has_a_token_to_run_through(lengths: list[int]) -> None:
    parts = [collate(examples_of(lengths), "token", 4, rank) for rank in range(4)]
    assert min(part.ids.numel() for part in parts) >= 1
    assert sum(len(part.targets) for part in parts) == sum(n - 1 for n in lengths)


# --- attention


def test_attention_behind_a_prefix_is_the_end_of_causal_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, heads, 70, 16, generator=generator).requires_grad_() for heads in (4, 2, 2, 4))
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)[:, :, 40:]
    found = attend_behind_prefix(q[:, :, 40:], k, v, 0.3)
    torch.testing.assert_close(found, whole)
    expected = torch.autograd.grad(whole, (q, k, v), grad[:, :, 40:])
    torch.testing.assert_close(torch.autograd.grad(found, (q, k, v), grad[:, :, 40:]), expected)


# --- what is refused


def test_workers_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(UserError, match="context_parallel: 2 does not divide num_workers"):
        validate(TrainConfig, {"data": {"path": "x"}, "context_parallel": 2, "num_workers": 3})


@pytest.mark.parametrize(
    "options",
    [
        {"attention_dropout": 0.1},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_models_whose_attention_workers_cannot_share_are_refused(options: dict[str, Any]) -> None:
    StepLoss(tiny_llama(80), 100, group="any")
    with pytest.raises(UserError, match=r"attention of LlamaForCausalLM .*\n  set context_parallel: 1"):
        StepLoss(tiny_llama(80, **options), 100, group="any")
