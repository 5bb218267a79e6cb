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
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Piece(NamedTuple):
    """Tokens `begin` to `end` of the row's trajectory number `trajectory`."""

    trajectory: int
    begin: int
    end: int


def pieces_of(lengths: Sequence[int], ranks: int, rank: int) -> list[Piece]:
    """What process `rank` of `ranks` has of a row: of each trajectory, cut into 2 x ranks, two pieces; none is empty.

    One from the front and the matching one from the back: all processes have equally many pairs of tokens.
    """
    cuts = [
        Piece(i, n * place // (2 * ranks), n * (place + 1) // (2 * ranks))
        for i, n in enumerate(lengths)
        for place in (rank, 2 * ranks - 1 - rank)
    ]
    return [piece for piece in cuts if piece.begin < piece.end]


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
        pieces: Where several processes share the row: what this one has of it. `ids` and `positions` are then its
            tokens, `rows` stand among them, and `lengths` and `cu_seqlens` are the whole row's.
        order: int64, (tokens of the row,): where each stands among the tokens of all processes, each with room for
            `most`.
        most: Tokens that one of them has at most.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    pieces: tuple[Piece, ...] = ()
    order: torch.Tensor | None = None
    most: int = 0

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        import torch

        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {n: v.to(device, non_blocking=True) for n, v in values.items() if isinstance(v, torch.Tensor)}
        return replace(self, **(values | moved))

    def part(self, ranks: int, rank: int) -> Batch:
        """What one of the processes that share a row has of it. A token to predict goes with the one before it."""
        import torch

        starts, places, order = self.cu_seqlens.tolist(), [], torch.empty(self.ids.shape[1], dtype=torch.int64)
        shares = [pieces_of(self.lengths, ranks, k) for k in range(ranks)]
        for share in shares:
            places.append(torch.cat([torch.arange(starts[i] + a, starts[i] + b) for i, a, b in share]))
        most = max(map(len, places))
        for k, own in enumerate(places):
            order[own] = torch.arange(k * most, k * most + len(own))
        rows = order[self.rows] - rank * most
        here = (rows >= 0) & (rows < most)
        return replace(
            self,
            ids=self.ids[:, places[rank]],
            positions=self.positions[:, places[rank]],
            rows=rows[here],
            targets=self.targets[here],
            weights=self.weights[here],
            pieces=tuple(shares[rank]),
            order=order,
            most=most,
        )


def collate(examples: Sequence[Example], objective: Objective, ranks: int = 1, rank: int = 0) -> Batch:
    """Packs examples. Of none comes one token without loss, to run through a worker that has nothing to do.

    Args:
        ranks: Workers that share the row; `rank` is the one whose part is wanted. Where no trajectory is long enough
            for each of them to have some of it, one without loss is.
    """
    import torch

    least = 1 if ranks == 1 else 2 * ranks
    lengths = tuple(e.length for e in examples)
    filling = [] if max(lengths, default=0) >= least else [np.zeros(least, np.int32)]
    lengths += tuple(map(len, filling))
    cu_seqlens = np.cumsum([0, *lengths], dtype=np.int32)
    ids = np.concatenate([*(e.ids for e in examples), *filling]).astype(np.int64)
    spans = [span + start for e, start in zip(examples, cu_seqlens, strict=False) for span in e.spans]
    places = np.concatenate([np.arange(*span) for span in spans] or [np.zeros(0, np.int64)])
    weights = [token_weights(e, objective) for e in examples] or [np.zeros(0, np.float32)]
    batch = Batch(
        ids=torch.from_numpy(ids)[None],
        positions=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        lengths=lengths,
        cu_seqlens=torch.from_numpy(cu_seqlens),
        rows=torch.from_numpy(places - 1),
        targets=torch.from_numpy(ids[places]),
        weights=torch.from_numpy(np.concatenate(weights)),
    )
    return batch if ranks == 1 else batch.part(ranks, rank)


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
