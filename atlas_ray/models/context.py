"""Trajectories whose tokens several processes share (context parallelism), and the attention of such a process's part.

Flows in: the lengths of a packed row's trajectories, and a process's own queries, keys and values; flows out: attention
of its queries to all that stands before them, wherever that was computed. Keys and values are gathered, their gradients
summed and scattered again: the result is one process's, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.nn.attention.bias import causal_lower_right


def can_share(model: Any) -> bool:
    """Whether a model that attends within packed trajectories does so alike, whatever part of them a process has.

    Neither dropout of attention is drawn alike, nor are rotary frequencies that follow the longest position in sight.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {part.get("rope_type") for part in (rope, *rope.values()) if isinstance(part, dict)}
    return not getattr(config, "attention_dropout", 0) and not kinds & {"dynamic", "longrope"}


class SharedRow:
    """One process's view of a packed row that the processes of a group share.

    Args:
        lengths: Of the whole trajectories.
        pieces: Of this process, in order: the number of a trajectory, and the tokens of it, from and to.
        order: int64, (tokens of the row,): where each token stands in what is gathered.
        most: Tokens that any of the processes has at most.
        group: The processes.
    """

    def __init__(
        self, lengths: tuple[int, ...], pieces: Sequence[tuple[int, int, int]], order: Tensor, most: int, group: Any
    ) -> None:
        self.lengths, self.pieces, self._order, self._most, self._group = lengths, pieces, order, most, group

    def segments(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each piece its queries, and the keys and values up to its end; all (1, heads, tokens, head size)."""
        own = torch.cat([key, value], -1)[0].transpose(0, 1)
        padded = F.pad(own, (0, 0, 0, 0, 0, self._most - own.shape[0])).contiguous()
        row = all_gather_tensor_autograd(padded, 0, self._group).index_select(0, self._order).transpose(0, 1)[None]
        keys, values = (
            whole.split(self.lengths, dim=2) for whole in row.split((key.shape[-1], value.shape[-1]), dim=-1)
        )
        queries = query.split([end - begin for _, begin, end in self.pieces], dim=2)
        return [
            (q, keys[i][:, :, :end], values[i][:, :, :end]) for q, (i, _, end) in zip(queries, self.pieces, strict=True)
        ]


def attend_behind_prefix(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of queries that are the last of as many tokens as there are keys, causal among themselves.

    No matrix of all pairs stands in memory.
    """
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    if q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, causal_lower_right(q.shape[2], k.shape[2]), scale=scale)
    return _BehindPrefix.apply(q, k, v, scale)  # type: ignore[no-any-return, no-untyped-call]


class _BehindPrefix(torch.autograd.Function):
    """On CPU, whose kernel knows square causal masks alone: all of the prefix, own tokens causally, weighed by their
    sums of exponentials. With the sums of both the kernel's backward pass gives each part's exact gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        before = k.shape[2] - q.shape[2]
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        prefix, prefix_sum = attend(q, k[:, :, :before], v[:, :, :before], 0.0, False, scale=scale)
        own, own_sum = attend(q, k[:, :, before:], v[:, :, before:], 0.0, True, scale=scale)
        total = torch.logaddexp(prefix_sum, own_sum)
        shares = ((part_sum - total).exp()[..., None] for part_sum in (prefix_sum, own_sum))
        out = sum(part * share for part, share in zip((prefix, own), shares, strict=True)).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        q, k, v, out, total = ctx.saved_tensors
        before = k.shape[2] - q.shape[2]
        grads = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, q, k[:, :, part], v[:, :, part], out, total, 0.0, causal, scale=ctx.scale
            )
            for part, causal in ((slice(before), False), (slice(before, None), True))
        ]
        (q_prefix, *prefix), (q_own, *own) = grads
        return q_prefix + q_own, *(torch.cat(both, 2) for both in zip(prefix, own, strict=True)), None
