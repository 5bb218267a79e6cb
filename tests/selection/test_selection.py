"""Controls, comparison, and the stage around them: run folders, resume, workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection import baselines
from atlas_ray.selection.baselines import AllSelector, ComplementSelector, GoldSelector, RandomSelector
from atlas_ray.selection.compare.agreement import agreement, compare_selections
from atlas_ray.selection.compare.show import comparison_table
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Category, GoldStep, Message, Selection, Trajectory

PLAN, ACTION = Category.PLAN_CREATION, Category.CRITICAL_ACTION


def expert(n_steps: int, number: int = 0, gold: tuple[GoldStep, ...] | None = None) -> Trajectory:
    turns = [Message("user", "Find the way."), Message("assistant", "OK"), Message("user", "You are at 1, 1.")]
    for t in range(1, n_steps + 1):
        turns += [Message("assistant", f"Thought: {t}\nAction: go {t}", True), Message("user", f"You are at {t}.")]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(turns), 1.0, gold)


def data_in(folder: Path, trajectories: list[Trajectory]) -> dict[str, Any]:
    run = RunFolder(str(folder))
    run.begin(CollectConfig(run=run.uri), stage="collect")
    run.write_shard(TRAJECTORIES, trajectories)
    run.finish()
    return {"path": run.uri}


def config_of(folder: Path, data: dict[str, Any], selector: dict[str, Any], seed: int = 0, **more: Any) -> SelectConfig:
    return validate(SelectConfig, {"run": str(folder), "data": data, "selector": selector, "seed": seed} | more)


GOLD = (GoldStep(7, 1, ACTION), GoldStep(2, 2, PLAN), GoldStep(9, 3, ACTION), GoldStep(4, 4, ACTION))


def test_all_takes_every_step() -> None:
    assert baselines.select_all(expert(3), AllSelector()).chosen == (1, 2, 3)


def test_random_depends_on_seed_and_trajectory_only() -> None:
    config = RandomSelector(ratio=0.3)
    drawn = [baselines.select_random(expert(20, i), config, seed=5).chosen for i in range(30)]
    assert drawn == [baselines.select_random(expert(20, i), config, seed=5).chosen for i in range(30)]
    assert len(set(drawn)) > 25
    assert drawn != [baselines.select_random(expert(20, i), config, seed=6).chosen for i in range(30)]
    assert all(len(steps) == 6 and list(steps) == sorted(set(steps)) for steps in drawn)
    assert {t for steps in drawn for t in steps} == set(range(1, 21))


def test_gold_takes_the_best_ranks_and_keeps_scores() -> None:
    found = baselines.select_gold(expert(10, gold=GOLD), GoldSelector(ratio=0.3))
    assert found.chosen == (2, 7, 9)
    assert found.scores == (0.0, 3.0, 0.0, 1.0, 0.0, 0.0, 4.0, 0.0, 2.0, 0.0)
    assert found.categories == {2: PLAN, 7: ACTION, 9: ACTION}
    assert baselines.select_gold(expert(10, gold=GOLD), GoldSelector(ratio=1.0)).chosen == (2, 4, 7, 9)
    assert baselines.select_gold(expert(10, gold=()), GoldSelector()).chosen == ()
    missing = baselines.select_gold(expert(10), GoldSelector())
    assert missing.chosen == ()
    assert "no gold" in (missing.error or "")


def test_noise_draws_as_many_steps_anew_and_keeps_the_rest() -> None:
    data = [expert(10, i, gold=GOLD) for i in range(200)]
    clean = baselines.select_gold(data[0], GoldSelector(ratio=0.3)).chosen
    noisy = [baselines.select_gold(t, GoldSelector(ratio=0.3, noise=0.5), seed=1) for t in data]
    assert all(len(s.chosen) == 3 for s in noisy)
    assert all(set(s.categories or {}) <= set(s.chosen) for s in noisy)
    kept = sum(len(set(s.chosen) & set(clean)) for s in noisy) / (3 * len(data))
    assert 0.44 < kept < 0.56
    assert noisy == [baselines.select_gold(t, GoldSelector(ratio=0.3, noise=0.5), seed=1) for t in data]
    every = baselines.select_gold(data[0], GoldSelector(ratio=0.3, noise=1.0), seed=1).chosen
    assert not set(every) & set(clean)
    # nothing else to take: they stay
    assert baselines.select_gold(expert(1, gold=GOLD[:0]), GoldSelector(noise=1.0)).chosen == ()


@pytest.mark.parametrize("ratio", [0.3, 0.4, 1.0])
def test_complement_of_gold(ratio: float) -> None:
    taken = baselines.select_gold(expert(10, gold=GOLD), GoldSelector(ratio=ratio)).chosen
    found = baselines.select_complement(expert(10, gold=GOLD), ComplementSelector(ratio=ratio), seed=1)
    assert len(found.chosen) == len(taken)
    assert not set(found.chosen) & set(taken)


def test_complement_takes_as_many_as_the_reference_actually_chose() -> None:
    config = ComplementSelector(ratio=0.3, reference="runs/llm")

    def chosen(*steps: int, error: str | None = None) -> Selection:
        reference = Selection("maze/maze_0", "maze", "maze_0", "llm", 0.3, 10, steps, error=error)
        return baselines.select_complement(expert(10), config, 0, {"maze/maze_0": reference})

    assert len(chosen(4).chosen) == 1
    assert chosen().chosen == ()
    assert chosen(*range(1, 8)).chosen == (8, 9, 10)  # fewer remain: all of them
    assert chosen(error="no answer: HTTP 500").error == "no reference: no answer: HTTP 500"
    assert "holds no such" in (baselines.select_complement(expert(10, 3), config, 0, {}).error or "")
    assert "counted 10 steps" in (
        baselines.select_complement(
            expert(9), config, 0, {"maze/maze_0": Selection("maze/maze_0", "maze", "maze_0", "llm", 0.3, 10, (1,))}
        ).error
        or ""
    )


def test_agreement_by_hand() -> None:
    chosen, gold = {("a", 1), ("a", 2), ("b", 5)}, {("a", 2), ("b", 5), ("b", 6), ("b", 7)}
    figures = agreement(chosen, gold)
    assert figures == {"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7, "jaccard": 2 / 5}
    assert agreement(set(), set()) == {"precision": None, "recall": None, "f1": None, "jaccard": None}


def test_selections_compared_with_the_uncut_annotation() -> None:
    data = [expert(10, 0, GOLD), expert(10, 1, (GoldStep(1, 1, PLAN),)), expert(10, 2)]
    mine = [baselines.select_gold(t, GoldSelector(ratio=0.3)) for t in data]
    other = [baselines.select_all(t, AllSelector()) for t in data]
    rows = compare_selections([("gold", mine), ("all", other)], data)
    assert [r["name"] for r in rows] == ["gold", "all"]
    gold, everything = rows
    assert (gold["trajectories"], gold["errors"], gold["requested"], gold["actual"]) == (2, 1, 0.3, 4 / 20)
    assert (gold["precision"], gold["recall"], gold["f1"]) == (1.0, 4 / 5, 8 / 9)
    assert (everything["actual"], everything["precision"], everything["recall"]) == (1.0, 5 / 20, 1.0)
    assert gold["overlap"] == {"all": 4 / 20}
    assert comparison_table(rows).row_count == 2


def test_stage_writes_resumes_and_refuses_another_configuration(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(10, i, GOLD if i % 2 else None) for i in range(6)])
    config = config_of(tmp_path / "gold", data, {"name": "gold", "ratio": 0.3})
    folder = select_steps(config)
    figures = folder.finished or {}
    assert (figures["trajectories"], figures["chosen"], figures["steps"]) == (6, 9, 30)
    assert (figures["requested"], figures["actual"], figures["errors"]) == (0.3, 0.3, {"no gold": 3})
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "gold").rglob("*") if p.is_file()}
    select_steps(config)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "gold").rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"selector\.ratio: 0\.3 -> 0\.2"):
        select_steps(config_of(tmp_path / "gold", data, {"name": "gold", "ratio": 0.2}))


def test_stage_redoes_nothing_that_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_in(tmp_path / "data", [expert(10, i) for i in range(9)])
    config = config_of(tmp_path / "random", data, {"name": "random"})
    folder = RunFolder(config.run)
    folder.begin(config, stage="select")
    folder.write_shard(SELECTIONS, [Selection("maze/maze_4", "maze", "maze_4", "random", 0.3, 10, (1, 2, 3))])
    asked: list[str] = []
    draw = baselines.select_random
    monkeypatch.setattr(baselines, "select_random", lambda t, c, s: (asked.append(t.id), draw(t, c, s))[1])
    found = {s.id: s for s in select_steps(config).read(SELECTIONS)}
    assert len(found) == 9
    assert "maze/maze_4" not in asked
    assert found["maze/maze_4"].chosen == (1, 2, 3)


def test_complement_reads_a_finished_selection(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(10, i, GOLD) for i in range(3)])
    section = {"name": "complement", "reference": str(tmp_path / "gold")}
    with pytest.raises(UserError, match="no finished selection"):
        select_steps(config_of(tmp_path / "complement", data, section))
    select_steps(config_of(tmp_path / "gold", data, {"name": "gold", "ratio": 0.3}))
    found = select_steps(config_of(tmp_path / "complement", data, section)).read(SELECTIONS)
    assert all(len(s.chosen) == 3 and not set(s.chosen) & {2, 7, 9} for s in found)


def test_a_data_set_without_a_usable_row_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    with pytest.raises(UserError):
        select_steps(config_of(tmp_path / "run", {"path": str(tmp_path / "data.jsonl")}, {"name": "all"}))
