"""Batches: nothing is lost, nothing goes through twice, workers have equal work, and weights are what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.training.data.batching import (
    collate,
    global_batch_of,
    loss_denominator,
    pack_micro_batches,
    token_weights,
    total_steps,
)
from atlas_ray.training.data.examples import Example
from atlas_ray.training.estimate import Flops
from tests.support.tiny import tiny_llama


def an_example(length: int, *spans: tuple[int, int], first_id: int = 5, name: str = "x") -> Example:
    ids = np.arange(first_id, first_id + length, dtype=np.int32)
    return Example(name, ids, np.array(spans, np.int32).reshape(-1, 2), len(spans), len(spans), 0, length)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    global_batch_size=st.integers(1, 12),
    ranks=st.integers(1, 4),
    budget=st.integers(16, 600),
    seed=st.integers(0, 9),
)
def test_every_token_goes_through_once_an_epoch(
    lengths: list[int], global_batch_size: int, ranks: int, budget: int, seed: int
) -> None:
    examples = [an_example(n, *([(n // 2, n)] if n > 1 else []), name=str(i)) for i, n in enumerate(lengths)]
    per_epoch = total_steps(len(examples), global_batch_size, 1)
    for epoch in range(2):
        seen: Counter[str] = Counter()
        tokens, targets = 0, 0
        for step in range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1):
            batch = global_batch_of(step, len(examples), global_batch_size, seed)
            assert 1 <= len(batch) <= global_batch_size
            shares = pack_micro_batches(batch, lengths, lengths, ranks, budget)
            assert len({len(share) for share in shares}) == 1
            assert len(shares) == ranks
            for micro_batch in (m for share in shares for m in share if m):
                packed = collate([examples[i] for i in micro_batch], "token")
                assert packed.ids.numel() <= budget or len(micro_batch) == 1
                tokens, targets = tokens + packed.ids.numel(), targets + len(packed.targets)
                seen.update(examples[i].trajectory_id for i in micro_batch)
        assert seen == {e.trajectory_id: 1 for e in examples}
        assert (tokens, targets) == (sum(lengths), sum(e.loss_tokens for e in examples))


def test_orders_differ_by_epoch_and_seed_and_repeat() -> None:
    first = [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert first == [global_batch_of(step, 64, 64, seed) for step, seed in ((1, 0), (2, 0), (1, 1))]
    assert len({tuple(order) for order in first}) == 3


def test_ranks_share_cost_evenly_not_tokens() -> None:
    lengths = [1000, 400, 300, 200, 100]
    shares = pack_micro_batches(range(5), lengths, lengths, 2, 10_000)
    assert [sum(lengths[i] for m in share for i in m) for share in shares] == [1000, 1000]
    quadratic = [length**2 for length in lengths]
    assert pack_micro_batches(range(5), lengths, quadratic, 2, 10_000) == [[[0]], [[1, 2, 3, 4]]]
    assert pack_micro_batches([0, 1, 2], [10, 10, 10], [9, 5, 4], 2, 10_000) == [[[0]], [[1, 2]]]


def test_micro_batches_are_filled_first_fit() -> None:
    lengths = [60, 50, 40, 30, 20, 300]
    assert pack_micro_batches(range(6), lengths, lengths, 1, 100) == [[[5], [0, 2], [1, 3, 4]]]
    assert pack_micro_batches([0, 5], lengths, lengths, 2, 10) == [[[5]], [[0]]]
    assert pack_micro_batches([0], lengths, lengths, 2, 10) == [[[0]], [[]]]


def test_steps_round_up() -> None:
    assert [total_steps(10, 4, e) for e in (0.1, 1, 1.5, 3)] == [1, 3, 5, 9]


def test_batch_is_one_row_without_padding() -> None:
    first, second = an_example(4, (2, 4)), an_example(5, (1, 2), (3, 5), first_id=20)
    batch = collate([first, second], "step")
    assert batch.ids.tolist() == [[5, 6, 7, 8, 20, 21, 22, 23, 24]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert (batch.lengths, batch.cu_seqlens.tolist()) == ((4, 5), [0, 4, 9])
    assert batch.targets.tolist() == [7, 8, 21, 23, 24]
    assert batch.rows.tolist() == [1, 2, 4, 6, 7]  # a prediction stands one token before its target
    assert batch.weights.tolist() == [0.5, 0.5, 1, 0.5, 0.5]


def test_an_idle_worker_gets_one_token_without_loss() -> None:
    batch = collate([], "token")
    assert (batch.ids.tolist(), batch.positions.tolist(), batch.lengths) == ([[0]], [[0]], (1,))
    assert batch.rows.numel() == batch.targets.numel() == batch.weights.numel() == 0
    assert {batch.rows.dtype, batch.targets.dtype} == {torch.int64}


@pytest.mark.parametrize(
    ("objective", "weights", "count"),
    [
        ("token", [1, 1, 1, 1, 1], 9),
        ("step", [1, 0.25, 0.25, 0.25, 0.25], 3),
        ("trajectory", [0.2, 0.2, 0.2, 0.2, 0.2], 2),
    ],
)
def test_token_weights_and_denominator_of_each_objective(objective: str, weights: list[float], count: int) -> None:
    example, other = an_example(9, (1, 2), (5, 9)), an_example(5, (1, 5))
    assert token_weights(example, objective).tolist() == pytest.approx(weights)  # type: ignore[arg-type]
    assert loss_denominator([example, other], objective) == count  # type: ignore[arg-type]


def test_flops_by_hand() -> None:
    """Two layers of 4 x 64 x 64 for attention and 3 x 64 x 128 for the MLP; a head of 80 x 64; 2 heads of 32."""
    flops = Flops.of(tiny_llama(80))
    assert flops.layers == 6 * 2 * (4 * 64 * 64 + 3 * 64 * 128)
    assert flops.head == 6 * 80 * 64
    assert flops.pairs == 2 * 2 * (2 * 64) * 3  # 2 layers, 2 products, 3 passes' worth of a multiply-add
    assert flops.of_example(3, 1) == 3 * flops.layers + flops.head + 6 * flops.pairs
