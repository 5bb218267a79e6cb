"""Controls of arms: random steps with as many loss tokens, at equal passes and at equal loss tokens."""

from __future__ import annotations

from pathlib import Path

from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import load_recipe
from tests.support.recipe_text import COMMON, recipe, write


def test_a_control_is_an_arm_with_as_many_loss_tokens_in_random_steps(tmp_path: Path) -> None:
    text = """
seeds: 2
train: {max_length: 512}
backbones: {other: models/other}
arms: {gold: {name: gold, control: random}, far: {like: gold, start: other, control: random}, all: {name: all}}
extra_arms: {llm: {name: llm, control: random}}
tables: {table1: {all: all}, table2: {atlas: gold}}
"""
    found = recipe(tmp_path, text)
    assert list(found.arms) == ["gold", "gold-random", "far", "far-random", "all"]
    selector = found.select["gold-random.seed1"].selector
    assert selector.model_dump() == {
        **{"name": "matched_random", "reference": "gold", "model": "some/model"},
        **{"chat_template": None, "max_length": 512},
    }
    assert found.select["far-random"].selector == selector.model_copy(update={"model": "models/other"})
    assert found.train["far-random"].model == "models/other"
    assert found.train["far-random"].selection == found.select["far-random"].run
    config = load_recipe(write(tmp_path, own=COMMON + text))
    assert "llm-random" in Recipe(config, ["llm"]).arms
    assert list(Recipe(config, tables=["table2"]).arms) == ["gold", "gold-random"]
    assert list(Recipe(config, tables=["table1"]).arms) == ["all"]


def test_an_arm_that_sees_as_many_loss_tokens_shares_the_steps_and_the_control_of_the_arm_it_is_like(
    tmp_path: Path,
) -> None:
    text = """
train: {max_length: 512, epochs: 4}
arms: {gold: {name: gold, control: random}, long: {like: gold, match_loss_tokens: true, control: random}}
"""
    found = recipe(tmp_path, text)
    assert list(found.arms) == ["gold", "gold-random", "long", "long-random"]
    assert set(found.select) == {"gold", "gold-random"}
    assert [found.train[name].selection for name in ("long", "long-random")] == [
        found.select[name].run for name in ("gold", "gold-random")
    ]
    assert {name: c.match_loss_tokens for name, c in found.train.items()} == {
        **{"gold": False, "gold-random": False},
        **{"long": True, "long-random": True},
    }
    assert (found.train["long"].passes(0.25), found.train["gold"].passes(0.25)) == (16, 4)
