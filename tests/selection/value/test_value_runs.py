"""Values on real replicas: the number of actors and a kill half-way change nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from atlas_ray.config import EngineConfig, LimitsConfig, validate
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.async_set import AsyncReplicaSet
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.pool import FixedSpec, RolloutPool
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.value import stage
from atlas_ray.selection.value.estimators import rescore
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.selection.value.stage import ValueWorker, value_steps
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Selection, Trajectory

MODES = ("exhaustive", "economical")


async def experts(n: int, env: str = "maze") -> list[Trajectory]:
    session, policy = LocalSession(get(env)), ScriptedPolicy("expert")
    tasks = get(env).tasks("train", n)
    return [to_trajectory(await run_episode(policy, session, EpisodeRequest(t, Sampling(), seed=0))) for t in tasks]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.usefixtures("ray_cluster")
def test_one_actor_three_and_a_killed_one_give_the_same_values(mode: str) -> None:
    data = asyncio.run(experts(4)) + asyncio.run(experts(4, "textcraft"))
    selector = validate(ValueSelector, {"rollouts": 3, "mode": mode, "model": "m"})

    async def values(pool: RolloutPool, kill: bool) -> list[Selection]:
        engines, found = AsyncReplicaSet(lambda: pool), list[Selection]()
        for one in asyncio.as_completed([value_steps(t, engines.result, selector, seed=5) for t in data]):
            found.append(await one)
            if kill and len(found) == 2:
                os.kill(pool._handles[0].pid or 0, signal.SIGKILL)
        await engines.close()
        assert pool.restarts == kill
        return sorted(found, key=lambda s: s.id)

    runs = []
    for replicas, in_flight, kill in ((1, 8, False), (3, 3, False), (2, 3, True)):
        pool = RolloutPool(
            FixedSpec(ScriptedPolicy("novice")), EngineConfig(replicas=replicas, episodes_in_flight=in_flight)
        )
        runs.append(asyncio.run(values(pool, kill)))
    assert runs[0] == runs[1] == runs[2]
    for trajectory, one in zip(sorted(data, key=lambda t: t.id), runs[0], strict=True):
        assert (one.error, one.excluded) == (None, {})
        assert rescore(one, selector) == one
        if mode == "exhaustive":
            assert [len(r) for r in one.rewards] == [3] * len(trajectory.steps) + [1]
        else:
            assert sum(one.rejoined) > 0


class Noting(ValueWorker):
    """Notes who plays what, on how many engines, in the folder that is named as the model."""

    def _note(self, what: str) -> None:
        (Path(self._given[0].model) / f"{what} {os.getpid()} {time.monotonic_ns()}").touch()

    def _pool(self) -> RolloutPool:
        pool = super()._pool()
        self._note(f"{len(pool._handles)}-engines")
        assert pool._arguments[1] == LimitsConfig(episode_s=345)
        return pool

    async def __call__(self, table: pa.Table) -> pa.Table:
        for name in table["item_id"].to_pylist():
            self._note(name)
        return await super().__call__(table)


class Dying(Noting):
    """Dies once, with a selection made that it does not hand over."""

    async def __call__(self, table: pa.Table) -> pa.Table:
        found = await super().__call__(table)
        try:
            (Path(self._given[0].model) / "died").open("x").write(str(os.getpid()))
        except FileExistsError:
            return found
        os._exit(1)


def selected(folder: Path, data: Path, coordinators: int, **engine: int) -> tuple[list[Selection], dict[str, set[str]]]:
    """Selections by coordinators of scripted engines, and the processes that noted each thing."""
    notes = folder / "notes"
    notes.mkdir(parents=True)
    engines = {"engine": engine | {"coordinators": coordinators}, "limits": {"episode_s": 345}}
    selector = {"name": "value", "rollouts": 2, "model": str(notes)} | engines
    values = {"run": str(folder / "run"), "data": {"path": str(data)}, "selector": selector}
    found = select_steps(validate(SelectConfig, values)).read(SELECTIONS)
    noted = defaultdict[str, set[str]](set)
    for note in notes.glob("* *"):
        noted[note.name.split()[0]].add(note.name.split()[1])
    return [replace(s, model=None) for s in found], noted


@pytest.mark.usefixtures("ray_cluster")
def test_coordinators_share_trajectories_and_engines_and_a_killed_one_costs_its_open_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, asyncio.run(experts(24)))
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(ScriptedPolicy("novice")))
    monkeypatch.setattr(stage, "ValueWorker", Noting)
    alone, noted = selected(tmp_path / "alone", tmp_path / "data", 1, replicas=2)
    assert len(alone) == 24
    assert not any(s.error for s in alone)
    assert (len(noted.pop("2-engines")), {len(who) for who in noted.values()}) == (1, {1})

    two, noted = selected(tmp_path / "two", tmp_path / "data", 2, replicas=3)
    assert two == alone
    actors = noted.pop("1-engines") | noted.pop("2-engines")
    played = Counter(pid for who in noted.values() for pid in who)
    assert (set(played), len(actors), played.total()) == (actors, 2, 24)
    assert min(played.values()) >= 8

    monkeypatch.setattr(stage, "ValueWorker", Dying)
    killed, noted = selected(tmp_path / "killed", tmp_path / "data", 2, replicas=3)
    assert killed == alone
    dead = (tmp_path / "killed" / "notes" / "died").read_text()
    [share] = {name for name, who in noted.items() if name.endswith("-engines") and dead in who}
    again = {name: who for name, who in noted.items() if len(who) == 2}
    assert again.pop(share) - {dead}  # as many engines as before
    assert 1 <= len(again) < 24
    assert all(dead in who for who in again.values())


@pytest.mark.usefixtures("ray_cluster")
def test_rollouts_verify_what_a_cheap_selection_proposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, asyncio.run(experts(6)))
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(ScriptedPolicy("novice")))
    data, cheap = {"path": str(tmp_path / "data")}, {"name": "random", "ratio": 0.4}
    runs = {
        "cheap": cheap,
        "whole": {"name": "value", "rollouts": 2, "model": "scripted"},
        "verified": {"name": "value", "rollouts": 2, "model": "scripted", "propose": "cheap"},
    }
    found = {}
    for name, selector in runs.items():
        values = {"run": str(tmp_path / name), "data": data, "selector": selector}
        found[name] = select_steps(validate(SelectConfig, values)).read(SELECTIONS)
    for proposed, whole, verified in zip(found["cheap"], found["whole"], found["verified"], strict=True):
        assert set(verified.chosen) & set(proposed.chosen) == set(whole.chosen) & set(proposed.chosen)
        around = {start for t in proposed.chosen for start in (t - 1, t)}
        assert {t for t, rewards in enumerate(verified.rewards[:-1]) if rewards} == around - {whole.n_steps}
    rollouts = {name: (RunFolder(str(tmp_path / name)).finished or {}).get("rollouts") for name in runs}
    assert rollouts["verified"] < rollouts["whole"]


@pytest.mark.usefixtures("ray_cluster")
def test_engines_that_find_no_room_are_told_before_an_actor_waits_for_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, asyncio.run(experts(1)))
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(ScriptedPolicy("novice")))
    with pytest.raises(UserError, match="cannot place 7 engine replicas"):
        selected(tmp_path, tmp_path / "data", 2, replicas=7)


_DRIVER = """
import sys
from atlas_ray.config import LimitsConfig, validate
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
selector = {"name": "value", "mode": sys.argv[4], "rollouts": 2, "model": sys.argv[3], "max_tokens": 12}
values = {"run": sys.argv[1], "data": {"path": sys.argv[2]}, "selector": selector}
select_steps(validate(SelectConfig, values))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, tiny_models: tuple[str, str], mode: str) -> None:
    data = tmp_path / "data"
    RunFolder(str(data)).write_shard(TRAJECTORIES, asyncio.run(experts(48)))

    def start(run: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _DRIVER, str(run), str(data), tiny_models[0], mode]
        return subprocess.Popen(command, start_new_session=True)

    def found(run: Path) -> list[Selection]:
        made = RunFolder(str(run)).read(SELECTIONS)
        return [replace(s, usage=replace(s.usage, cached_tokens=0)) for s in made]

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(250) == 0
    driver = start(killed)
    end = time.monotonic() + 200
    while not list(killed.glob("selections/*.parquet")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    shards = set(killed.glob("selections/*.parquet"))
    assert 1 <= len(found(killed)) < 48
    assert start(killed).wait(250) == 0
    again = set(killed.glob("selections/*.parquet")) - shards
    assert len(again) + len(shards) == 48  # one shard a trajectory: none was made twice
    assert found(killed) == found(whole)
    figures = RunFolder(str(whole)).finished
    assert figures is not None
    assert figures["prefix_cache_hit_rate"] > 0.5
