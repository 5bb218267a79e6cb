"""Limits of time are a setting of every stage that plays; its pool is made with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import LimitsConfig, validate
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.evaluation import stage, verification
from atlas_ray.evaluation.settings import EvaluateConfig, VerifyConfig
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.pool import RolloutPool
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.manifest import config_digest
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Selection

LIMITS = {"turn_s": 12.0, "episode_s": 345.0}
Given = dict[str, float]
Config = EvaluateConfig | VerifyConfig | SelectConfig


class PoolMadeError(Exception):
    """Ends a stage where it makes its pool."""


def evaluation(here: Path, given: dict[str, Given]) -> EvaluateConfig:
    return validate(EvaluateConfig, {"run": f"{here}/run", "models": {"arm": "m"}, "tasks": {"maze": 1}} | given)


def verifying(here: Path, given: dict[str, Given]) -> VerifyConfig:
    values = {"run": f"{here}/run", "model": "m", "data": {"path": f"{here}/data"}, "selection": f"{here}/chosen"}
    return validate(VerifyConfig, values | given)


def valuing(here: Path, given: dict[str, Given]) -> SelectConfig:
    selector = {"name": "value", "model": "m"} | given
    return validate(SelectConfig, {"run": f"{here}/run", "data": {"path": f"{here}/data"}, "selector": selector})


async def write_data(here: Path) -> None:
    """One expert trajectory, and a selection in it."""
    (task,) = get("maze").tasks("train", 1)
    asked = EpisodeRequest(task, Sampling(), seed=0)
    played = await run_episode(ScriptedPolicy("expert"), LocalSession(get("maze")), asked)
    t = to_trajectory(played)
    RunFolder(f"{here}/data").write_shard(TRAJECTORIES, [t])
    chosen = Selection(t.id, t.env, t.item_id, "x", None, len(t.steps), (2,))
    RunFolder(f"{here}/chosen").write_shard(SELECTIONS, [chosen])


@pytest.mark.parametrize(
    ("module", "play", "config"),
    [
        (stage, stage.evaluate, evaluation),
        (verification, verification.verify, verifying),
    ],
)
@pytest.mark.parametrize(("given", "expected"), [({"limits": LIMITS}, LIMITS), ({}, LimitsConfig().model_dump())])
def test_a_stage_makes_its_pool_with_its_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    play: Callable[[Any], object],
    config: Callable[[Path, dict[str, Given]], Config],
    given: dict[str, Given],
    expected: Given,
) -> None:
    asyncio.run(write_data(tmp_path))
    made: list[LimitsConfig] = []

    def make(*_: Any, limits: LimitsConfig, **__: Any) -> None:
        made.append(limits)
        raise PoolMadeError

    monkeypatch.setattr(RolloutPool, "__init__", make)
    for place in (module, "atlas_ray.cluster.connection"):
        monkeypatch.setattr(f"{getattr(place, '__name__', place)}.connect", lambda *_: None, raising=False)
    with pytest.raises(PoolMadeError):
        play(config(tmp_path, given))
    assert [found.model_dump() for found in made] == [expected]


@pytest.mark.parametrize("config", [evaluation, verifying, valuing])
def test_limits_are_no_part_of_what_a_run_is(
    tmp_path: Path, config: Callable[[Path, dict[str, Given]], Config]
) -> None:
    assert config_digest(config(tmp_path, {"limits": LIMITS})) == config_digest(config(tmp_path, {}))
