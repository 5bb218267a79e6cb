"""The recipe on a pretrained model: what it promises before it runs, and how long it says that it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.environments import registry
from atlas_ray.models.pretrained import PRETRAINED
from atlas_ray.recipes import plan
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.scheduling import Node
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.recipes.stages import stages
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.collect import collect, sample

FILE = str(Path(__file__).parents[2] / "jobs" / "smollm2.yaml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe(load_recipe(FILE, [f"runs={tmp_path_factory.mktemp('runs')}"]))


@pytest.fixture(scope="module")
def collected(recipe: Recipe) -> Recipe:
    collect(recipe.collections()["expert"])
    return recipe


def test_every_selective_arm_has_a_random_one_with_as_many_loss_tokens(recipe: Recipe) -> None:
    assert set(recipe.arms) == {"all", *(a + c for a in ("gold", "value", "perplexity") for c in ("", "-random"))}
    for arm in ("gold", "value", "perplexity"):
        control: Any = recipe.arms[f"{arm}-random"].select
        assert (control.name, control.reference) == ("matched_random", arm)
    assert recipe.config.base == PRETRAINED["smollm2"].folder


def test_it_is_played_where_it_was_trained_and_where_it_was_not(recipe: Recipe) -> None:
    tasks = recipe.evaluations[""].tasks
    held: dict[str, int] = {"in": 0, "out": 0}
    trained = set(recipe.config.expert.envs or ())
    for env, number in tasks.items():
        assert number is not None
        held[registry.get(env).held] += number
        assert (registry.get(env).held == "in") == (env in trained)
    assert len(trained) >= 3
    assert held["in"] >= 60
    assert held["out"] >= 30


def test_its_plan_needs_no_gpu_and_ends_within_three_hours(collected: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "nodes_at_hand", lambda _: [Node({"CPU": 2.0})])
    lines = plan.plan_lines(collected)
    assert not any("GPU-hours" in line or line.startswith("needs") for line in lines)
    (makespan,) = [line for line in lines if line.startswith("makespan: ")]
    hours = re.match(r"makespan: about ([\d.]+) h on 1 node of .*, one stage after another", makespan)
    assert hours, makespan
    assert 1.0 <= float(hours[1]) <= 3.0


def hours_of(recipe: Recipe) -> float:
    (line,) = [line for line in plan.plan_lines(recipe) if line.startswith("hours: ")]
    return float(line.split()[1])


def test_before_anything_is_collected_the_plan_goes_by_a_few_trajectories(tmp_path: Path) -> None:
    recipe = Recipe(load_recipe(FILE, [f"runs={tmp_path}"]))
    (data,) = [line for line in plan.plan_lines(recipe) if line.startswith("data: ")]
    assert data.endswith("(reckoned from the first 4 episodes of each environment)")
    before = hours_of(recipe)
    config = recipe.collections()["expert"]
    played = sample(config, 4)
    folder = collect(config)
    kept = {t.id: t for t in folder.read(TRAJECTORIES)}
    assert [len(own) for own in played.values()] == [4, 4, 4]
    assert all(kept[t.id] == t for own in played.values() for t in own)
    assert before == pytest.approx(hours_of(recipe), rel=0.25)


def test_time_left_is_reckoned_from_what_was_collected(collected: Recipe) -> None:
    weights = {stage.name: stage.seconds for stage in plan.timed(collected, stages(collected))}
    usual = {stage.name: stage.seconds for stage in stages(collected)}
    assert weights["train/all"] > 5 * usual["train/all"]  # which is a tiny model's
    assert weights["evaluate"] > 5 * usual["evaluate"]
    assert weights["select/gold"] == usual["select/gold"]
    assert weights["report"] == usual["report"]
