"""A small recipe, written as its users write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import load_recipe

COMMON = """
name: small
expert: {envs: [maze, textcraft], tasks: 4}
base: some/model
evaluate: {tasks: {maze: 5, textcraft: 6}}
"""


def write(folder: Path, **files: str) -> str:
    """Writes YAML files and returns the path of `own`."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / "own.yaml")


def recipe(folder: Path, text: str, **options: Any) -> Recipe:
    return Recipe(load_recipe(write(folder, own=COMMON + f"runs: {folder}\n" + text)), **options)
