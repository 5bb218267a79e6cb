"""A recipe from end to end on the command line, and killed in every stage: the same results, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

ARMS: dict[str, dict[str, Any]] = {
    "all": {"name": "all"},
    "gold": {"name": "gold", "ratio": 0.3},
    "perplexity": {"name": "perplexity", "ratio": 0.3, "max_length": 1024, "engine": "torch"},
    "value": {"name": "value", "rollouts": 2, "max_tokens": 24},
}
TASKS = {"maze": 12, "textcraft": 12, "wordle": 12, "blocksworld": 12}


def a_recipe(runs: Path, arms: dict[str, dict[str, Any]] = ARMS) -> dict[str, Any]:
    """The quickstart's shape at a hundredth of its size."""
    return {
        "name": "small",
        "runs": str(runs),
        "expert": {"envs": ["maze", "textcraft", "wordle"], "tasks": 14},
        "base": {
            "novice": {"envs": list(TASKS), "role": "novice", "keep_failures": True, "tasks": 12, "max_rounds": 8},
            "hidden_size": 64,
            "layers": 2,
            "heads": 2,
            "train": {
                "optimizer": "muon",
                "learning_rate": 2e-3,
                "epochs": 1,
                "global_batch_size": 4,
                "max_length": 1024,
            },
        },
        "arms": arms,
        "extra_arms": {"llm": {"name": "llm"}},
        "train": {"epochs": 2, "global_batch_size": 4, "max_length": 1024, "checkpoint_steps": 5},
        "evaluate": {"tasks": TASKS, "max_tokens": 24},
    }


def start(tmp_path: Path, recipe: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    code = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "OPENAI_API_KEY")}
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", str(file), *arguments],
        stdout=(tmp_path / "out.log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(tmp_path: Path, recipe: dict[str, Any], runs: Path, *arguments: str) -> dict[str, Any]:
    process = start(tmp_path, recipe, *arguments)
    code = process.wait(timeout=1500)
    assert code == 0, (tmp_path / "out.log").read_text()[-3000:]
    results: dict[str, Any] = json.loads((runs / "small" / "report" / "results.json").read_text())
    for arm in results["arms"]:
        arm["model"] = arm["model"].replace(str(runs), "")
    return results


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key != "seconds"}


def kill_when(process: subprocess.Popen[str], met: Callable[[], bool]) -> None:
    """SIGKILLs the driver as soon as a condition holds; waits by watching the process itself."""
    deadline = time.monotonic() + 900
    while not met():
        assert time.monotonic() < deadline, "the stage was never reached"
        try:
            pytest.fail(f"the run ended by itself with code {process.wait(timeout=0.02)}")
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGKILL)
    process.wait()


def recorded_twice(folder: RunFolder, table: Any) -> list[str]:
    ids = [row for shard in folder.tables(table, ["id"]) for row in shard["id"].to_pylist()]
    return sorted({i for i in ids if ids.count(i) > 1})


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
    assert set(whole.arms) == {"all", "gold", "random", "complement", "perplexity", "value"}
    assert "blocksworld" not in whole.collections()["expert"].envs
    assert "blocksworld" in whole.evaluations[""].tasks
    assert any("evaluate: 7 models" in line for line in plan_lines(whole))


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
    """The processes of a recipe's stages."""
    found = psutil.Process(driver).children()
    return [child for child in found if "atlas_ray.recipes.stage_process" in child.cmdline()]


@pytest.mark.slow
def test_two_at_a_time_and_killed_it_ends_with_the_results_of_one_after_another(tmp_path: Path) -> None:
    arms = {name: {"name": name, "ratio": 0.3} for name in ("gold", "first", "last")}
    expected = finish(tmp_path, a_recipe(tmp_path / "alone", arms), tmp_path / "alone", "--jobs", "1")

    recipe = a_recipe(tmp_path / "pair", arms)
    root = tmp_path / "pair" / "small"
    trained = [root / "train" / arm / "metrics.jsonl" for arm in arms]
    process, children = start(tmp_path, recipe, "--jobs", "2"), list[psutil.Process]()

    def both_train() -> bool:
        children[:] = stage_processes(process.pid)
        return sum(file.exists() and not (file.parent / "finished.json").exists() for file in trained) == 2

    kill_when(process, both_train)
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive  # they end with the recipe's own process
    assert "unfinished" in CliRunner().invoke(app, ["status", str(root)]).output

    results = finish(tmp_path, recipe, tmp_path / "pair", "--jobs", "2")
    assert timeless(results) == timeless(expected)
    for file in trained:
        steps = [json.loads(line)["step"] for line in file.read_text().splitlines()]
        assert steps == list(range(1, len(steps) + 1))
    shown = CliRunner().invoke(app, ["status", str(root)]).output
    assert "unfinished" not in shown
    assert "running" not in shown
