"""Muon: the step is torch's own but for the precision of its iteration, and the directions are nearly orthogonal."""

from __future__ import annotations

import pytest
import torch

from atlas_ray.training.model.muon import Muon, orthogonalized

SHAPES = [(24, 24), (24, 24), (64, 24), (24, 64), (24, 64)]


def matrices(seed: int) -> list[torch.nn.Parameter]:
    numbers = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=numbers)) for shape in SHAPES]


def test_five_steps_are_torchs() -> None:
    mine, theirs = matrices(0), matrices(0)
    settings = {"lr": 0.02, "weight_decay": 0.1}
    for optimizer, weights in ((Muon(mine, **settings), mine), (torch.optim.Muon(theirs, **settings), theirs)):
        for step in range(5):
            for weight, gradient in zip(weights, matrices(1 + step), strict=True):
                weight.grad = gradient.detach()
            optimizer.step()
    for a, b, begun in zip(mine, theirs, matrices(0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * 5 * 0.02)  # bfloat16 beside float32
        assert (a - begun).abs().mean() > 0.005


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 64, 24), (2, 24, 64)])
def test_directions_have_singular_values_near_one_and_the_gradients_vectors(shape: tuple[int, int, int]) -> None:
    gradients = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalized(gradients)
    u, _, vt = torch.linalg.svd(gradients, full_matrices=False)
    inner = u.mT @ found @ vt.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert ((values > 0.3) & (values < 1.3)).all()
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-8)


def test_matrices_without_a_gradient_stay() -> None:
    weights = matrices(0)
    weights[0].grad = torch.ones_like(weights[0])
    Muon(weights, lr=0.1, weight_decay=0.0).step()
    for weight, begun in zip(weights[1:], matrices(0)[1:], strict=True):
        assert torch.equal(weight, begun)
    assert not torch.equal(weights[0], matrices(0)[0])
