"""The loss of a batch (Eq. 4): a model's negative log-likelihood of the tokens that carry loss, each with its weight.

Flows in: a Hugging Face model and packed batches; flows out: a scalar. Only hidden states at loss positions go through
the head, a few rows at a time, and their gradients are taken on the spot: logits never stand in memory as a whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from atlas_ray.errors import UserError
from atlas_ray.models.attention import SharedRow, can_share, use_packed_attention
from atlas_ray.training.data.batching import Batch

LOGIT_ROWS = 2048  # rows of logits that stand in memory at once: 1 GB in float32 with Llama 3's vocabulary
# Settings of models that change their logits behind the head; `StepLoss` knows a soft cap alone.
_LOGIT_CHANGES = ("logits_scaling", "logit_scale")


class StepLoss(nn.Module):
    """A causal language model and the weighted sum of its negative log-likelihoods over the tokens that carry loss.

    Shard this module, not the model: the hooks that gather the embedding and the head fire on the module that is
    called.

    Args:
        max_length: Tokens of the longest trajectory that it will see.
        group: The processes that share each sequence, where several do.

    Raises:
        UserError: If the model scales its logits behind the head, its head is not a plain matrix, or its attention is
            not one that processes can share.
    """

    def __init__(self, model: Any, max_length: int, group: Any = None) -> None:
        super().__init__()
        changes = [n for n in _LOGIT_CHANGES if getattr(model.config, n, None) not in (None, 1, 1.0)]
        if changes:
            raise UserError(
                f"{type(model).__name__} sets {changes[0]}, which the loss does not know", "use another model"
            )
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UserError(f"the head of {type(model).__name__} is a {type(head).__name__}", "use another model")
        self.model = model
        self._softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._packed, self._group = use_packed_attention(model, max_length), group
        if group is not None and not (self._packed and can_share(model)):
            what = f"the attention of {type(model).__name__} is not one that workers can share"
            raise UserError(what, "set context_parallel: 1")

    def forward(self, batch: Batch) -> Tensor:
        """Sums -weight x log p(token | all before it in its trajectory).

        Returns:
            float32 scalar, in nats.
        """
        packing: dict[str, Any] = {"lengths": batch.lengths, "cu_seqlens": batch.cu_seqlens} if self._packed else {}
        if batch.order is not None:
            packing["shared"] = SharedRow(batch.lengths, batch.pieces, batch.order, batch.most, self._group)
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        hidden = decoder(input_ids=batch.ids, position_ids=batch.positions, use_cache=False, **packing)
        states = hidden.last_hidden_state[0, batch.rows]
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        given = states, head.weight, head.bias, batch.targets, batch.weights, self._softcap, torch.is_grad_enabled()
        return FusedLinearCrossEntropy.apply(*given)  # type: ignore[no-any-return, no-untyped-call]


class FusedLinearCrossEntropy(torch.autograd.Function):
    """Linear head and weighted cross-entropy in one, with the gradients computed beside the loss: the logits of a few
    rows are used for both and forgotten. Sums are float32; products are in the states' type."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        token_weights: Tensor,
        softcap: float | None,
        gradients: bool,
    ) -> Tensor:
        """Args:
        states: (n, hidden).
        weight: (vocabulary, hidden).
        targets, token_weights: (n,).
        softcap: Logits become softcap x tanh(logit / softcap), as Gemma-2's.
        gradients: Whether `backward` will be called.
        """
        cast_weight = weight.to(states.dtype)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_states = torch.empty_like(states) if gradients else None
        grad_weight = torch.zeros_like(weight) if gradients and needs_weight else None
        grad_bias = torch.zeros_like(bias) if gradients and bias is not None and needs_bias else None
        for start in range(0, len(targets), LOGIT_ROWS):
            chunk = slice(start, start + LOGIT_ROWS)
            rows, target_ids, factor = states[chunk], targets[chunk, None], token_weights[chunk, None]
            logits = (rows @ cast_weight.T).float()
            if bias is not None:
                logits += bias
            if softcap is not None:
                tanh = logits.div_(softcap).tanh_()
                logits = tanh * softcap
            logsumexp = logits.logsumexp(1, keepdim=True)
            total += ((logsumexp - logits.gather(1, target_ids)) * factor).sum()
            if grad_states is None:
                continue
            # d loss / d logits = weight x (softmax - one at the target)
            grad_logits = logits.sub_(logsumexp).exp_().mul_(factor)
            grad_logits.scatter_add_(1, target_ids, -factor)
            if softcap is not None:
                grad_logits.mul_(tanh.square_().neg_().add_(1))
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0)
            grad_logits = grad_logits.to(states.dtype)
            torch.mm(grad_logits, cast_weight, out=grad_states[chunk])
            if grad_weight is None:
                continue
            if grad_weight.dtype == grad_logits.dtype:
                grad_weight.addmm_(grad_logits.T, rows)
            else:
                grad_weight += grad_logits.T @ rows
        ctx.gradients = grad_states, grad_weight, grad_bias
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        grads = (g if g is None else g.mul_(scale.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None
        return *grads, None, None, None, None
