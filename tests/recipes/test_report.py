"""What a recipe's run folders hold, gathered for the report: seeds together, gaps and failures by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_ray.errors import UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.paper_runs import gather_paper
from atlas_ray.recipes.report import gather
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.report.results import build_results
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.types import StopReason
from tests.support.records import a_selection, a_trajectory, an_episode


def a_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    """Two arms under two seeds, and a base model."""
    file = tmp_path / "recipe.yaml"
    given = {
        **{"name": "small", "runs": str(tmp_path), "seeds": 2, "base": "a/model"},
        "expert": {"envs": ["maze"], "tasks": 2},
        "arms": {"gold": {"name": "gold", "ratio": 0.3}, "all": {"name": "all"}},
        **{"evaluate": {"tasks": {"maze": 2}}, "train": {"max_length": 512}},
        "tables": {"table1": {"atlas": "gold", "all": "all"}},
    }
    file.write_text(yaml.safe_dump({**given, **changes}, sort_keys=False))
    return Recipe(load_recipe(str(file)))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return a_recipe(tmp_path)


def play(recipe: Recipe, unit: str, *rewards: float, lost: int = 0) -> None:
    """Finishes a unit's evaluation with a task for each reward, and episodes that infrastructure spoilt."""
    evaluation = recipe.evaluations[""]
    folder = RunFolder(evaluation.run).child(unit)
    folder.begin(evaluation, stage="evaluate")
    episodes = [an_episode(i, reward=reward) for i, reward in enumerate(rewards)]
    spoilt = [replace(an_episode(90 + i), stop_reason=StopReason.ENV_ERROR) for i in range(lost)]
    folder.write_shard(EPISODES, episodes + spoilt)
    folder.finish(seconds=1.0, context=2048)


@pytest.fixture
def played(recipe: Recipe) -> Recipe:
    """The base and `gold` under both seeds; of `all` only the first, for the second could not be loaded."""
    expert = RunFolder(recipe.expert.path)
    expert.begin(recipe.collections()["expert"], stage="collect")
    expert.write_shard(TRAJECTORIES, [a_trajectory()])
    expert.finish(seconds=1.0)
    for config in recipe.select.values():
        RunFolder(config.run).begin(config, stage="select")
        RunFolder(config.run).write_shard(SELECTIONS, [a_selection()])
        counted = {"requested": 0.3, "trajectories": 1, "errors": {}, "steps": 10, "chosen": 3}
        RunFolder(config.run).finish(seconds=1.0, **counted)
    play(recipe, "base", 0.0, 0.0)
    play(recipe, "gold", 1.0, 0.0)
    play(recipe, "gold.seed1", 1.0, 1.0, lost=1)
    play(recipe, "all", 1.0)
    broken = RunFolder(recipe.evaluations[""].run).child("all.seed1")
    broken.write_json("failed.json", {"what": "it has no chat template", "remedy": ""})
    return recipe


def test_the_papers_tables_get_an_arms_scores_by_seed(played: Recipe) -> None:
    runs = gather_paper(played)
    assert set(runs.arms) == {"base", "gold", "all"}
    gold = runs.arms["gold"]
    maze = {("maze_0", 0): 1.0, ("maze_1", 0): 0.0}
    assert gold.scores == {"maze": {0: maze, 1: {("maze_0", 0): 1.0, ("maze_1", 0): 1.0}}}
    assert gold.excluded == {"maze": {0: {}, 1: {"env_error": 1}}}
    assert (gold.expected, gold.context, set(gold.training)) == ({"maze": 2}, 2048, {0, 1})
    assert gold.model == played.at("train", "gold", "model")
    assert (runs.arms["base"].model, runs.arms["base"].training) == ("a/model", {})
    assert runs.failures == {"all": "all.seed1: it has no chat template"}
    assert runs.chosen["gold"].chosen == 3


def test_the_report_shows_an_arms_seeds_as_samples_of_the_same_tasks(played: Recipe) -> None:
    given = gather(played)
    arms = {arm.name: arm for arm in given.arms}
    assert list(arms) == ["base", "gold", "all"]
    assert [(e.item_id, e.sample) for e in arms["gold"].episodes[:4]] == [
        *(("maze_0", 0), ("maze_1", 0)),
        *(("maze_0", 1), ("maze_1", 1)),
    ]
    assert {name: arm.runs for name, arm in arms.items()} == {"base": 1, "gold": 2, "all": 1}
    assert [arm.words.split()[0] for arm in arms.values()] == ["The", "The", "Every"]
    assert given.failures == {"all.seed1": "it has no chat template"}
    assert (given.n_expected, given.seeds) == ({"maze": 2}, [0, 1])
    assert set(given.selections) == set(played.select)


def test_an_arm_is_held_against_its_own_control_whichever_model_it_starts_from(tmp_path: Path) -> None:
    arms = {"gold": {"name": "gold", "control": "random"}, "far": {"like": "gold", "start": "b", "control": "random"}}
    tables = {"figure2": {"llama/atlas": "gold", "mistral/atlas": "far"}}
    recipe = a_recipe(tmp_path, seeds=2, arms=arms, backbones={"b": "b/model"}, tables=tables)
    expert = RunFolder(recipe.expert.path)
    expert.begin(recipe.collections()["expert"], stage="collect")
    expert.write_shard(TRAJECTORIES, [a_trajectory()])
    expert.finish(seconds=1.0)
    played = {"gold": (1.0, 1.0), "gold-random.seed1": (1.0, 0.0), "far": (0.0,), "far-random": (1.0,)}
    for unit, rewards in played.items():
        play(recipe, unit, *rewards)
    given = gather(recipe)
    words = {arm.name: arm.words for arm in given.arms}
    assert words["far-random"].startswith("Random steps with as many loss tokens as gold chose")
    said = build_results(given)["verdict"]["statements"]
    pairs = {(s["arm"], s["against"]): s["difference"] for s in said if s["role"] == "random"}
    assert pairs == {("gold", "gold-random"): 0.5, ("far", "far-random"): -1.0}


def test_nothing_evaluated_is_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="nothing is evaluated in"):
        gather(recipe)


def test_what_has_failed_is_named_with_its_cause(
    recipe: Recipe, capsys: pytest.CaptureFixture[str], played: Recipe
) -> None:
    chosen = RunFolder(played.select["gold"].run)
    chosen.remove("finished.json")
    chosen.write_json("failed.json", {"what": "42 of 42 selections failed; the first: no gold", "remedy": ""})
    gather(played)
    said = " ".join(capsys.readouterr().err.split())
    assert "not finished, so not reported: select/gold (42 of 42 selections failed; the first: no gold)" in said


def test_nothing_evaluated_for_something_failed_names_the_first_cause(recipe: Recipe) -> None:
    folder = RunFolder(recipe.select["gold"].run)
    folder.write_json("failed.json", {"what": "no gold", "remedy": ""})
    with pytest.raises(UserError, match=r"nothing is evaluated in .*; select/gold failed: no gold"):
        gather(recipe)
