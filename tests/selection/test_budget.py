"""The budget rule: exact arithmetic, ties, and another ratio from the same scores."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.baselines import RandomSelector
from atlas_ray.selection.budget import budget, carried, recut, top_k
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.trajectories.index import OUTLINE
from atlas_ray.types import Selection
from tests.selection.test_selection import config_of, data_in, expert


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


@pytest.mark.parametrize(("n_steps", "steps"), [(5, 2), (6, 2), (4, 1), (1, 1), (0, 0), (9, 3)])
def test_the_nearest_number_of_steps(n_steps: int, steps: int) -> None:
    assert budget(0.3, n_steps, nearest=True) == steps


@given(st.integers(1, 100), st.lists(st.integers(1, 40)))
def test_what_one_trajectory_leaves_goes_to_the_next(percent: int, counts: list[int]) -> None:
    found = list(carried(percent / 100, counts))
    assert all(1 <= k <= n for k, n in zip(found, counts, strict=True))
    steps, given_so_far = list(accumulate(counts)), list(accumulate(found))
    for place, (k, total) in enumerate(zip(given_so_far, steps, strict=True)):
        assert k >= percent * total // 100
        # above it only where every trajectory is to have its step
        assert k == percent * total // 100 or found[place] == 1
    whole = list(carried(percent / 100, [100 * n for n in counts]))
    assert sum(whole) == percent * sum(counts)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), min_size=1), st.randoms())
def test_a_budget_depends_on_ids_not_on_where_trajectories_lie(rows: list[tuple[str, int]], draw: Any) -> None:
    def budgets(numbered: list[tuple[int, tuple[str, int]]]) -> dict[str, int]:
        columns = zip(*((f"{env}/{i}", env, str(i), n) for i, (env, n) in numbered), strict=True)
        outline = pa.table([list(column) for column in columns], schema=OUTLINE)
        found = RandomSelector(ratio=0.3).budgets(outline)
        assert found is not None
        return dict(zip(outline["id"].to_pylist(), found.to_pylist(), strict=True))

    numbered = list(enumerate(rows))
    whole, of_a = budgets(numbered), [row for row in numbered if row[1][0] == "a"]
    draw.shuffle(numbered)
    assert budgets(numbered) == whole
    if of_a:  # the other environment changes nothing
        assert budgets(of_a) == {key: k for key, k in whole.items() if key.startswith("a")}


@pytest.mark.parametrize(("rounding", "share"), [("floor", 1 / 6), ("nearest", 2 / 6), ("carry", 0.3)])
def test_a_run_keeps_the_share_of_the_whole_data_set(tmp_path: Path, rounding: str, share: float) -> None:
    data = data_in(tmp_path / "data", [expert(6, i) for i in range(50)])
    config = config_of(tmp_path / "run", data, {"name": "first", "ratio": 0.3, "rounding": rounding})
    folder = RunFolder(config.run)
    folder.begin(config, stage="select")
    folder.write_shard(SELECTIONS, [Selection("maze/maze_4", "maze", "maze_4", "first", 0.3, 6, (1, 2))])
    assert (select_steps(config).finished or {})["actual"] == pytest.approx(share, abs=0.005)


def test_a_run_begun_before_there_was_a_choice_goes_on_rounding_down(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(6, i) for i in range(4)])
    config = config_of(tmp_path / "run", data, {"name": "random", "ratio": 0.3, "rounding": "floor"})
    folder = select_steps(config)
    manifest = folder.read_json("manifest.json")
    del manifest["config"]["selector"]["rounding"]
    folder.write_json("manifest.json", manifest)
    assert select_steps(config).finished
    with pytest.raises(UserError, match=r"selector\.rounding: 'floor' -> 'carry'"):
        select_steps(config_of(tmp_path / "run", data, {"name": "random", "ratio": 0.3}))


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
