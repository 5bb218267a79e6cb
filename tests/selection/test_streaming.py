"""Large data: what Ray's workers read, select and write is what one process gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from atlas_ray.cluster.dataset import map_on_ray, stream
from atlas_ray.config import DataConfig, RayConfig, validate
from atlas_ray.errors import TooManyFailed, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.budget import record
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.protocol import SELECTORS, Selector, Stage, StageContext
from atlas_ray.trajectories import index
from atlas_ray.trajectories.index import index_data
from atlas_ray.types import Selection
from tests.selection.test_selection import GOLD, config_of, data_in, expert

ROWS = [
    {"item_id": f"maze_{number % 7}", "conversations": conversations}
    for number in range(40)
    for conversations in [
        [{"from": "human", "loss": None, "value": "Go."}, {"from": "gpt", "loss": False, "value": "OK"}]
        + [
            turn
            for step in range(2 + number % 5)
            for turn in (
                {"from": "human", "loss": None, "value": f"at {step}"},
                {"from": "gpt", "loss": True, "value": f"Thought: {number}\nAction: {step}"},
            )
        ]
    ]
]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> Callable[[], None]:
    """Has any data count as large from now on."""
    return lambda: monkeypatch.setattr(index, "SMALL", -1)


def write_files(folder: Path) -> dict[str, Any]:
    """JSONL and JSON with trajectories of the same tasks, and rows that are refused."""
    folder.mkdir()
    lines = [json.dumps(row) for row in ROWS[:25]]
    lines[4:4] = ["no JSON", json.dumps({"item_id": "maze_1", "conversations": []})]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "b.json").write_text(json.dumps([*ROWS[25:], {"item_id": "nowhere_1", "conversations": []}]))
    return {"path": str(folder)}


def test_what_a_worker_chose_before_too_many_failures_in_a_row_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Callable[[], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = data_in(tmp_path / "data", [expert(4, i) for i in range(100)])
    large()
    config = config_of(
        tmp_path / "run", data, {"name": "python", "call": "tests.support.selection_rules:only_the_first_ten"}
    )
    with pytest.raises(TooManyFailed, match=r"32 selections in a row failed; the first: failed call: .*not this one"):
        select_steps(config)
    assert len(RunFolder(config.run).done(SELECTIONS)) == 10


@pytest.mark.parametrize("limit", [None, 11])
@pytest.mark.parametrize(
    "selector",
    [
        {"name": "random"},
        {"name": "python", "call": "tests.support.selection_rules:last_but_one"},
        {"name": "python", "call": "tests.support.selection_rules:late", "gives": "scores", "rounding": "carry"},
    ],
)
def test_workers_select_what_one_process_selects(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large: Callable[[], None],
    selector: dict[str, Any],
    limit: int | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_files(tmp_path / "data") | {"limit": limit}
    runs = [select_steps(config_of(tmp_path / "here", data, selector))]
    large()
    runs.append(select_steps(config_of(tmp_path / "workers", data, selector)))
    here, workers = (run.read(SELECTIONS) for run in runs)
    assert here == workers
    assert len({s.id for s in here}) == len(here) == (limit or 40)
    assert {"maze/maze_0", "maze/maze_0#2"} <= {s.id for s in here}
    first, second = ((run.finished or {}) | {"seconds": 0} for run in runs)
    assert first == second
    assert first["rejected"] == 2
    assert first["skipped"] == {"nowhere": 1}
    assert (tmp_path / "here/rejected.jsonl").read_text() == (tmp_path / "workers/rejected.jsonl").read_text()


def test_a_runs_records_count_as_they_were_written_last(tmp_path: Path, large: Callable[[], None]) -> None:
    data = data_in(tmp_path / "data", [expert(4, i) for i in range(5)])
    RunFolder(data["path"]).write_shard(TRAJECTORIES, [expert(10, 1, GOLD), replace(expert(2, 9), env="other")])
    small = index_data(DataConfig(**data), RayConfig())
    large()
    found = index_data(DataConfig(**data, limit=3), RayConfig())
    steps = dict(zip(small.outline["id"].to_pylist(), small.outline["n_steps"].to_pylist(), strict=True))
    assert steps == {"maze/maze_0": 4, "maze/maze_1": 10, "maze/maze_2": 4, "maze/maze_3": 4, "maze/maze_4": 4} | {
        "maze/maze_9": 2
    }
    # the first by id, whatever shard they stand in
    assert set(found.outline["id"].to_pylist()) == {"maze/maze_0", "maze/maze_1", "maze/maze_2", "maze/maze_9"}
    run = select_steps(config_of(tmp_path / "run", data, {"name": "gold"}, max_failed=0.9))
    chosen = {s.id: s.chosen for s in run.read(SELECTIONS) if s.error is None}
    assert chosen == {"maze/maze_1": (2, 7, 9)}


class BlockStage(Stage):
    """Says with each selection which trajectories came together."""

    rows_per_block = 3
    whole_blocks = True

    def __init__(self, selector: Selector) -> None:
        self._selector = selector

    def apply(self, trajectories: Any) -> Any:
        return map_on_ray(trajectories, together, self._selector)


def together(table: pa.Table, selector: Selector) -> pa.Table:
    trajectories = TRAJECTORIES.from_table(table)
    names = " ".join(t.item_id for t in trajectories)
    return SELECTIONS.to_table(record(t, selector, [1], reason=names) for t in trajectories)


class BlockSelector(Selector):
    """By `BlockStage`."""

    name: str = "blocks"

    def stage(self, context: StageContext) -> Stage:
        return BlockStage(self)


def test_blocks_are_the_same_in_every_attempt_and_done_rows_are_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Callable[[], None]
) -> None:
    monkeypatch.setitem(SELECTORS, "blocks", BlockSelector)
    data = data_in(tmp_path / "data", [expert(4, i) for i in range(8)])
    config = config_of(tmp_path / "small", data, {"name": "blocks"})
    blocks = {s.reason for s in select_steps(config).read(SELECTIONS)}
    assert blocks == {"maze_0 maze_1 maze_2", "maze_3 maze_4 maze_5", "maze_6 maze_7"}
    large()
    config = config_of(tmp_path / "large", data, {"name": "blocks"})
    folder = RunFolder(config.run)
    folder.begin(config, stage="select")
    held = Selection("maze/maze_4", "maze", "maze_4", "blocks", None, 4, (1,), reason="before")
    folder.write_shard(SELECTIONS, [held])
    found = {s.item_id: s.reason for s in select_steps(config).read(SELECTIONS)}
    assert found.pop("maze_4") == "before"
    assert set(found.values()) == blocks


def test_what_stops_a_worker_is_the_error_that_it_raised(ray_cluster: None) -> None:
    with pytest.raises(UserError, match="out of money") as raised:
        list(stream(map_on_ray([pa.table({"x": [1]})], refuse), "paying"))
    assert (raised.value.what, raised.value.remedy) == ("out of money", "pay")


def refuse(table: pa.Table) -> pa.Table:
    raise UserError("out of money", "pay")


def test_settings_of_a_selector_from_outside_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "from atlas_ray.selection import baselines\n\n\nclass Mine(baselines.RandomSelector):\n    name: str = 'm'\n"
    (tmp_path / "a_selector_of_this_test.py").write_text(code)
    section = {"name": "a_selector_of_this_test:Mine", "ratio": 0.4}
    assert config_of(tmp_path, {"path": "x"}, section).model_dump()["selector"]["ratio"] == 0.4
    for wrong, said in (({"rato": 1}, "did you mean `ratio`"), ({"ratio": 2}, "selector.ratio")):
        with pytest.raises(UserError, match=said):
            config_of(tmp_path, {"path": "x"}, section | wrong)
    with pytest.raises(UserError, match="json has no selector JSONDecoder"):
        validate(
            type(config_of(tmp_path, {"path": "x"}, section)),
            {"data": {"path": "x"}, "selector": {"name": "json:JSONDecoder"}},
        )
