"""Muon: momentum whose matrices are made nearly orthogonal (Jordan et al. 2024), for the layers of small models."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# The quintic iteration of Jordan et al., as torch has it: it takes singular values to between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon`, but in the weights' own type, and for all matrices of one shape at once.

    Torch's own iterates in bfloat16, which is most of a small model's step on a CPU without kernels for it.

    Args:
        matrices: Whole ones: none is sharded.
        lr: Of a square or wide matrix; a tall one's is larger by the root of rows / columns.
        weight_decay: Decoupled.
        momentum: Nesterov's.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes a step along the gradients."""
        for group in self.param_groups:
            alike = defaultdict[torch.Size, list[Tensor]](list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for (rows, columns), matrices in alike.items():
                directions = orthogonalized(torch.stack([self._momentum(m, group["momentum"]) for m in matrices]))
                rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
                for matrix, direction in zip(matrices, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)

    def _momentum(self, matrix: Tensor, momentum: float) -> Tensor:
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: the same singular vectors, singular values near one.

    Args:
        matrices: (number, rows, columns).
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
