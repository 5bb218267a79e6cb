"""Attention of trajectories packed into one row: each sees itself alone, and nothing is computed between them.

Flows in: queries, keys and values of a row; flows out: attention within each trajectory, causal and exact. Registered
with transformers under a name of its own, so that the layers of any model that takes foreign attention call it.

Where several processes share the tokens of each trajectory (context parallelism), a process's queries attend to all
that stands before them, wherever that was computed: keys and values are gathered, their gradients summed and scattered
again. The result is one process's, up to rounding.

Where trajectories begin alike, their beginning's keys and values are computed once and attended to by all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_gather_tensor_autograd
from torch.nn.attention.bias import causal_lower_right

NAME = "atlas_packed"
# What a layer may ask of attention beyond plain causal softmax: those models keep their own implementation.
_SPECIAL = ("s_aux", "position_bias")


def decoder_layers(model: Any) -> nn.ModuleList:
    """The layers of a Hugging Face causal language model's decoder, whatever its architecture calls them."""
    return next(module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList))


def use_packed_attention(model: Any, max_length: int) -> bool:
    """Lets a model attend within packed trajectories at no cost for the pairs between them.

    A model whose attention is special (a window shorter than `max_length`, chunks) keeps its own: transformers then
    masks the pairs between trajectories by the positions, which is as exact and costs time and memory for all pairs.
    Only with a soft cap on the attention's logits, which no kernel of torch knows, windows are computed here too.

    Returns:
        Whether the model changed over.
    """
    from transformers import AttentionInterface

    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    capped = getattr(config, "attn_logit_softcapping", None)
    special = getattr(config, "attention_chunk_size", None) or (window and window < max_length and not capped)
    if special or not getattr(model, "_supports_attention_backend", False):
        return False
    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)
    return True


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

    def segments(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
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


Beginnings = dict[nn.Module, list[tuple[Tensor, Tensor]]]
"""Keys and values of tokens that sequences begin with, by layer; of inference alone."""


class ContinuedRow:
    """A packed row of sequences without their beginnings, or a row of beginnings.

    Args:
        lengths: Of what the row holds, in order.
        beginnings: Of the sequences; where the row holds them itself, they are kept there.
        numbers: Which beginning each sequence has, if any; None: the row holds beginnings.
    """

    def __init__(
        self, lengths: tuple[int, ...], beginnings: Beginnings, numbers: Sequence[int | None] | None = None
    ) -> None:
        self._lengths, self._beginnings, self._numbers = lengths, beginnings, numbers

    def segments(
        self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each sequence its queries, and the keys and values up to its end; all (1, heads, tokens, head size)."""
        queries, keys, values = (x.split(self._lengths, dim=2) for x in (query, key, value))
        pairs = list(zip(keys, values, strict=True))
        if self._numbers is None:
            self._beginnings[layer] = pairs
        else:
            for i, number in enumerate(self._numbers):
                if number is not None:
                    keys_and_values = zip(self._beginnings[layer][number], pairs[i], strict=True)
                    key, value = (torch.cat(both, 2) for both in keys_and_values)
                    pairs[i] = key, value
        return [(q, k, v) for q, (k, v) in zip(queries, pairs, strict=True)]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: tuple[int, ...],
    cu_seqlens: Tensor,
    shared: SharedRow | ContinuedRow | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of the row's trajectories.

    Args:
        query: (1, heads, tokens, head size); `key` and `value` may have fewer heads.
        lengths: Of the trajectories, in order; their sum is `tokens`.
        cu_seqlens: int32, (trajectories + 1,), on the device: the cumulative lengths, from 0.
        shared: Where several processes share the row: `tokens` are this one's, `lengths` the whole trajectories'; or
            where sequences begin with what stands in another row.
        sliding_window: Tokens that one sees, itself among them. Without a soft cap no trajectory is longer.

    Returns:
        (1, tokens, heads, head size), and no weights.
    """
    if attention_mask is not None or any(options.get(name) is not None for name in _SPECIAL):
        raise NotImplementedError(f"{type(module).__name__} wants attention that packing does not know")
    grouped = query.shape[1] != key.shape[1]
    if shared is None:
        apart = list(zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True))
    else:
        apart = shared.segments(module, query, key, value)
    half = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)
    if softcap is not None:
        parts = [_capped(q, k, v, scaling, dropout, softcap, sliding_window) for q, k, v in apart]
    elif half and not dropout and (varlen := _varlen()):
        if shared is None:
            q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
            longest = max(lengths)
            packing: Any = (cu_seqlens, cu_seqlens, longest, longest)
        else:  # a piece's queries are the last of its keys' tokens, which is what the kernel takes them for
            q, k, v = (torch.cat(parts, 2)[0].transpose(0, 1) for parts in zip(*apart, strict=True))
            sizes = [[part.shape[2] for part in parts] for parts in list(zip(*apart, strict=True))[:2]]
            ends = (torch.tensor([0, *accumulate(s)], dtype=torch.int32, device=q.device) for s in sizes)
            packing = (*ends, *map(max, sizes))
        out = varlen(q, k, v, *packing, scale=scaling, window_size=(-1, 0), enable_gqa=grouped)
        return out.unsqueeze(0), None
    elif shared is not None:
        scale = scaling or query.shape[-1] ** -0.5
        parts = [attend_behind_prefix(q, k, v, scale) for q, k, v in apart]
    else:
        options = {"dropout_p": dropout, "is_causal": True, "scale": scaling, "enable_gqa": grouped}
        parts = [F.scaled_dot_product_attention(q, k, v, **options) for q, k, v in apart]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1), None


def attend_behind_prefix(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of queries that are the last of as many tokens as there are keys, causal among themselves.

    No matrix of all pairs stands in memory.
    """
    if q.shape[1] != k.shape[1]:
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


def _capped(
    q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float, softcap: float, window: int | None
) -> Tensor:
    """Causal attention with logits of softcap x tanh(logit / softcap), as in Gemma-2; all pairs stand in memory."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    logits = softcap * torch.tanh(q @ k.mT * ((scaling or q.shape[-1] ** -0.5) / softcap))
    places = torch.arange(k.shape[2], device=q.device)
    back = places[-q.shape[2] :, None] - places
    hidden = (back < 0) | (back >= (window or k.shape[2]))
    weights = logits.masked_fill(hidden, -torch.inf).softmax(-1, dtype=torch.float32).to(q.dtype)
    return F.dropout(weights, dropout) @ v


@cache
def _varlen() -> Any:
    """torch's own variable-length flash attention, where this torch has it; else each trajectory is one kernel call."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "enable_gqa" in inspect.signature(varlen_attn).parameters else None
