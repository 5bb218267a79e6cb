"""A study's file: cells over one recipe, one base model, questions about arms that there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_ray.errors import AtlasError, ConfigurationChanged, Stopped, Unresponsive, UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.study import Study, load_study
from tests.support.recipes import a_recipe, run_command

QUESTION = {
    "question": "Does gold beat its control?",
    "expected": "yes",
    "arm": "gold",
    "against": "gold-random",
    "cells": ["straight", "wasteful"],
}
CELLS: dict[str, Any] = {
    "straight": {"words": "an expert without detours", "dial": 0},
    "wasteful": {"words": "two steps of five on detours", "dial": 0.4, "recipe": {"expert": {"waste": 0.4}}},
}


def write(tmp_path: Path, **changes: Any) -> str:
    recipe = a_recipe(tmp_path, {"all": {"name": "all"}, "gold": {"name": "gold", "control": "random"}})
    for key in ("name", "runs", "extra_arms"):
        del recipe[key]
    recipe["expert"] = {"envs": ["maze", "textcraft"], "tasks": 14, "max_rounds": 45}
    study = {
        **{"name": "mine", "title": "When?", "runs": str(tmp_path / "runs"), "recipe": recipe, "cells": CELLS},
        **{"dial": "share of wasted steps", "panels": {"equal epochs": ["all", "gold"]}, "questions": [QUESTION]},
    }
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({**study, **changes}, sort_keys=False))
    return str(file)


def read(tmp_path: Path, **changes: Any) -> Study:
    return load_study(write(tmp_path, **changes))


def test_cells_differ_in_what_they_say_and_start_from_one_base(tmp_path: Path) -> None:
    straight, wasteful = read(tmp_path).recipes.values()
    assert (straight.root, wasteful.root) == tuple(str(tmp_path / "runs" / "mine" / name) for name in CELLS)
    assert [r.collections()["expert"].waste for r in (straight, wasteful)] == [0.0, 0.4]
    assert wasteful.collections()["expert"].envs == straight.collections()["expert"].envs
    assert "novice" not in wasteful.collections()
    assert wasteful.train["gold"].model == straight.train["gold"].model == straight.at("train", "base", "model")


def test_a_cell_may_make_a_base_of_its_own(tmp_path: Path) -> None:
    changed = {**CELLS, "shaky": {"words": "a base that knows less", "recipe": {"base": {"hidden_size": 96}}}}
    straight, wasteful, shaky = read(tmp_path, cells=changed).recipes.values()
    assert shaky.train["gold"].model == shaky.at("train", "base", "model")
    assert wasteful.train["gold"].model == straight.at("train", "base", "model")


def test_the_studies_that_come_along_are_whole() -> None:
    study, budget = load_study("study"), load_study("study-budget")
    assert study.recipes["wasteful"].start_of("base") == study.recipes["straight"].start_of("base")
    bases = {name: recipe.start_of("base").path for name, recipe in budget.recipes.items()}
    assert len(set(bases.values())) == 2
    assert bases["novice"] not in [path for name, path in bases.items() if name != "novice"]
    assert {recipe.collections()["expert"].waste for recipe in budget.recipes.values()} == {0.4}


def test_overrides_hold_for_every_cell(tmp_path: Path) -> None:
    found = load_study(write(tmp_path), ["recipe.seeds=2"])
    assert [recipe.config.seeds for recipe in found.recipes.values()] == [[0, 1], [0, 1]]


def test_the_recipe_may_be_a_file_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(a_recipe(tmp_path, {"gold": {"name": "gold"}})))
    cells = {"one": {"words": "x", "recipe": {"expert": {"waste": 0.2}}}}
    question = QUESTION | {"against": "base", "cells": ["one"]}
    found = read(tmp_path, recipe="own.yaml", cells=cells, questions=[question]).recipes["one"]
    assert (found.root, found.collections()["expert"].waste) == (str(tmp_path / "runs" / "mine" / "one"), 0.2)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"questions": [QUESTION | {"cells": ["half"]}]}, "names 'half', which is no cell"),
        ({"questions": [QUESTION | {"arm": "value"}]}, "is about 'value', which the cell straight does not have"),
        ({"cells": {"one": {"words": "x", "recipe": {"expert": {"waist": 1}}}}, "questions": []}, "questions"),
        (
            {
                "cells": {"one": {"words": "x", "recipe": {"expert": {"waist": 1}}}},
                "questions": [QUESTION | {"cells": ["one"]}],
            },
            "expert.waist",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UserError) as refused:
        read(tmp_path, **changes)
    assert complaint in str(refused.value)


def test_a_study_of_which_nothing_was_run_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is evaluated"):
        read(tmp_path).report()


@pytest.mark.parametrize("error", [Stopped("stopped"), ConfigurationChanged("another"), Unresponsive("silent")])
def test_what_concerns_the_whole_study_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: AtlasError
) -> None:
    ran = list[str]()

    def run(recipe: Recipe, **_: Any) -> None:
        ran.append(recipe.config.name)
        raise error

    monkeypatch.setattr("atlas_ray.recipes.running.run", run)
    with pytest.raises(type(error)):
        read(tmp_path).run()
    assert ran == ["straight"]


def test_a_cell_that_fails_leaves_the_others_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[str]()

    def run(recipe: Recipe, **_: Any) -> None:
        ran.append(recipe.config.name)
        if recipe.config.name == "straight":
            raise AtlasError("no engine starts")

    monkeypatch.setattr("atlas_ray.recipes.running.run", run)
    monkeypatch.setattr(Study, "report", lambda _: "page")
    with pytest.raises(AtlasError, match="straight: no engine starts"):
        read(tmp_path).run()
    assert ran == ["straight", "wasteful"]


def test_the_plan_names_every_cell(tmp_path: Path) -> None:
    lines = "\n".join(read(tmp_path).plan_lines())
    assert "2 cells, 1 announced comparisons" in lines
    assert "wasteful: two steps of five on detours" in lines


@pytest.mark.slow
def test_a_study_runs_and_the_same_command_changes_nothing(tmp_path: Path) -> None:
    file, folder = write(tmp_path), tmp_path / "runs" / "mine"
    run_command(tmp_path, "study", file)
    results = json.loads((folder / "study.json").read_text())
    assert [cell["name"] for cell in results["cells"]] == list(CELLS)
    assert {row["outcome"] for row in results["comparisons"]} <= {"better", "worse", "none"}
    longer = [cell["steps_a_trajectory"] for cell in results["cells"]]
    assert longer[1] > 1.2 * longer[0]
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert before
    page = (folder / "index.html").read_bytes()
    run_command(tmp_path, "study", file)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")} == before
    assert (folder / "index.html").read_bytes() == page
