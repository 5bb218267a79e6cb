"""Which trajectories go through which worker in which forward pass: a pure function of (seed, lengths, step).

Flows in: the lengths of all examples; flows out: indices. Nothing is stored between steps, so that a resumed run
computes the same batches, and every worker knows all workers' share without a word between them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.masking import Example

if TYPE_CHECKING:
    import torch


def total_steps(examples: int, global_batch: int, epochs: float) -> int:
    """Optimizer steps of a run; the last batch of an epoch may be smaller."""
    return math.ceil(epochs * math.ceil(examples / global_batch))


def global_batch_of(step: int, examples: int, global_batch: int, seed: int) -> list[int]:
    """Indices of the examples of optimizer step `step` (from 1): every example once an epoch, in a new order each."""
    epoch, batch = divmod(step - 1, math.ceil(examples / global_batch))
    order = list(range(examples))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order[batch * global_batch : (batch + 1) * global_batch]


def plan(batch: Sequence[int], lengths: Sequence[int], ranks: int, micro_batch_tokens: int) -> list[list[list[int]]]:
    """Splits a global batch into every rank's micro-batches.

    Ranks get about the same number of tokens, and exactly the same number of micro-batches (FSDP's collectives want
    that): where one has less to do its last ones are empty. Within a rank trajectories of similar length share a
    micro-batch, of at most `micro_batch_tokens` padded tokens; a longer trajectory goes alone.

    Returns:
        Per rank a list of micro-batches of indices.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for index in sorted(batch, key=lambda i: (-lengths[i], i)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += lengths[index]
    packed = [_pack(share, lengths, micro_batch_tokens) for share in shares]
    count = max(len(micro_batches) for micro_batches in packed)
    return [micro_batches + [[]] * (count - len(micro_batches)) for micro_batches in packed]


def _pack(longest_first: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    packed: list[list[int]] = []
    for index in longest_first:
        if packed and lengths[packed[-1][0]] * (len(packed[-1]) + 1) <= micro_batch_tokens:
            packed[-1].append(index)
        else:
            packed.append([index])
    return packed


def collate(examples: Sequence[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads to the right, which under causal attention no real token sees.

    Returns:
        Token ids, int64 (batch, length), and the loss mask, bool (batch, length). Of no examples: one pad token without
        loss, to run through a worker that has nothing to do.
    """
    import torch

    length = max((e.length for e in examples), default=1)
    ids = np.full((max(1, len(examples)), length), pad_id, dtype=np.int64)
    loss_mask = np.zeros(ids.shape, dtype=bool)
    for row, example in enumerate(examples):
        ids[row, : example.length] = example.ids
        loss_mask[row, : example.length] = example.loss_mask
    return torch.from_numpy(ids), torch.from_numpy(loss_mask)
