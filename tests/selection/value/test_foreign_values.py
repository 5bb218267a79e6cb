"""Values of trajectories in environments of other libraries: rollouts of a real engine, from recorded steps."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.foreign import openenv_servers
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.models.protocol import Reply
from atlas_ray.models.tiny import write_untrained
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Selection, Trajectory
from tests.support import solutions
from tests.support.command_line import atlas
from tests.support.docs_blocks import ROOT
from tests.support.episodes import calling, play_all

SUPPORT = ROOT / "tests" / "support"
ROLLOUTS, TASKS = 2, range(2)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [ROOT, SUPPORT / "verifiers_tasksets", SUPPORT / "openenv_package"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, found)))
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))
    monkeypatch.setattr(openenv_servers, "_servers", {})


def acting(actions: Sequence[str]) -> list[str]:
    return [f"Thought: it is the way.\nAction: {action}" for action in actions]


def solved() -> dict[str, dict[int, Sequence[str | Reply]]]:
    """The winning replies to each task: calls of tools, or texts."""
    boxes = {i: range(1, random.Random(i).randint(1, 7) + 1) for i in TASKS}
    wanted = {i: random.Random(i).randint(3, 9) for i in TASKS}
    return {
        "boxes": {i: [*(calling("open_box", number=n) for n in tried), Reply("Found.")] for i, tried in boxes.items()},
        "counting": {i: [calling("add", number=1), calling("add", number=n - 1)] for i, n in wanted.items()},
        "lake": {i: acting(solutions.frozen_lake(i)) for i in TASKS},
        "taxi": {i: acting(solutions.taxi(i)) for i in TASKS},
    }


async def recorded(places: dict[str, str]) -> list[Trajectory]:
    validate(EnvironmentsConfig, {"register": places})
    found = []
    for env, replies in solved().items():
        by_calls = OpeningTemplate.of_tools(registry.get(env)) if env in ("boxes", "counting") else None
        found += [to_trajectory(e) for e in await play_all(env, replies, 2, by_calls)]
    return found


@pytest.mark.slow
def test_each_library_replays_its_trajectories_and_their_rollouts_are_the_same_twice(
    tmp_path: Path, verifiers_python: str, openenv_python: str
) -> None:
    places = {
        "boxes": f"verifiers:{verifiers_python}:atlas-boxes",
        "counting": f"openenv:{openenv_python}:counting_env",
        "lake": "textarena:FrozenLake-v0",
        "taxi": "gymnasium:tests.support.toy_text:TaxiInWords-v0",
    }
    data = asyncio.run(recorded(places))
    openenv_servers.end_all()
    assert all(t.reward == 1.0 for t in data if t.env != "boxes")
    assert [t.calls_tools for t in data] == [t.env in ("boxes", "counting") for t in data]
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, data)
    write_untrained(tmp_path / "tiny", data, hidden_size=64, layers=2, heads=2, context=8192, seed=0)
    selector = {"name": "value", "model": "tiny", "rollouts": ROLLOUTS, "max_tokens": 12}
    config = {
        "data": {"path": "data"},
        "selector": selector | {"engine": {"episodes_in_flight": 4, "replicas": 1}},
        "environments": {"register": places},
    }
    (tmp_path / "select.yaml").write_text(yaml.safe_dump(config))

    def selected(run: str) -> list[Selection]:
        done = atlas("select", "--config", "select.yaml", "--run", run, cwd=tmp_path, timeout=800)
        assert done.returncode == 0, done.stderr
        told = RunFolder(str(tmp_path / run)).read_json("replays.json")
        assert {env: found["counts"]["exact"] for env, found in told.items()} == dict.fromkeys(places, len(TASKS))
        found = RunFolder(str(tmp_path / run)).read(SELECTIONS)
        return sorted((replace(s, usage=replace(s.usage, cached_tokens=0)) for s in found), key=lambda s: s.id)

    once, again = selected("once"), selected("again")
    assert once == again
    for trajectory, selection in zip(sorted(data, key=lambda t: t.id), once, strict=True):
        assert (selection.error, selection.excluded) == (None, {})
        assert [len(r) for r in selection.rewards] == [ROLLOUTS] * len(trajectory.steps) + [1]
