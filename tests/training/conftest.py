"""Fixtures of training's tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Sums are bit for bit the same, however many cores there are."""
    torch.set_num_threads(1)
