"""Table 6: where episodes start, what is put in, and the rows by hand; once on real Ray with a scripted novice."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.config import DataConfig, validate
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import Opening
from atlas_ray.environments.registry import get
from atlas_ray.evaluation import verification
from atlas_ray.evaluation.settings import VerifyConfig
from atlas_ray.evaluation.table6 import Start, put_in, rows
from atlas_ray.evaluation.verification import ITERATIVE, Planned, _requests, starts
from atlas_ray.models.protocol import Sampling
from atlas_ray.report.terminal import verification_table
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.guided import GivenTurn, GivenTurns, Guided
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.types import Episode, Message, Selection, StopReason, Task, Trajectory
from tests.support.evaluations import Scripted, an_episode, experts


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


def test_every_episode_is_compared_with_the_recorded_task() -> None:
    (expert,) = asyncio.run(experts(1))
    values = {"model": "m", "data": {"path": "x"}, "selection": "y"}
    planned = Planned(expert, (2,), starts(expert, (2,), seed=0))
    asked = list(_requests(planned, validate(VerifyConfig, values)))
    assert sorted(len(r.prefix) for r in asked)[:3] == [0, 0, 1]
    opening = Opening.recorded(expert)
    assert opening is not None
    assert {(r.opening, r.first_observation) for r in asked} == {
        (OpeningTemplate.verbatim(opening), expert.messages[2].content)
    }


def test_nothing_starts_after_the_last_step_or_twice() -> None:
    found = starts(a_trajectory(4), (1, 2, 3, 4), seed=0)
    assert found["from critical step"] == {1, 2, 3}
    assert found["from other step"] == set()


def test_given_turns_come_in_order_and_are_not_gone_back_to() -> None:
    one, two, three = (Message("assistant", text, True) for text in "123")
    turns = GivenTurns([GivenTurn("a\nb", one), GivenTurn("c", two), GivenTurn("d", three)])
    assert [turns.after(seen) for seen in ("x", "b \na", "d", "c", "d")] == [None, one, three, None, None]


def test_rows_by_hand() -> None:
    begin: dict[str, dict[Start, set[int]]] = {
        "maze/maze_1": {"from scratch": {0}, "from critical step": {2, 6}, "from other step": {3, 5}},
        "maze/maze_2": {"from scratch": {0}, "from critical step": {4}, "from other step": {5}},
    }
    played = [
        *(an_episode(1, start, start == 6) for start in (0, 2, 3, 5, 6)),
        *(an_episode(2, start, start == 4) for start in (0, 4)),
        an_episode(2, 5, False, StopReason.REPLAY_MISMATCH),
    ]
    found = rows(begin, {}, {"maze/maze_1": 8, "maze/maze_2": 8}, played, [])
    scratch, critical, other = found
    assert (scratch.start, scratch.result.success, scratch.gain, scratch.position) == ("from scratch", 0.0, None, 0.0)
    assert (critical.start, critical.result.success, critical.starts) == ("from critical step", 0.75, 3)
    assert (critical.by_start, critical.by_ordinal) == (pytest.approx(2 / 3), (0.5, 1.0))
    assert critical.position == pytest.approx((2 + 6 + 4) / 3 / 8)
    assert critical.gain is not None
    assert (critical.gain.difference, critical.gain.tasks, critical.gain.outcome) == (0.75, 2, "none")
    assert critical.over_control is not None
    assert (critical.over_control.difference, critical.over_control.tasks) == (0.5, 1)
    assert (other.result.n, other.result.excluded, other.result.flagged) == (2, {"replay_mismatch": 1}, True)
    table = verification_table(found)
    assert table.row_count == 3
    assert "maze, from other step: excluded replay_mismatch 1" in str(table.caption)


def test_every_trajectory_of_a_task_has_starts_of_its_own(tmp_path: Path) -> None:
    """AgentTraj-L has 215 trajectories from maze's 26 starts."""
    (one,) = asyncio.run(experts(1))
    data = [replace(one, id=name) for name in (one.id, f"{one.id}#2", f"{one.id}#3")]
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, data)
    chosen = [Selection(t.id, t.env, t.item_id, "x", None, len(t.steps), (2, 4)) for t in data]
    RunFolder(str(tmp_path / "selection")).write_shard(SELECTIONS, chosen)
    values = {"run": str(tmp_path / "run"), "model": "m", "data": DataConfig(path=str(tmp_path / "data"))}
    settings = validate(VerifyConfig, values | {"selection": str(tmp_path / "selection")})
    asked = [request for planned in verification._plan(settings) for request in _requests(planned, settings)]
    ids = [request.id for request in asked if not request.given]
    assert len(set(ids)) == len(ids) == 1 + 3 * 4
    assert [name for name in ids if name.endswith("+0")] == [f"{one.id}@0+0"]  # which needs no trajectory
    assert {f"{t.id}@0+2" for t in data} <= set(ids)
    assert [request.id for request in asked if request.given] == [f"{t.id}@0+0" for t in data]
    assert verification.plan_lines(settings)[0].startswith("3 trajectories of 1 task, 16 episodes")


