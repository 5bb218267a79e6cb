"""Another ratio is a re-read: scores of a finished selection, cut anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.estimate import estimate_lines
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.types import Selection, Usage
from tests.selection.test_selection import config_of as config_with
from tests.selection.test_selection import data_in, expert

SCORES = (3.0, 9.0, 1.0, 0.0, 5.0, 7.0, 2.0, 8.0, 4.0, 6.0)


def config_of(folder: Path, data: dict[str, Any], selector: dict[str, Any]) -> SelectConfig:
    return config_with(folder, data, selector, max_failed=1.0)  # most of the data's trajectories have no scores


def selection(number: int, name: str, n_steps: int = 10, **fields: Any) -> Selection:
    item = f"maze_{number}"
    return Selection(f"maze/{item}", "maze", item, name, 0.3, n_steps, model="my/model", usage=Usage(5, 0, 5), **fields)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return data_in(tmp_path / "data", [expert(10, 1), expert(10, 2), expert(7, 3), expert(10, 4)])


def scored(folder: Path, data: dict[str, Any], section: dict[str, Any], *found: Selection) -> str:
    """A finished run with the given selections: no model is behind it, so none can be asked."""
    run = RunFolder(str(folder))
    run.begin(config_of(folder, data, {"model": "my/model"} | section), stage="select")
    run.write_shard(SELECTIONS, list(found))
    run.finish()
    return run.uri


def test_perplexity_at_another_ratio_without_a_model(tmp_path: Path, data: dict[str, Any]) -> None:
    name = "perplexity"
    held = [
        selection(1, name, chosen=(2, 6, 8), scores=SCORES),
        selection(2, name, chosen=(), error="too long: every step"),
        selection(3, name, 10, chosen=(2,), scores=SCORES),
    ]
    uri = scored(tmp_path / "scored", data, {"name": name, "dtype": "bfloat16"}, *held)
    config = config_of(tmp_path / "half", data, {"name": name, "ratio": 0.5, "scores": uri})
    assert "no model call" in estimate_lines(config)[-1]
    run = select_steps(config)
    first, second, third, fourth = run.read(SELECTIONS)
    assert (first.chosen, first.ratio, first.scores) == ((2, 5, 6, 8, 10), 0.5, SCORES)
    assert (first.model, first.usage) == ("my/model", Usage())
    assert second.error == "no scores: too long: every step"
    assert "counted 10 steps, the data has 7" in (third.error or "")
    assert "holds no such trajectory" in (fourth.error or "")
    # The manifest tells where the scores come from.
    kept = run.read_json("manifest.json")["config"]["selector"]
    assert (kept["model"], kept["dtype"], kept["ratio"], kept["scores"]) == ("my/model", "bfloat16", 0.5, uri)
    # Such a run is itself one to cut from; steps without a score are never chosen.
    again = select_steps(config_of(tmp_path / "whole", data, {"name": name, "ratio": 1.0, "scores": run.uri}))
    assert again.read(SELECTIONS)[0].chosen == (1, 2, 3, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("cut", "chosen"),
    [({}, (1, 4, 6)), ({"threshold": 0.2}, (4, 6)), ({"ratio": 0.2}, (4, 6)), ({"threshold": -1, "ratio": 0.1}, (6,))],
)
def test_value_at_another_threshold_or_ratio(
    tmp_path: Path, data: dict[str, Any], cut: dict[str, Any], chosen: tuple[int, ...]
) -> None:
    gains = (0.2, 0.1, 0.0, 0.4, -0.2, 0.6, 0.0, 0.1, 0.0, 0.0)
    uri = scored(tmp_path / "scored", data, {"name": "value"}, selection(1, "value", chosen=(), scores=gains))
    run = select_steps(config_of(tmp_path / "cut", data, {"name": "value", "scores": uri} | cut))
    assert run.read(SELECTIONS)[0].chosen == chosen


def test_scores_of_something_else_are_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    uri = scored(
        tmp_path / "scored", data, {"name": "perplexity"}, selection(1, "perplexity", chosen=(), scores=SCORES)
    )
    for section, why in (
        ({"name": "perplexity", "scores": str(tmp_path / "nothing")}, "holds no finished selection"),
        ({"name": "value", "scores": uri}, "no selection by `value`"),
        ({"name": "perplexity", "scores": uri, "model": "another"}, "scored with 'my/model'"),
    ):
        with pytest.raises(UserError, match=why):
            select_steps(config_of(tmp_path / "cut", data, section))
    assert not (tmp_path / "cut").exists()
    # A key that only says where to work may differ.
    select_steps(config_of(tmp_path / "cut", data, {"name": "perplexity", "scores": uri, "num_workers": 3}))
