"""How many starts replay, from value rollouts and verification to the report's tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from atlas_ray.environments.registry import get
from atlas_ray.evaluation.table6 import rows
from atlas_ray.report.paper.ours import Figure, PaperRuns, Start
from atlas_ray.report.paper.render import markdown
from atlas_ray.report.results import build_results
from atlas_ray.report.tables import replay_table
from atlas_ray.report.terminal import verification_table
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.selection.value.estimators import value_figures
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.types import Episode, Replay, StopReason
from tests.selection.value.test_backward_sampler import expert, turns
from tests.support.evaluations import an_episode
from tests.support.paper_runs import table
from tests.support.report_records import arm, report_input, selection, trajectory
from tests.support.values import FakePool, estimate_values


def test_verification_tells_how_many_starts_replay() -> None:
    plan = {"maze/maze_1": {"from scratch": {0}, "from critical step": {2, 4}, "from other step": set[int]()}}
    episodes = [
        an_episode(1, 0, False),
        replace(an_episode(1, 2, True), replay="near"),
        replace(an_episode(1, 4, False, StopReason.REPLAY_MISMATCH), replay="differs"),
    ]
    scratch, critical = rows(plan, {"maze/maze_1": ()}, {"maze/maze_1": 6}, episodes, [])  # type: ignore[arg-type]
    assert (scratch.replays, critical.replays) == ({}, {"exact": 0, "near": 1, "differs": 1})
    caption = str(verification_table([scratch, critical]).caption)
    assert "maze, from critical step: 1 of 2 starts replay, 1 of them nearly" in caption


def test_value_rollouts_count_the_starts_that_replay() -> None:
    def play(request: EpisodeRequest) -> Episode:
        found: Replay | None = (
            ("exact", "near", "differs")[min(2, len(request.prefix) // 2)] if request.prefix else None
        )
        one = replace(turns(request, 0.6), replay=found)
        return replace(one, stop_reason=StopReason.REPLAY_MISMATCH, error="other") if found == "differs" else one

    plain = ValueSelector(rollouts=3, model="m")
    found = list(estimate_values(FakePool(play), plain, [expert(6, i) for i in range(2)], seed=0))
    assert [one.replays for one in found] == [{"exact": 1, "near": 2, "differs": 2}] * 2
    assert value_figures(found, plain)["replays"] == {"maze": {"differs": 4, "exact": 2, "near": 4}}


def test_the_report_shows_the_share_of_starts_that_replay() -> None:
    told = trajectory("maze", 100)
    known = selection("value", told, 1, replays={"exact": 5, "near": 1, "differs": 2})
    given = report_input(arm("base", {"maze": 4}), selections={"value": [known], "gold": [selection("gold", told, 2)]})
    results = build_results(replace(given, specs={"maze": get("maze")}))
    assert results["replays"] == [
        {"selector": "value", "env": "maze", "replays": {"differs": 2, "exact": 5, "near": 1}, "share": 0.75}
    ]
    (row,) = replay_table(results).rows
    assert [cell.text for cell in row] == ["value", "maze", "8", "5", "1", "2", "75.0"]


def test_table_6_says_how_many_starts_replay() -> None:
    shown = Figure(40.0, 30.0, 50.0, 100, 1, None, 0, False)
    starts = {"from_scratch": Start(shown), "from_critical_step": Start(shown, replays={"exact": 3, "differs": 1})}
    text = markdown(table("table6", PaperRuns({}, {}, verification={"maze": starts})))
    assert "maze: 3 of 4 starts replay as recorded." in text


def test_selections_keep_their_counts_and_those_written_before_have_none(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    with folder.writer(SELECTIONS) as writer:
        writer.add(selection("value", trajectory("maze", 1), 1, replays={"exact": 2}))
    (shard,) = (tmp_path / "selections").glob("*.parquet")
    assert folder.read(SELECTIONS)[0].replays == {"exact": 2}
    pq.write_table(pq.read_table(shard).drop_columns(["replays"]), shard)
    assert folder.read(SELECTIONS)[0].replays == {}


def test_episodes_without_replay_are_still_read(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    with folder.writer(EPISODES) as writer:
        writer.add(replace(an_episode(1, 2, True), replay="near"))
    (shard,) = (tmp_path / "episodes").glob("*.parquet")
    assert folder.read(EPISODES)[0].replay == "near"
    pq.write_table(pq.read_table(shard).drop_columns(["replay"]), shard)
    assert folder.read(EPISODES)[0].replay is None
