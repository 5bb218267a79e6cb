"""The budget rule: exact arithmetic, ties, and another ratio from the same scores."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.selection.budget import budget, recut, top_k
from atlas_ray.types import Selection


@pytest.mark.parametrize(
    ("ratio", "n_steps", "steps"),
    [
        (0.7, 90, 63),  # 62 in binary floats
        (0.29, 100, 29),  # 28 in binary floats
        (0.3, 10, 3),
        (0.3, 9, 2),
        (0.3, 3, 1),
        (0.3, 1, 1),
        (0.1, 4, 1),
        (1e-5, 10, 1),
        (1.0, 7, 7),
        (0.3, 0, 0),
    ],
)
def test_budget(ratio: float, n_steps: int, steps: int) -> None:
    assert budget(ratio, n_steps) == steps


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_budget_of_a_percentage_is_integer_division(percent: int, n_steps: int) -> None:
    assert budget(percent / 100, n_steps) == max(1, Fraction(percent, 100) * n_steps // 1)


@pytest.mark.parametrize(
    ("scores", "k", "above", "steps"),
    [
        ([1.0, 3.0, 2.0], 2, None, (2, 3)),
        ([5.0, 1.0, 5.0, 5.0], 2, None, (1, 3)),  # ties to the earlier step
        ([0.0, 0.0], 1, None, (1,)),
        ([1.0], 3, None, (1,)),
        ([], 3, None, ()),
        ([1.0, 2.0], 0, None, ()),
        ([0.0, 2.0, 0.0], 2, 0.0, (2,)),
        ([-1.0, -2.0], 1, None, (1,)),
    ],
)
def test_top_k(scores: list[float], k: int, above: float | None, steps: tuple[int, ...]) -> None:
    assert top_k(scores, k, above) == steps


@given(st.lists(st.floats(-10, 10)), st.integers(0, 20))
def test_top_k_are_the_highest(scores: list[float], k: int) -> None:
    chosen = top_k(scores, k)
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) == min(k, len(scores))
    rest = [s for t, s in enumerate(scores, 1) if t not in chosen]
    assert not chosen or not rest or min(scores[t - 1] for t in chosen) >= max(rest)


def test_another_ratio_is_a_reread() -> None:
    scores = (1.5, 4.0, 0.0, 2.0, 3.0, 1.1, 1.2, 1.3, 1.4, 0.0)
    selection = Selection("a", "maze", "maze_1", "perplexity", 0.1, 10, (2,), scores=scores)
    assert recut(selection, 0.3).chosen == (2, 4, 5)
    assert recut(selection, 1.0).chosen == (1, 2, 4, 5, 6, 7, 8, 9)  # unscored steps never
    assert recut(selection, 1.0, above=2.0).chosen == (2, 5)
    with pytest.raises(ValueError, match="random keeps no scores"):
        recut(Selection("a", "maze", "maze_1", "random", 0.1, 10, (2,)), 0.3)
