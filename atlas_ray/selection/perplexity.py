"""Perplexity of every step under a base model (App. B.2, Eq. 5): one forward pass a trajectory, no Ray.

Flows in: trajectories; flows out: one perplexity per step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.selection.budget import budget, record, top_k
from atlas_ray.selection.settings import PerplexitySelector
from atlas_ray.types import Selection, Trajectory

if TYPE_CHECKING:
    import torch

UNSCORED = 0.0  # below any perplexity, which is at least 1
_RESCALING = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_HEAD_ROWS = 1024  # step tokens whose logits exist at once: 0.5 GB in float32 for a vocabulary of 128k


@dataclass(frozen=True, slots=True)
class _Sequence:
    """A trajectory's tokens, cut, and the spans of its steps that lie wholly within the cut."""

    ids: list[int]
    spans: list[tuple[int, int]]
    n_steps: int


class PerplexityScorer:
    """Scores steps with a causal language model.

    Args:
        model: Folder or hub id in Hugging Face format.
        dtype: Of weights and activations; log-probabilities are always float32.
        batch_tokens: Padded tokens of one forward pass; a single longer trajectory gets its own.
        max_length: Tokens of a trajectory that are read; later steps get no score.
        device: torch device; None for CUDA where there is one, else CPU.

    Raises:
        UserError: If the model cannot be loaded, or rescales its logits behind the output head.
    """

    def __init__(
        self,
        model: str,
        dtype: Literal["bfloat16", "float32"] = "float32",
        batch_tokens: int = 8192,
        max_length: int = 8192,
        device: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._format = ChatFormat.load(model)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot load a model from {model!r}: {reason}", "check selector.model") from None
        rescaled = [n for n in _RESCALING if getattr(loaded.config, n, None) not in (None, 1)]
        if rescaled:
            raise UserError(f"{model} changes its logits behind the head ({rescaled[0]})", "score with another model")
        self._body: Any = loaded.base_model.eval().to(self._device)
        self._head: Any = loaded.get_output_embeddings().to(self._device)
        self._batch_tokens, self._max_length = batch_tokens, max_length

    def score(self, trajectories: Sequence[Trajectory]) -> list[tuple[float, ...]]:
        """Perplexities, one per step and trajectory, `UNSCORED` where a step reaches beyond `max_length`.

        Eq. 5: exp of the mean negative log-likelihood, in nats, of the step's own tokens (thought, action, end of
        turn) given all before.
        """
        sequences = [self._sequence(t) for t in trajectories]
        found: dict[int, tuple[float, ...]] = {}
        for batch in _batches([len(s.ids) for s in sequences], self._batch_tokens):
            found |= dict(zip(batch, self._forward([sequences[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(sequences))]

    def _sequence(self, trajectory: Trajectory) -> _Sequence:
        rendered = self._format.render(trajectory.messages)
        spans = [rendered.spans[step.position] for step in trajectory.steps]
        within = [span for span in spans if span is not None and span[1] <= self._max_length]
        # A causal model needs nothing behind the last scored token.
        return _Sequence(rendered.ids[: within[-1][1] if within else 0], within, len(spans))

    def _forward(self, sequences: list[_Sequence]) -> Iterator[tuple[float, ...]]:
        import torch

        longest = max(len(s.ids) for s in sequences)
        if longest == 0:
            yield from ((UNSCORED,) * s.n_steps for s in sequences)
            return
        ids_bl = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask_bl = torch.zeros_like(ids_bl)
        step_bl = torch.zeros_like(ids_bl, dtype=torch.bool)
        for row, s in enumerate(sequences):
            ids_bl[row, : len(s.ids)] = torch.tensor(s.ids)
            mask_bl[row, : len(s.ids)] = 1
            for start, end in s.spans:
                step_bl[row, start:end] = True
        nll_n = self._losses(ids_bl.to(self._device), mask_bl.to(self._device), step_bl.to(self._device))
        at = 0
        for s in sequences:
            scores = []
            for start, end in s.spans:
                mean = nll_n[at : at + end - start].double().mean().item()
                scores.append(math.exp(min(mean, 700.0)))  # 700 nats: where a double ends
                at += end - start
            yield tuple(scores) + (UNSCORED,) * (s.n_steps - len(scores))

    def _losses(self, ids_bl: torch.Tensor, mask_bl: torch.Tensor, step_bl: torch.Tensor) -> torch.Tensor:
        """Negative log-likelihoods of the step tokens, row by row in order (float32, on CPU)."""
        import torch
        from torch.nn.functional import cross_entropy

        with torch.inference_mode():
            hidden_bld = self._body(input_ids=ids_bl, attention_mask=mask_bl, use_cache=False).last_hidden_state
            # The state at one token predicts the next.
            hidden_nd, targets_n = hidden_bld[:, :-1][step_bl[:, 1:]], ids_bl[:, 1:][step_bl[:, 1:]]
            losses = [
                cross_entropy(self._head(h).float(), t, reduction="none")
                for h, t in zip(hidden_nd.split(_HEAD_ROWS), targets_n.split(_HEAD_ROWS), strict=True)
            ]
            return torch.cat(losses).cpu()


def select_perplexity(trajectory: Trajectory, config: PerplexitySelector, scores: tuple[float, ...]) -> Selection:
    """The top k steps by perplexity (App. B.2); an error where no step could be scored."""
    if any(map(math.isnan, scores)):
        return record(trajectory, config, model=config.model, error="not a number: the model's output overflows")
    if not any(scores):
        why = f"too long: every step reaches beyond max_length={config.max_length} tokens"
        return record(trajectory, config, scores=scores, model=config.model, error=why)
    chosen = top_k(scores, budget(config.ratio, len(scores)), above=UNSCORED)
    return record(trajectory, config, chosen, scores=scores, model=config.model)


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in groups of like length whose padded size stays under `batch_tokens`, the longest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