def test_starts_of_a_tasks_trajectories_are_rows_of_one_task() -> None:
    first, second = "maze/maze_1", "maze/maze_1#2"
    begin: dict[str, dict[Start, set[int]]] = {
        first: {"from scratch": {0}, "from critical step": {2}, "from other step": {3}},
        second: {"from scratch": set(), "from critical step": {3}, "from other step": set()},
    }
    played = [
        *(an_episode(1, start, start == 2) for start in (0, 2, 3)),
        replace(an_episode(1, 3, False), id=f"{second}@0+3", trajectory=second),
    ]
    scratch, critical, other = rows(begin, {}, {first: 8, second: 4}, played, [])
    assert (scratch.starts, scratch.result.n) == (1, 1)
    assert (critical.starts, critical.result.n, critical.result.distinct_tasks) == (2, 2, 1)
    assert (critical.result.success, critical.position) == (0.5, pytest.approx((2 / 8 + 3 / 4) / 2))
    assert (other.starts, other.result.success) == (1, 0.0)


class Stuck(ScriptedPolicy):
    """Walks on only where it is told to."""

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> _Stuck:
        return _Stuck()


class _Stuck:
    async def generate(self, seed: int) -> object:
        from atlas_ray.models.protocol import Reply

        return Reply("Action: wait")

    def append(self, message: Message) -> None: ...


def test_the_expert_speaks_where_the_policy_sees_what_it_saw() -> None:
    (expert,) = asyncio.run(experts(1))
    every = tuple(GivenTurn(step.observation, step.message) for step in expert.steps)

    def play(given: tuple[GivenTurn, ...]) -> Episode:
        policy = Guided(Stuck("novice"), given)
        return asyncio.run(
            run_episode(policy, LocalSession(get("maze")), EpisodeRequest(expert.task, Sampling(), seed=0))
        )

    whole = play(every)
    assert (whole.success, whole.rounds, put_in(whole, every)) == (True, len(expert.steps), len(every))
    assert put_in(play(every[:1]), every[:1]) == 1
    assert put_in(play(every[1:]), every[1:]) == 0  # it never gets where the second step is taken
    assert not play(()).success


@pytest.mark.usefixtures("ray_cluster")
def test_a_verification_resumes_and_prints_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", Scripted)
    monkeypatch.setattr(Scripted, "build", _novice)
    data = asyncio.run(experts(6))
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, data)
    chosen = [Selection(t.id, t.env, t.item_id, "x", None, len(t.steps), (2, 4)) for t in data]
    RunFolder(str(tmp_path / "selection")).write_shard(SELECTIONS, chosen)
    values = {"run": str(tmp_path / "run"), "model": "m", "data": DataConfig(path=str(tmp_path / "data"))}
    settings = validate(VerifyConfig, values | {"selection": str(tmp_path / "selection")})
    found = verification.verify(settings)
    assert [row.start for row in found] == ["from scratch", "from critical step", "iterative", "from other step"]
    assert [row.starts for row in found] == [6, 12, 6, 12]
    assert found[2].put_in is not None
    assert found[2].put_in > 0
    folder = RunFolder(settings.run)
    assert (len(folder.read(EPISODES)), len(folder.read(ITERATIVE))) == (30, 6)
    assert json.loads(json.dumps(folder.read_json("results.json")))["rows"][1]["start"] == "from critical step"
    assert verification.plan_lines(settings)[0].startswith("6 tasks, 36 episodes")
    shards = sorted((tmp_path / "run" / "episodes").iterdir())
    assert verification.verify(settings) == found
    assert sorted((tmp_path / "run" / "episodes").iterdir()) == shards
    random.choice(shards).unlink()
    assert verification.verify(settings) == found


async def _novice(_: Scripted) -> ScriptedPolicy:
    return ScriptedPolicy("novice")
