"""Attention of trajectories packed into one row: each sees itself alone, and nothing is computed between them.

Flows in: queries, keys and values of a row; flows out: attention within each trajectory, causal and exact. Registered
with transformers under a name of its own, so that the layers of any model that takes foreign attention call it.
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from atlas_ray.models.context import SharedRow, attend_behind_prefix

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


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    lengths: tuple[int, ...],
    cu_seqlens: Tensor,
    shared: SharedRow | None = None,
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
        shared: Where several processes share the row: `tokens` are this one's, `lengths` the whole trajectories'.
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
        apart = shared.segments(query, key, value)
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
