"""A study: one recipe in several cells that differ in a setting or two, and the comparisons announced before they run.

Flows in: YAML; flows out: a run folder for each cell, and the study's page. The base model is made once, in the first
cell, and every other whose base has the same settings starts from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from rich.text import Text

from atlas_ray.address import below
from atlas_ray.config import FrozenConfig, assign, validate
from atlas_ray.errors import AtlasError, ConfigurationChanged, Stopped, Unresponsive, UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.report import gather
from atlas_ray.recipes.settings import BASE, NAME, RecipeConfig, merged, read_layers, unmarked
from atlas_ray.report.study.page import CellInput, Question, StudyInput, write_study
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import AGAIN
from atlas_ray.runs.progress import console
from atlas_ray.training.settings import TinyConfig


class CellConfig(FrozenConfig):
    """One world of a study.

    Attributes:
        words: What it is.
        dial: Where it stands in the figure; it is not in it where None.
        recipe: Its recipe's keys; in the file what differs from the study's recipe, merged over it key by key.
    """

    words: str
    dial: float | None = None
    recipe: dict[str, Any]


class QuestionConfig(FrozenConfig):
    """A comparison that is announced: the arm against the other one, in each of the cells.

    Attributes:
        expected: What we think comes out, and why; written before the runs.
    """

    question: str
    expected: str
    arm: str
    against: str
    cells: list[str] = Field(min_length=1)


class StudyConfig(FrozenConfig):
    """A study's file.

    Beside these keys it has `recipe`: what the recipes of all cells share, or the name of a recipe's file.

    Attributes:
        dial: What the cells of the figure differ in, in words.
        panels: The figure's panels by title, each with its arms.
        replicates: The cells are one world over again, each with a base of its own, say: every question is answered
            over all of its cells together too.
    """

    name: str = Field(pattern=NAME)
    title: str
    runs: str = Field("runs", description="folder or URI under which the study's folder lies")
    cells: dict[str, CellConfig] = Field(min_length=1)
    dial: str
    panels: dict[str, list[str]]
    replicates: bool = False
    questions: list[QuestionConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _cells_are_known(self) -> StudyConfig:
        for asked in self.questions:
            if unknown := [cell for cell in asked.cells if cell not in self.cells]:
                raise ValueError(f"the question {asked.question!r} names {unknown[0]!r}, which is no cell")
        return self


class Study:
    """A study with the recipe of each of its cells.

    Raises:
        UserError: If a cell makes no recipe, or a question is about an arm that its cell does not have.
    """

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.root = below(config.runs, config.name)
        self.recipes: dict[str, Recipe] = {}
        shared = next(iter(config.cells.values())).recipe.get("base")
        for name, cell in config.cells.items():
            values = cell.recipe | {"name": name, "runs": self.root}
            first = next(iter(self.recipes.values()), None)
            if first and isinstance(first.config.base, TinyConfig) and cell.recipe.get("base") == shared:
                values["base"] = first.start_of(BASE).path
            self.recipes[name] = Recipe(validate(RecipeConfig, values, where=f"the cell {name}"))
        for asked in config.questions:
            for name in asked.cells:
                known = {*self.recipes[name].arms, *self.recipes[name].backbones}
                if unknown := [arm for arm in (asked.arm, asked.against) if arm not in known]:
                    what = (
                        f"the question {asked.question!r} is about {unknown[0]!r}, which the cell {name} does not have"
                    )
                    raise UserError(what, f"its arms: {', '.join(sorted(known))}")

    def run(self, jobs: int | None = None) -> str:
        """Runs every cell as `atlas run` runs a recipe, and writes the page; what is finished is left alone.

        Returns:
            Where the page lies.

        Raises:
            AtlasError: If stages of a cell failed; every other cell has run by then, and the page is of what there is.
            Stopped: If a SIGTERM ended it.
        """
        from atlas_ray.recipes.running import run

        failed: dict[str, AtlasError] = {}
        for number, (name, recipe) in enumerate(self.recipes.items(), 1):
            said = f"cell {number} of {len(self.recipes)}: {name}, {self.config.cells[name].words}"
            console.rule(Text(said, "bold"), characters="═", align="left")
            try:
                run(recipe, jobs=jobs)
            except (ConfigurationChanged, Stopped, Unresponsive):
                raise  # it concerns the whole study
            except AtlasError as error:
                failed[name] = error
                console.print(Text(f"{name}: {error}", "red"))
        page = self.report()
        if failed:
            raise AtlasError("\n  ".join(f"{name}: {error.what}" for name, error in failed.items()), AGAIN)
        return page

    def report(self) -> str:
        """Writes the page of the cells that were evaluated.

        Raises:
            UserError: If none was.
        """
        cells: list[CellInput] = []
        missing: list[UserError] = []
        for name, recipe in self.recipes.items():
            cell = self.config.cells[name]
            try:
                cells.append(CellInput(name, cell.words, cell.dial, recipe.evaluations[""].samples, gather(recipe)))
            except UserError as error:
                missing.append(error)
        if not cells:
            raise missing[0]
        questions = [Question(**asked.model_dump()) for asked in self.config.questions]
        c = self.config
        study = StudyInput(c.name, c.title, c.dial, c.panels, cells, questions, c.replicates)
        page = write_study(RunFolder(self.root), study)
        console.print(f"study: {page}")
        return page

    def plan_lines(self, jobs: int | None = None) -> list[str]:
        """What the study would do, in words."""
        from atlas_ray.recipes.plan import plan_lines

        found = [f"{len(self.recipes)} cells, {len(self.config.questions)} announced comparisons"]
        for name, recipe in self.recipes.items():
            found += [f"{name}: {self.config.cells[name].words}", *plan_lines(recipe, jobs)]
        return found


def load_study(file: str, overrides: Iterable[str] = ()) -> Study:
    """Reads a study with what it includes, as `load_recipe` reads a recipe.

    Args:
        file: A path, or the bare name of a study that the package brings.
        overrides: `a.b=c` strings; `recipe.a=b` holds for every cell.

    Raises:
        UserError: A missing file, bad YAML, an unknown key, or a bad value.
    """
    values = read_layers(file)
    if isinstance(values.get("recipe"), str):
        values["recipe"] = read_layers(values["recipe"], Path(file).parent)
    for override in overrides:
        assign(values, override)
    shared, cells = values.pop("recipe", None) or {}, unmarked(values.get("cells"))
    if isinstance(cells, dict):
        values["cells"] = {name: _whole(shared, cell) for name, cell in cells.items()}
    values = merged({}, values)
    return Study(validate(StudyConfig, values, where=file))


def _whole(shared: Any, cell: Any) -> Any:
    """A cell with its whole recipe; what is no mapping is refused when the settings are checked."""
    own = cell.get("recipe") or {} if isinstance(cell, dict) else None
    return cell | {"recipe": merged(shared, own)} if isinstance(own, dict) and isinstance(shared, dict) else cell
