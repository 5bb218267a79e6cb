"""A recipe from end to end on the command line, and killed in every stage: the same results, nothing done twice."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.errors import UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.plan import plan_lines
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from tests.support.recipes import ARMS, TASKS, a_recipe, finish, kill_when, recorded_twice, start


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "seconds"}


def test_sections_are_checked_before_anything_runs(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    recipe["train"]["epoch"] = 3
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(UserError, match=r"unknown key `epoch`; did you mean `epochs`"):
        Recipe(load_recipe(str(tmp_path / "r.yaml")))


def test_an_arm_that_costs_money_runs_only_when_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(a_recipe(tmp_path)))
    config = load_recipe(str(tmp_path / "r.yaml"))
    assert "llm" not in Recipe(config).arms
    assert "llm" in Recipe(config, ["llm"]).arms
    with pytest.raises(UserError, match="no extra arm 'lmm'"):
        Recipe(config, ["lmm"])


def test_selectors_that_score_use_the_recipes_base(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(a_recipe(tmp_path)))
    whole = Recipe(load_recipe(str(tmp_path / "r.yaml")))
    assert getattr(whole.select["value"].selector, "model", None) == f"{tmp_path}/small/train/base/model"


def test_the_shipped_recipe_is_valid_and_fine_tuning_never_sees_the_held_out_environment() -> None:
    whole = Recipe(load_recipe(str(Path(__file__).parents[2] / "jobs" / "quickstart.yaml")))
    selectors = ("gold", "perplexity", "value")
    assert set(whole.arms) == {"all", *selectors, *(f"{name}-random" for name in selectors)}
    assert "blocksworld" not in whole.collections()["expert"].envs
    assert "blocksworld" in whole.evaluations[""].tasks
    assert any("evaluate: 8 models" in line for line in plan_lines(whole))


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_results(tmp_path: Path) -> None:
    undisturbed = tmp_path / "undisturbed"
    expected = finish(tmp_path, a_recipe(undisturbed), undisturbed)

    runs, recipe = tmp_path / "killed", a_recipe(tmp_path / "killed")
    root = runs / "small"
    value, gold = RunFolder(str(root / "select" / "value")), root / "train" / "gold"

    kill_when(start(tmp_path, recipe), lambda: len(value.done(SELECTIONS)) >= 3)
    selected = value.done(SELECTIONS)
    assert value.finished is None

    def mid_training() -> bool:
        metrics = gold / "metrics.jsonl"
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 6

    kill_when(start(tmp_path, recipe), mid_training)
    assert not (gold / "finished.json").exists()
    assert not recorded_twice(value, SELECTIONS)
    assert selected <= value.done(SELECTIONS)

    base = RunFolder(str(root / "evaluate" / "base"))
    kill_when(start(tmp_path, recipe), lambda: len(base.done(EPISODES)) >= 32)
    played = base.done(EPISODES)
    results = finish(tmp_path, recipe, runs)

    assert played <= base.done(EPISODES)
    for arm in ("base", *ARMS):
        folder = RunFolder(str(root / "evaluate" / arm))
        assert not recorded_twice(folder, EPISODES)
        assert len(folder.read(EPISODES)) == sum(TASKS.values())
    steps = [json.loads(line)["step"] for line in (gold / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert timeless(results) == timeless(expected)

    # once more: everything is there already
    began = time.monotonic()
    assert timeless(finish(tmp_path, recipe, runs))["selectors"] == expected["selectors"]
    assert time.monotonic() - began < 120


def stage_processes(driver: int) -> list[psutil.Process]:
    """The processes of a recipe's stages that are not over."""
    found = []
    for child in psutil.Process(driver).children():
        with suppress(psutil.ZombieProcess, psutil.NoSuchProcess):
            if "atlas_ray.recipes.stage_process" in child.cmdline():
                found.append(child)
    return found


@pytest.mark.slow
def test_two_at_a_time_and_killed_it_ends_with_the_results_of_one_after_another(tmp_path: Path) -> None:
    arms = {name: {"name": name, "ratio": 0.3} for name in ("gold", "first", "last")}
    expected = finish(tmp_path, a_recipe(tmp_path / "alone", arms), tmp_path / "alone", "--jobs", "1")

    recipe = a_recipe(tmp_path / "pair", arms)
    root = tmp_path / "pair" / "small"
    trained = [root / "train" / arm for arm in arms]
    process, children = start(tmp_path, recipe, "--jobs", "2"), list[psutil.Process]()

    def both_train() -> bool:
        children[:] = stage_processes(process.pid)
        begun = [folder for folder in trained if (folder / "manifest.json").exists()]
        return sum(not (folder / "finished.json").exists() for folder in begun) == 2

    kill_when(process, both_train)
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive  # they end with the recipe's own process

    results = finish(tmp_path, recipe, tmp_path / "pair", "--jobs", "2")
    assert timeless(results) == timeless(expected)
    for folder in trained:
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
    shown = CliRunner().invoke(app, ["status", str(root)]).output
    assert "unfinished" not in shown
    assert "running" not in shown
