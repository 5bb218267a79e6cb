"""Values and the rule of criticality, by hand."""

from __future__ import annotations

import pytest

from atlas_ray.selection.value import critical, differences, values

REWARDS = [
    [0.0, 0.0, 0.0, 1.0, 0.0],  # from scratch: 0.2
    [0.0, 1.0, 0.0, 0.0, 0.0],  # after step 1: 0.2
    [1.0, 1.0, 1.0, 0.0, 0.0],  # after step 2: 0.6
    [1.0, 1.0, 1.0, 0.5, 0.0],  # after step 3: 0.7
    [1.0],  # the recorded reward
]


def test_values_and_critical_steps_by_hand() -> None:
    q = values(REWARDS)
    assert q == pytest.approx([0.2, 0.2, 0.6, 0.7, 1.0])
    assert differences(q) == (0.0, 0.4, 0.1, 0.3)
    assert critical(q, 0.1) == (2, 4)  # 0.7 - 0.6 equals the threshold: not critical
    assert critical(q, 0.1, ratio=0.3) == (2,)
    assert critical(q, 0.4) == ()
    assert critical(q, -0.1) == (1, 2, 3, 4)


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.3), (0.1, 0.2), (0.7, 0.8), (0.8, 0.9)])
def test_a_difference_equal_to_the_threshold_is_not_critical(before: float, after: float) -> None:
    assert critical([before, after], 0.1) == ()
    assert critical([before, after + 0.001], 0.1) == (1,)


def test_discounted_multiplies_by_the_rounds_still_taken() -> None:
    q = values([[1.0, 0.0], [1.0, 0.5], [1.0]], "discounted", 0.9, [[3, 9], [1, 2], [0]])
    assert q == pytest.approx([0.9**3 / 2, (0.9 + 0.5 * 0.81) / 2, 1.0])
    with pytest.raises(ValueError, match="rounds"):
        values([[1.0], [1.0]], "discounted")


def test_eq9_is_the_literal_sum_and_decreases_along_a_success() -> None:
    q = values([[0.5], [0.5], [1.0]], "eq9", 0.9)
    assert q == pytest.approx([0.5 + 0.9 * 0.5 + 0.81 * 1.0, 0.5 + 0.9 * 1.0, 1.0])
    assert critical(q, 0.1) == ()


def test_a_start_without_rewards_has_no_value() -> None:
    with pytest.raises(ValueError, match="no value"):
        values([[1.0], [], [1.0]])
