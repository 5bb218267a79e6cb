"""The number of workers changes nothing: the same selections and the same episodes, on real engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate
from atlas_ray.models.tiny import write_untrained
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.collect import collect
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Episode

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
ENVS = ("maze", "textcraft", "wordle")


def timeless(episodes: Sequence[Episode]) -> list[Episode]:
    """What a policy did; how long it took and what was cached is the machine's business."""
    return [replace(e, seconds=0.0, usage=replace(e.usage, cached_tokens=0)) for e in episodes]


def test_one_and_three_workers_select_and_play_the_same(tmp_path: Path) -> None:
    experts = collect(CollectConfig(run=str(tmp_path / "experts"), envs=list(ENVS), tasks=4))
    model = str(tmp_path / "model")
    words = experts.read(TRAJECTORIES)
    write_untrained(model, words, hidden_size=64, layers=2, heads=2, context=1024, seed=0)

    played, chosen = {}, {}
    for workers in (1, 3):
        run = str(tmp_path / f"workers-{workers}")
        engine = {"replicas": workers, "cpu_kv_cache_gb": 1}
        tasks = dict.fromkeys((*ENVS, "blocksworld"), 6)
        settings = {"models": {"base": model}, "tasks": tasks, "max_tokens": 24, "engine": engine}
        evaluate(EvaluateConfig.model_validate({"run": f"{run}/evaluate", "temperature": 1.0, **settings}))
        played[workers] = timeless(RunFolder(f"{run}/evaluate/base").read(EPISODES))
        selectors = {
            "value": {"rollouts": 2, "max_tokens": 24, "model": model, "engine": engine},
            "perplexity": {"model": model, "num_workers": workers, "max_length": 1024, "engine": "torch"},
            "random": {},
        }
        for name, keys in selectors.items():
            config = {"run": f"{run}/{name}", "data": {"path": experts.uri}, "selector": {"name": name, **keys}}
            found = select_steps(SelectConfig.model_validate(config)).read(SELECTIONS)
            chosen[workers, name] = [(s.id, s.chosen, s.scores, s.rewards) for s in found]
    assert len(played[1]) == 24
    assert played[1] == played[3]
    for name in ("value", "perplexity", "random"):
        assert len(chosen[1, name]) == 12
        assert chosen[1, name] == chosen[3, name]
