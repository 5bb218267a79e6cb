"""A hundred trajectories judged by a model of our own: behind vLLM's server, and on our actors."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import EngineConfig
from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.models.protocol import Sampling
from atlas_ray.models.serving import serving
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.budget import budget
from atlas_ray.selection.llm.estimate import estimate
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Selection, Trajectory
from tests.selection.test_selection import config_of, data_in
from tests.support.tiny import json_model

pytestmark = pytest.mark.slow

CONTEXT = 4096
ENGINE = {"max_model_len": CONTEXT, "max_num_seqs": 64}
ASKED = {"name": "llm", "structured": "json", "max_tokens": 400}


@pytest.fixture(scope="module")
def trajectories() -> list[Trajectory]:
    """The built-in experts', 25 of each environment."""
    policy = ScriptedPolicy("expert", 0)

    async def play() -> list[Trajectory]:
        tasks = [
            t for env in ("maze", "wordle", "textcraft", "blocksworld") for t in registry.get(env).tasks("train", 25)
        ]
        plays = (
            run_episode(policy, LocalSession(registry.get(t.env)), EpisodeRequest(t, Sampling(), seed=0)) for t in tasks
        )
        return [to_trajectory(await episode) for episode in plays]

    return asyncio.run(play())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, trajectories: list[Trajectory]) -> str:
    """An untrained model that can write JSON, and read these trajectories in few tokens."""
    folder = str(tmp_path_factory.mktemp("json"))
    json_model(folder, [m.content for t in trajectories for m in t.messages], context=2 * CONTEXT)
    return folder


def judged(folder: Path, trajectories: list[Trajectory], selector: dict[str, Any]) -> dict[str, Selection]:
    if not (folder / "data").exists():
        data_in(folder / "data", trajectories)
    config: SelectConfig = config_of(folder / "run", {"path": str(folder / "data")}, ASKED | selector)
    assert isinstance(config.selector, LlmSelector)
    return {s.id: s for s in select_steps(config).read(SELECTIONS)}


def check(found: dict[str, Selection], trajectories: list[Trajectory]) -> None:
    """Every trajectory has a valid selection within its budget."""
    assert found.keys() == {t.id for t in trajectories}
    assert len(found) == 100
    for selection in found.values():
        assert selection.error is None
        assert 1 <= len(selection.chosen) <= budget(0.3, selection.n_steps)
        assert list(selection.chosen) == sorted(set(selection.chosen))
        assert set(selection.chosen) <= set(range(1, selection.n_steps + 1))
        assert selection.categories.keys() == set(selection.chosen)
        assert selection.usage.calls >= 1
        assert selection.usage.cost == 0


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, trajectories: list[Trajectory], model: str
) -> dict[str, Selection]:
    with serving(model, EngineConfig.model_validate(ENGINE), name="tiny") as address:
        selector = {"model": "tiny", "endpoint": {"base_url": address}, "context": CONTEXT, "tokenizer": model}
        found = judged(tmp_path_factory.mktemp("served"), trajectories, selector)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)
    return found


def test_by_vllms_server_with_structured_output(served: dict[str, Selection], trajectories: list[Trajectory]) -> None:
    check(served, trajectories)


def test_the_estimate_is_within_a_tenth_of_what_the_server_counted(
    served: dict[str, Selection], trajectories: list[Trajectory], model: str
) -> None:
    once = [t for t in trajectories if served[t.id].usage.calls == 1][:50]  # repairs are not estimated
    assert len(once) == 50
    found = estimate(once, LlmSelector.model_validate(ASKED | {"model": "tiny", "tokenizer": model}))
    counted = sum(served[t.id].usage.prompt_tokens for t in once)
    print(f"estimated {found.prompt_tokens}, counted by the server {counted}")
    assert found.prompt_tokens == pytest.approx(counted, rel=0.1)


def test_on_engines_of_our_own_with_structured_output(
    tmp_path: Path, ray_cluster: None, trajectories: list[Trajectory], model: str, served: dict[str, Selection]
) -> None:
    found = judged(tmp_path, trajectories, {"model": model, "engine": ENGINE})
    check(found, trajectories)
    # The same model, prompts and number format: the same choice.
    assert {i: s.chosen for i, s in found.items()} == {i: s.chosen for i, s in served.items()}
