"""Step losses by plain torch: trajectories packed end to end into one forward pass, without padding. No Ray.

Layers see the whole pack as one row of tokens; attention is computed within each trajectory (`training/attention.py`),
so that none sees another and no mask is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.source import local_model, weights
from atlas_ray.selection.perplexity.scores import Scored, in_order, readable
from atlas_ray.types import Trajectory

_UNKNOWN = ("attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling")
_HEAD_ROWS = 1024  # step tokens whose logits exist at once: 0.5 GB in float32 for a vocabulary of 128k
_LAYERS = {"full_attention", "sliding_attention"}
_REMEDY = "score with selector.engine=vllm, or another model"


class TorchScorer:
    """Scores steps with a causal language model of transformers.

    Args:
        model: Folder or hub id in Hugging Face format.
        dtype: Of weights and activations; log-probabilities are always float32.
        batch_tokens: Tokens of one forward pass; a single longer trajectory gets its own.
        max_length: Tokens of a trajectory that are read; later steps get no score.
        device: torch device; None for CUDA where there is one, else CPU.
        threads: Of this process on CPU; None leaves torch's own number.
        chat_template: In place of the tokenizer's own.

    Raises:
        UserError: If the model cannot be loaded, does not attend by transformers' common interface, mixes tokens by
            other means than full or sliding attention, or rescales its logits.
    """

    def __init__(
        self,
        model: str,
        dtype: Literal["bfloat16", "float32"] = "float32",
        batch_tokens: int = 4096,
        max_length: int = 8192,
        device: str | None = None,
        threads: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from atlas_ray.models.attention import use_packed_attention

        if threads is not None:
            torch.set_num_threads(threads)
        place, self._chat = local_model(model), ChatFormat.load(model, template=chat_template)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype), **weights())
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot load a model from {model!r}: {reason}", "check selector.model") from None
        config = loaded.config.get_text_config()
        rescaled = [n for n in _UNKNOWN if getattr(config, n, None) not in (None, 1)]
        if rescaled:
            raise UserError(f"{model} changes its logits in a way that is not known here ({rescaled[0]})", _REMEDY)
        foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
        if foreign or loaded._is_stateful or not loaded._supports_attention_backend:
            what = foreign[0] if foreign else type(loaded).__name__
            raise UserError(f"{model} cannot be packed: tokens would see other trajectories ({what})", _REMEDY)
        self._limit = readable(max_length, getattr(config, "max_position_embeddings", None))
        self._packed = use_packed_attention(loaded, self._limit)
        self._body: Any = loaded.base_model.eval().to(self._device)
        self._head: Any = loaded.get_output_embeddings().to(self._device)
        self._batch_tokens = batch_tokens
        try:
            self._losses([Scored([0, 0], [(1, 2)], [1])])
        except NotImplementedError as error:
            raise UserError(f"{model} cannot be packed: {error}", _REMEDY) from None

    def score(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Perplexities, one per step and trajectory, `UNSCORED` where a step reaches beyond the limit."""
        sequences = [Scored.of(t, self._chat, self._limit) for t in trajectories]
        scored = [s for parts in sequences for s in parts]
        found: dict[int, dict[int, float]] = {}
        for pack in packs([len(s.ids) for s in scored], self._batch_tokens):
            for i, losses in zip(pack, self._losses([scored[i] for i in pack]), strict=True):
                found[i] = scored[i].perplexities(losses)
        order = iter(range(len(scored)))
        parts = [[found[next(order)] for _ in own] for own in sequences]
        return [in_order(t, own) for t, own in zip(trajectories, parts, strict=True)]

    def _losses(self, pack: list[Scored]) -> list[list[float]]:
        """Negative log-likelihoods of the step tokens, per trajectory (computed in float32)."""
        import torch
        from torch.nn.functional import cross_entropy

        lengths = [len(s.ids) for s in pack]
        ids_l = torch.tensor([token for s in pack for token in s.ids])
        positions_l = torch.cat([torch.arange(n) for n in lengths])
        at, targets = 0, []
        for s, n in zip(pack, lengths, strict=True):
            targets += [at + i for start, end in s.spans for i in range(start, end)]
            at += n
        targets_n = torch.tensor(targets)
        bounds: dict[str, Any] = {}
        if self._packed:
            cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
            bounds = {"lengths": tuple(lengths), "cu_seqlens": cu_seqlens.to(self._device)}
        with torch.inference_mode():
            hidden_ld = self._body(
                input_ids=ids_l[None].to(self._device),
                position_ids=positions_l[None].to(self._device),
                use_cache=False,
                **bounds,
            ).last_hidden_state[0]
            # The state at one token predicts the next.
            hidden_nd, wanted_n = hidden_ld[(targets_n - 1).to(self._device)], ids_l[targets_n].to(self._device)
            losses_n = torch.cat(
                [
                    cross_entropy(self._head(h).float(), w, reduction="none")
                    for h, w in zip(hidden_nd.split(_HEAD_ROWS), wanted_n.split(_HEAD_ROWS), strict=True)
                ]
            )
        counts = [sum(end - start for start, end in s.spans) for s in pack]
        return [part.tolist() for part in losses_n.cpu().split(counts)]


def packs(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in groups whose sum stays within `batch_tokens`, the longest first; empty trajectories in none."""
    pack: list[int] = []
    total = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[i] == 0:
            break
        if pack and total + lengths[i] > batch_tokens:
            yield pack
            pack, total = [], 0
        pack.append(i)
        total += lengths[i]
    if pack:
        yield pack
