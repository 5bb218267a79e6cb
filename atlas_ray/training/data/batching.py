"""Which trajectories go through which worker in which forward pass, and how much each of their tokens counts.

Flows in: the lengths of all examples; flows out: indices, and packed tensors. All is a pure function of (seed, lengths,
step): nothing is stored between steps, a resumed run computes the same batches, and every worker knows the share of all
others without communication.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from atlas_ray.runs.seeds import derive_seed
from atlas_ray.training.data.examples import Example
from atlas_ray.training.settings import Objective

if TYPE_CHECKING:
    import torch


def total_steps(examples: int, global_batch_size: int, epochs: float) -> int:
    """Optimizer steps of a run; the last batch of an epoch may be smaller."""
    return math.ceil(epochs * math.ceil(examples / global_batch_size))


def global_batch_of(step: int, examples: int, global_batch_size: int, seed: int) -> list[int]:
    """Indices of the examples of optimizer step `step` (from 1): every example once an epoch, in a new order each."""
    epoch, batch = divmod(step - 1, math.ceil(examples / global_batch_size))
    order = _order(examples, derive_seed(seed, "order", epoch))
    return order[batch * global_batch_size : (batch + 1) * global_batch_size]


@lru_cache(maxsize=1)  # all steps of an epoch ask for the same
def _order(examples: int, seed: int) -> list[int]:
    order = list(range(examples))
    random.Random(seed).shuffle(order)
    return order


def pack_micro_batches(
    batch: Sequence[int], lengths: Sequence[int], costs: Sequence[float], ranks: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Splits a global batch into every rank's micro-batches.

    Ranks get about the same work, and exactly the same number of micro-batches (FSDP's collectives want that): where
    one has less to do its last ones are empty. A micro-batch packs trajectories of at most `micro_batch_tokens` tokens
    together, first fit, the costliest first; a longer trajectory goes alone.

    Args:
        batch: Indices of examples.
        lengths: Of all examples, in tokens.
        costs: Of all examples, in any unit.

    Returns:
        Per rank a list of micro-batches of indices.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for index in sorted(batch, key=lambda i: (-costs[i], i)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += costs[index]
    packed = [_first_fit(share, lengths, micro_batch_tokens) for share in shares]
    count = max(len(micro_batches) for micro_batches in packed)
    return [micro_batches + [[]] * (count - len(micro_batches)) for micro_batches in packed]


def _first_fit(indices: Sequence[int], lengths: Sequence[int], micro_batch_tokens: int) -> list[list[int]]:
    packed: list[list[int]] = []
    room: list[int] = []
    for index in indices:
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
        cu_seqlens: int32, (trajectories + 1,): the cumulative lengths, from 0.
        rows: int64, (n,): where in `ids` the prediction of a token that carries loss stands: one before it.
        targets: int64, (n,): the tokens that carry loss.
        weights: float32, (n,): how much each of them counts.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = (f.name for f in fields(self) if f.name != "lengths")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in tensors})


def collate(examples: Sequence[Example], objective: Objective) -> Batch:
    """Packs examples. Of none comes one token without loss, to run through a worker that has nothing to do."""
    import torch

    lengths = tuple(e.length for e in examples) or (1,)
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    ids = np.concatenate([e.ids for e in examples] or [np.zeros(1, np.int32)]).astype(np.int64)
    spans = [span + start for e, start in zip(examples, cu_seqlens, strict=False) for span in e.spans]
    places = np.concatenate([np.arange(*span) for span in spans] or [np.zeros(0, np.int64)])
    weights = [token_weights(e, objective) for e in examples] or [np.zeros(0, np.float32)]
    return Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        lengths=lengths,
        cu_seqlens=torch.from_numpy(cu_seqlens),
        rows=torch.from_numpy(places - 1),
        targets=torch.from_numpy(ids[places]),
        weights=torch.from_numpy(np.concatenate(weights)),
    )


def token_weights(example: Example, objective: Objective) -> NDArray[np.float32]:
    """Weights of an example's loss tokens, in order, float32, (loss_tokens,).

    `token`: 1. `step`: one over the tokens of the token's own step. `trajectory`: one over the example's loss tokens.
    The loss of a global batch is the sum of weight x negative log-likelihood over its `loss_denominator`, wherever a
    token was computed.
    """
    sizes = example.spans[:, 1] - example.spans[:, 0]
    if objective == "step":
        return np.repeat(1 / sizes, sizes).astype(np.float32)
    return np.full(sizes.sum(), 1 if objective == "token" else 1 / sizes.sum(), dtype=np.float32)


def loss_denominator(examples: Iterable[Example], objective: Objective) -> int:
    """What the loss is a mean of: the number of loss tokens, of steps that carry loss, or of trajectories."""
    count = {"token": lambda e: e.loss_tokens, "step": lambda e: len(e.spans), "trajectory": lambda _: 1}[objective]
    return sum(count(example) for example in examples)
