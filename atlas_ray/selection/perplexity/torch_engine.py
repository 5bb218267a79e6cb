"""Step losses by plain torch: trajectories packed end to end into one forward pass, without padding. No Ray.

Layers see the whole pack as one row of tokens; attention is computed within each trajectory (`models/attention.py`),
so that none sees another and no mask is stored. What all trajectories of an environment begin with is computed once for
those that are scored together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.source import local_model, weights
from atlas_ray.selection.perplexity.scores import Scored, Scores, beginnings, in_order, readable
from atlas_ray.types import Trajectory, Usage

if TYPE_CHECKING:
    from torch import Tensor

    from atlas_ray.models.attention import Beginnings, ContinuedRow

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

        from atlas_ray.models.attention import can_share, use_packed_attention

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
        self._shares = self._packed and can_share(loaded)
        self._body: Any = loaded.base_model.eval().to(self._device)
        self._head: Any = loaded.get_output_embeddings().to(self._device)
        self._batch_tokens = batch_tokens
        try:
            self._losses([Scored([0, 0], [(1, 2)], [1])], [0])
        except NotImplementedError as error:
            raise UserError(f"{model} cannot be packed: {error}", _REMEDY) from None

    def score(self, trajectories: Sequence[Trajectory]) -> list[Scores]:
        """Perplexities of trajectories, one per step."""
        sequences = [Scored.of(t, self._chat, self._limit) for t in trajectories]
        scored = [s for parts in sequences for s in parts]
        envs = [t.env for t, parts in zip(trajectories, sequences, strict=True) for _ in parts]
        begun = beginnings(scored, envs) if self._shares else [0] * len(scored)
        first = {env: i for i, env in reversed([*enumerate(envs)]) if begun[i]}  # for whom the beginning is computed
        numbers = {env: number for number, env in enumerate(first)}
        kept = self._kept([scored[i].ids[: begun[i]] for i in first.values()])
        found: dict[int, dict[int, float]] = {}
        for pack in packs([len(s.ids) - n for s, n in zip(scored, begun, strict=True)], self._batch_tokens):
            before = [numbers.get(envs[i]) for i in pack]
            losses = self._losses([scored[i] for i in pack], [begun[i] for i in pack], kept, before)
            found |= {i: scored[i].perplexities(own) for i, own in zip(pack, losses, strict=True)}
        order, results = iter(range(len(scored))), []
        for trajectory, own in zip(trajectories, sequences, strict=True):
            at = [next(order) for _ in own]
            shared = sum(begun[i] for i in at if first.get(envs[i]) != i)
            usage = Usage(sum(len(s.ids) for s in own), shared, 0, len(own))
            results.append(Scores(in_order(trajectory, [found[i] for i in at]), usage))
        return results

    def _kept(self, shared: Sequence[Sequence[int]]) -> Beginnings:
        """Computes what sequences begin with."""
        from atlas_ray.models.attention import ContinuedRow

        kept: Beginnings = {}
        if shared:
            lengths = tuple(map(len, shared))
            ids = [token for own in shared for token in own]
            self._hidden(ids, [range(n) for n in lengths], ContinuedRow(lengths, kept))
        return kept

    def _hidden(self, ids: Sequence[int], places: Sequence[range], row: ContinuedRow | None) -> Tensor:
        """The last states of a row, (tokens, width): without gradients, and with each sequence at its places."""
        import torch

        lengths, bounds = tuple(map(len, places)), dict[str, Any]()
        if self._packed:
            cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
            bounds = {"lengths": lengths, "cu_seqlens": cu_seqlens.to(self._device), "shared": row}
        positions_l = torch.tensor([place for own in places for place in own])
        with torch.inference_mode():
            return self._body(  # type: ignore[no-any-return]
                input_ids=torch.tensor(ids)[None].to(self._device),
                position_ids=positions_l[None].to(self._device),
                use_cache=False,
                **bounds,
            ).last_hidden_state[0]

    def _losses(
        self,
        pack: Sequence[Scored],
        begun: Sequence[int],
        kept: Beginnings | None = None,
        numbers: Sequence[int | None] = (),
    ) -> list[list[float]]:
        """Negative log-likelihoods of the step tokens, per sequence (computed in float32).

        Args:
            begun: Tokens of each sequence whose keys and values are kept.
            kept: There.
            numbers: Under which number, if any.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from atlas_ray.models.attention import ContinuedRow

        places = [range(n, len(s.ids)) for s, n in zip(pack, begun, strict=True)]
        ids = [token for s, n in zip(pack, begun, strict=True) for token in s.ids[n:]]
        at, targets = 0, []
        for s, own in zip(pack, places, strict=True):
            targets += [at + i - own.start for start, end in s.spans for i in range(start, end)]
            at += len(own)
        row = None if kept is None or not any(begun) else ContinuedRow(tuple(map(len, places)), kept, numbers)
        hidden_ld, targets_n = self._hidden(ids, places, row), torch.tensor(targets)
        with torch.inference_mode():
            # The state at one token predicts the next.
            hidden_nd = hidden_ld[(targets_n - 1).to(self._device)]
            wanted_n = torch.tensor(ids)[targets_n].to(self._device)
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
