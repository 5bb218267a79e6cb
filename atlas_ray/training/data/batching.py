"""Which trajectories go through which worker in which forward pass: a pure function of (seed, lengths, step).

Flows in: the lengths of all examples; flows out: indices. Nothing is stored between steps, so that a resumed run
computes the same batches, and every worker knows all workers' share without a word between them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.data.masking import Example
from atlas_ray.training.data.objective import token_weights
from atlas_ray.training.settings import Objective

if TYPE_CHECKING:
    import torch


def total_steps(examples: int, global_batch_size: int, epochs: float) -> int:
    """Optimizer steps of a run; the last batch of an epoch may be smaller."""
    return math.ceil(epochs * math.ceil(examples / global_batch_size))


def global_batch_of(step: int, examples: int, global_batch_size: int, seed: int) -> list[int]:
    """Indices of the examples of optimizer step `step` (from 1): every example once an epoch, in a new order each."""
    epoch, batch = divmod(step - 1, math.ceil(examples / global_batch_size))
    order = list(range(examples))
    random.Random(derive_seed(seed, "order", epoch)).shuffle(order)
    return order[batch * global_batch_size : (batch + 1) * global_batch_size]


def plan(
    batch: Sequence[int], lengths: Sequence[int], costs: Sequence[float], ranks: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Splits a global batch into every rank's micro-batches.

    Ranks get about the same work, and exactly the same number of micro-batches (FSDP's collectives want that): where
    one has less to do its last ones are empty. A micro-batch packs trajectories of at most `micro_batch_tokens` tokens
    together; a longer trajectory goes alone.

    Args:
        costs: Of each example, in any unit.

    Returns:
        Per rank a list of micro-batches of indices.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for index in sorted(batch, key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += costs[index]
    packed = [_pack(share, lengths, micro_batch_tokens) for share in shares]
    count = max(len(micro_batches) for micro_batches in packed)
    return [micro_batches + [[]] * (count - len(micro_batches)) for micro_batches in packed]


def _pack(longest_first: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    """First fit, longest first."""
    packed: list[list[int]] = []
    room: list[int] = []
    for index in longest_first:
        place = next((k for k, left in enumerate(room) if lengths[index] <= left), None)
        if place is None:
            packed.append([index])
            room.append(micro_batch_tokens - lengths[index])
        else:
            packed[place].append(index)
            room[place] -= lengths[index]
    return packed


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories packed into one row.

    Attributes:
        ids: int64, (1, tokens): one trajectory behind the other, without padding.
        positions: int64, (1, tokens): of each token in its trajectory, from 0.
        lengths: Of the trajectories.
        edges: int32, (trajectories + 1,): the cumulative lengths, from 0.
        rows: int64, (n,): where in `ids` the prediction of a token that carries loss stands: one before it.
        targets: int64, (n,): the tokens that carry loss.
        weights: float32, (n,): how much each of them counts.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    edges: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        return replace(self, **tensors)


_TENSORS = ("ids", "positions", "edges", "rows", "targets", "weights")


def collate(examples: Sequence[Example], objective: Objective) -> Batch:
    """Packs examples. Of none comes one token without loss, to run through a worker that has nothing to do."""
    import torch

    lengths = tuple(e.length for e in examples) or (1,)
    edges = np.cumsum([0, *lengths], dtype=np.int32)
    ids = np.concatenate([e.ids for e in examples] or [np.zeros(1, np.int32)]).astype(np.int64)
    spans = [span + start for e, start in zip(examples, edges, strict=False) for span in e.spans]
    wanted = np.concatenate([np.arange(*span) for span in spans] or [np.zeros(0, np.int64)])
    weights = [token_weights(e, objective) for e in examples] or [np.zeros(0, np.float32)]
    return Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        lengths=lengths,
        edges=torch.from_numpy(edges),
        rows=torch.from_numpy(wanted - 1),
        targets=torch.from_numpy(ids[wanted]),
        weights=torch.from_numpy(np.concatenate(weights)),
    )
