"""Values are refused before any engine starts where an environment does not repeat what was recorded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.errors import UserError
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.recorded import play_again
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.value.replay_check import refuse_unrepeatable, replays_by_environment
from atlas_ray.types import StopReason, Trajectory
from tests.selection.value.test_value_runs import experts


def drifted(trajectory: Trajectory, word: str = "fog") -> Trajectory:
    """As recorded in a world that told of the weather too, from the second answer on."""
    messages = list(trajectory.messages)
    for place in range(6, len(messages), 2):
        messages[place] = replace(messages[place], content=f"{messages[place].content} {word}")
    return replace(trajectory, messages=tuple(messages))


def selecting(folder: Path, data: list[Trajectory], **environments: Any) -> SelectConfig:
    RunFolder(str(folder / "data")).write_shard(TRAJECTORIES, data)
    selector = {"name": "value", "rollouts": 1, "model": "none", "engine": {"replicas": 1}}
    values = {"run": str(folder / "run"), "data": {"path": str(folder / "data")}, "selector": selector}
    return validate(SelectConfig, values | {"environments": environments})


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines that were asked for."""
    asked: list[str] = []

    def spec(name: str, *_: Any, **__: Any) -> FixedSpec:
        asked.append(name)
        return FixedSpec(ScriptedPolicy("novice"))

    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", spec)
    return asked


@pytest.mark.usefixtures("ray_cluster")
def test_an_environment_that_does_not_repeat_itself_is_refused_before_an_engine_starts(
    tmp_path: Path, started: list[str]
) -> None:
    data = [*map(drifted, asyncio.run(experts(6))), *asyncio.run(experts(3, "textcraft"))]
    with pytest.raises(UserError) as refused:
        select_steps(selecting(tmp_path, data))
    assert (
        "values of maze cannot be estimated: 0 of 4 trajectories replay; 0 end at the recorded reward; maze/maze_"
        in refused.value.what
    )
    assert "step 2 was answered otherwise than recorded" in refused.value.what
    assert "environments.replay_tolerance.maze (now 0)" in refused.value.remedy
    assert "textcraft" not in refused.value.what
    assert started == []
    found = RunFolder(str(tmp_path / "run"))
    assert found.read(SELECTIONS) == []
    counts = {env: told["counts"] for env, told in found.read_json("replays.json").items()}
    assert counts == {
        "maze": {"exact": 0, "near": 0, "differs": 4},
        "textcraft": {"exact": 3, "near": 0, "differs": 0},
    }


@pytest.mark.usefixtures("ray_cluster")
def test_within_the_tolerance_that_is_set_values_are_estimated_and_it_is_told(
    tmp_path: Path, started: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = selecting(tmp_path, [*map(drifted, asyncio.run(experts(2)))], replay_tolerance={"maze": 0.5})
    found = select_steps(config)
    assert [s.error for s in found.read(SELECTIONS)] == [None, None]
    assert found.read_json("replays.json")["maze"]["tolerance"] == 0.5
    said = " ".join(capsys.readouterr().err.split())
    assert "in maze 2 of 2 trajectories replay, 2 of them within the tolerance of 50%" in said
    assert len(started) == 1


async def test_a_recorded_trajectory_is_played_again_without_a_model() -> None:
    [one] = await experts(1)
    again = await play_again(one, EnvironmentsConfig())
    assert (again.replay, again.reward, again.rounds) == ("exact", one.reward, 0)
    other = await play_again(drifted(one), EnvironmentsConfig())
    assert other.stop_reason is StopReason.REPLAY_MISMATCH


def row(env: str, replay: str, error: str | None = None, same_reward: bool = True) -> dict[str, Any]:
    return {"id": f"{env}/{env}_1", "env": env, "replay": replay, "same_reward": same_reward, "error": error}


@pytest.mark.parametrize(
    ("replays", "refused"),
    [(["exact"] * 4, False), (["exact", "near", "differs", "differs"], False), (["exact", *["differs"] * 3], True)],
)
def test_at_least_half_of_what_is_tried_has_to_replay(replays: list[str], refused: bool) -> None:
    found = replays_by_environment([row("maze", replay, "why" * (replay == "differs")) for replay in replays],
                                   EnvironmentsConfig())  # fmt: skip
    if refused:
        with pytest.raises(UserError, match="1 of 4 trajectories replay"):
            refuse_unrepeatable(found)
    else:
        refuse_unrepeatable(found)


def test_rewards_that_differ_are_told() -> None:
    rows = [row("maze", "exact"), row("maze", "exact", same_reward=False)]
    found = replays_by_environment(rows, EnvironmentsConfig())
    assert str(found["maze"]) == "2 of 2 trajectories replay; 1 end at the recorded reward"
