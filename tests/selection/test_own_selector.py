"""A selector of the user's own, by `module:function`: checked, and watched for change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.python_function import PythonSelector, load_call, select_by_function
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.types import Message, Trajectory
from tests.support.rows import write_agenttraj


def walk(n_steps: int = 10, item: str = "maze_1") -> Trajectory:
    turns = [Message("user", "Play.")]
    for t in range(n_steps):
        turns += [Message("assistant", f"Action: move {t}", trainable=True), Message("user", "You moved.")]
    return Trajectory(f"maze/{item}", "maze", item, tuple(turns))


@pytest.mark.parametrize(
    ("answer", "settings", "chosen", "error"),
    [
        ([3, 1], {}, (1, 3), None),
        ([1, 2, 3, 4], {}, (), "names 4 of 10 steps, the ratio 0.3 allows 3"),
        ([1, 2, 3, 4], {"ratio": None}, (1, 2, 3, 4), None),
        ([0], {}, (), "0 is no step: the steps are 1 to 10"),
        ([True], {}, (), "True is no step"),
        ([2, 2], {}, (), "names a step twice"),
        ([0, 5, 5, 1, 0, 0, 0, 0, 0, 9], {"gives": "scores"}, (2, 3, 10), None),
        ([0, 5, 5, 1, 0, 0, 0, 0, 0, 9], {"gives": "scores", "ratio": None}, (2, 3, 4, 10), None),
        ([1.0], {"gives": "scores"}, (), "1 scores for 10 steps"),
        ([float("nan")] * 10, {"gives": "scores"}, (), "not a finite number"),
        (None, {}, (), "TypeError"),
    ],
)
def test_what_the_function_returns_is_checked(
    answer: Any, settings: dict[str, Any], chosen: tuple[int, ...], error: str | None
) -> None:
    found = select_by_function(walk(), PythonSelector(call="m:f", **settings), lambda _: answer)
    assert found.chosen == chosen
    assert (error in (found.error or "")) if error else found.error is None


@pytest.mark.parametrize("call", ["no_such_module_here:choose", "math:nothing"])
def test_a_function_that_is_not_there_is_a_sentence(call: str) -> None:
    with pytest.raises(UserError, match=call.partition(":")[0]):
        load_call(call)


@pytest.mark.usefixtures("ray_cluster")
def test_a_function_runs_on_workers_and_a_change_of_its_source_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "my_rule_of_this_test.py"
    source.write_text("K = 2\n\n\ndef choose(trajectory):\n    return range(1, K + 1)\n")
    write_agenttraj(tmp_path / "data.json", [walk(item=f"maze_{i}") for i in range(3)])
    config = SelectConfig(
        run=str(tmp_path / "run"),
        data=DataConfig(path=str(tmp_path / "data.json")),
        selector=PythonSelector(call="my_rule_of_this_test:choose"),
    )
    assert [s.chosen for s in select_steps(config).read(SELECTIONS)] == [(1, 2)] * 3
    source.write_text(source.read_text().replace("K = 2", "K = 1"))
    with pytest.raises(UserError, match="changed since"):
        select_steps(config)
