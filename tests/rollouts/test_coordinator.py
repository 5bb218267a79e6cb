"""Episodes of several coordinators: the same as one's, each written once, whoever is killed in between."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from atlas_ray.config import EngineConfig, EnvironmentsConfig, LimitsConfig, validate
from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.rollouts.coordinator import CoordinatorSet, LocalPlayer, player_of
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.heartbeat import Heartbeat
from atlas_ray.rollouts.pool import FixedSpec, PolicySpec
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode, StopReason, Usage
from tests.rollouts.test_pool import Sleeper, eventually, facts, gone, requests

pytestmark = pytest.mark.usefixtures("ray_cluster")


def player(spec: PolicySpec, coordinators: int, replicas: int = 2, in_flight: int = 8) -> Any:
    engine = EngineConfig(replicas=replicas, coordinators=coordinators, episodes_in_flight=in_flight)
    return player_of(spec, engine, EnvironmentsConfig(), limits=LimitsConfig(), retries=1)


def written(folder: Path, table: str = "episodes") -> Counter[str]:
    shards = (folder / table).glob("*.parquet")
    return Counter(key for shard in shards for key in pq.read_table(shard, columns=["id"])["id"].to_pylist())


def read(folder: Path) -> list[Episode]:
    return [facts(episode) for episode in RunFolder(str(folder)).read(EPISODES)]


def play(playing: Any, asked: list[EpisodeRequest], folder: Path, then: Callable[[int], object] = lambda n: n) -> None:
    """Plays all; `then` is told how many are back after each."""
    told = Counter[str]()
    for request, summary in playing.play(asked, RunFolder(str(folder))):
        assert request.id == summary.id
        told[summary.id] += 1
        then(told.total())
    assert told == Counter(request.id for request in asked)


@pytest.fixture(scope="module")
def alone(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    """Episodes that this process coordinates."""
    folder = tmp_path_factory.mktemp("alone")
    with player(FixedSpec(Sleeper(seconds=0.0)), coordinators=1) as playing:
        assert isinstance(playing, LocalPlayer)
        play(playing, requests(60), folder)
    return read(folder)


@pytest.mark.parametrize("coordinators", [1, 2])
def test_player_tells_what_its_replicas_have_written_so_far(tmp_path: Path, coordinators: int) -> None:
    with player(FixedSpec(Sleeper(seconds=0.0)), coordinators, replicas=2) as playing:
        assert playing.usage() == Usage()
        play(playing, requests(20), tmp_path)
        replies = sum(episode.rounds for episode in read(tmp_path))
        assert playing.usage() == Usage(completion_tokens=replies, calls=replies)
        heartbeat = Heartbeat(playing.usage)
        assert heartbeat() == "no reply yet"
        play(playing, requests(3), tmp_path / "more")
        more = sum(episode.rounds for episode in read(tmp_path / "more"))
        assert heartbeat().startswith(f"{more} replies, ")
        assert heartbeat() == f"{more} replies, 0 tokens/s"


def test_coordinators_play_and_write_what_one_process_does(
    tmp_path: Path, alone: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    with player(FixedSpec(Sleeper()), coordinators=2, replicas=3) as playing:
        assert isinstance(playing, CoordinatorSet)
        coordinators = [psutil.Process(handle.pid) for handle in playing._handles]
        play(playing, requests(60), Path("run"))  # a relative folder is this process's
        assert read(tmp_path / "run") == alone
        assert written(tmp_path / "run") == Counter(episode.id for episode in alone)
        # another policy on the same engines, and another table
        playing.load(FixedSpec(Sleeper(name="other")))
        play(playing, requests(4, table="iterative"), tmp_path / "other")
        found = RunFolder(str(tmp_path / "other")).read(EPISODES)
        assert found == []
        assert written(tmp_path / "other", "iterative") == Counter(request.id for request in requests(4))
    assert all(eventually(lambda one=one: gone(one.pid)) for one in coordinators)


@pytest.mark.parametrize("times", [1, 2])
def test_killed_coordinator_loses_no_episode(tmp_path: Path, alone: list[Episode], times: int) -> None:
    kills = iter([10, 25][:times])
    at = next(kills)
    with player(FixedSpec(Sleeper(seconds=0.02)), coordinators=2, in_flight=4) as playing:

        def kill(back: int) -> None:
            nonlocal at
            if back == at:
                victim = next(handle.pid for handle in playing._handles if handle.ready)
                os.kill(victim, signal.SIGKILL)
                assert eventually(lambda: gone(victim))
                at = next(kills, -1)

        play(playing, requests(60), tmp_path, then=kill)
        assert playing.restarts == times
    assert read(tmp_path) == alone


def test_episode_that_kills_replicas_is_given_up_below_a_coordinator(tmp_path: Path, alone: list[Episode]) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    policy = Sleeper(trouble="die", tasks=("maze_5",), folder=str(notes))
    with player(FixedSpec(policy), coordinators=2) as playing:
        play(playing, requests(12), tmp_path)
        assert playing.restarts == 0
    lost = {episode.id: episode for episode in read(tmp_path)}.pop("maze/maze_5@0+0")
    assert (lost.stop_reason, lost.error) == (StopReason.MODEL_ERROR, "4 replicas died while they played this episode")
    mine = {request.id for request in requests(12)} - {lost.id}
    assert [e for e in read(tmp_path) if e.id in mine] == [e for e in alone if e.id in mine]


def test_play_that_is_left_early_ends_its_episodes_and_can_go_on(tmp_path: Path, alone: list[Episode]) -> None:
    with player(FixedSpec(Sleeper(seconds=0.02)), coordinators=2, in_flight=2) as playing:
        running = playing.play(requests(60), RunFolder(str(tmp_path)))
        next(running)
        running.close()
        done = RunFolder(str(tmp_path)).done(EPISODES)
        assert 0 < len(done) < 60
        play(playing, [request for request in requests(60) if request.id not in done], tmp_path)
    assert read(tmp_path) == alone


def test_coordinators_say_at_once_what_cannot_be_played(tmp_path: Path) -> None:
    class Broken:
        gpus = 0

        async def build(self) -> Any:
            raise ModelFailure("no such model")

    with pytest.raises(ModelFailure, match="no such model"):
        player(Broken(), coordinators=2)
    with pytest.raises(UserError, match="cannot place 99 engine replicas"):
        player(FixedSpec(Sleeper()), coordinators=2, replicas=99)
    file = tmp_path / "file"
    file.touch()
    with player(FixedSpec(Sleeper()), coordinators=2) as playing, pytest.raises(AtlasError, match="cannot write"):
        play(playing, requests(4), file)


def test_evaluation_by_coordinators_stops_early_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    failing = Sleeper(trouble="fail", tasks=tuple(f"maze_{i}" for i in range(60)), folder=str(notes))
    values = {"run": str(tmp_path), "models": {"arm": "m"}, "tasks": {"maze": 40}, "retries": 0}
    values["engine"] = {"replicas": 2, "coordinators": 2, "episodes_in_flight": 4}
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(failing))
    with pytest.raises(AtlasError, match="32 episodes in a row failed"):
        stage.evaluate(validate(EvaluateConfig, values))
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(Sleeper()))
    [result] = stage.evaluate(validate(EvaluateConfig, values | {"engine": {"coordinators": 1}}))["arm"]
    assert (result.n, result.excluded, result.flagged) == (40, {}, False)
