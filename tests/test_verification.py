"""Table 6's starts: from scratch, after each critical step, and after as many other steps near by."""

from __future__ import annotations

from atlas_ray.evaluation.verification import starts
from atlas_ray.types import Message, Trajectory


def a_trajectory(steps: int) -> Trajectory:
    turns = [
        m
        for i in range(steps)
        for m in (Message("user", f"o{i}"), Message("assistant", f"Action: a{i}", trainable=True))
    ]
    return Trajectory("maze/maze_1", "maze", "maze_1", tuple(turns))


def test_each_critical_step_gets_a_control_beside_it() -> None:
    found = starts(a_trajectory(10), (2, 7), seed=0)
    assert found["from scratch"] == {0}
    assert found["from critical step"] == {2, 7}
    assert len(found["from other step"]) == 2
    assert found["from other step"] <= {1, 3, 6, 8}
    assert starts(a_trajectory(10), (2, 7), seed=0) == found


def test_nothing_starts_after_the_last_step_or_twice() -> None:
    found = starts(a_trajectory(4), (1, 2, 3, 4), seed=0)
    assert found["from critical step"] == {1, 2, 3}
    assert found["from other step"] == set()
