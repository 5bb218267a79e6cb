"""From a recipe's run folders to its report. Flows in: a recipe; flows out: the folder `report/`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_ray.environments import table
from atlas_ray.errors import UserError
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.results import build_results
from atlas_ray.report.site import SiteInput
from atlas_ray.report.stage import write_report
from atlas_ray.report.tables import print_tables
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.selection.settings import SelectorConfig
from atlas_ray.training.metrics import read_metrics
from atlas_ray.trajectories.readers import read_trajectories

if TYPE_CHECKING:
    from atlas_ray.recipe import Recipe


def report_recipe(recipe: Recipe) -> str:
    """Builds the report of a recipe's runs, prints its tables and says where the page lies.

    Raises:
        UserError: If a stage is unfinished.
    """
    given = gather(recipe)
    results = build_results(given)
    page = write_report(RunFolder(f"{recipe.root}/report"), results, site_of(given))
    print_tables(results)
    return page


def site_of(given: ReportInput) -> SiteInput:
    """What the viewer shows of the records that a report is about."""
    return SiteInput(given.trajectories, given.selections, {arm.name: arm.episodes for arm in given.arms})


def gather(recipe: Recipe) -> ReportInput:
    """Reads what the report is made of.

    Raises:
        UserError: If a stage is unfinished.
    """
    evaluation = recipe.evaluate
    specs = {env: table.get(env) for env in evaluation.tasks}
    first = RunFolder(recipe.train[next(iter(recipe.arms))].run).read_json("manifest.json")
    stages = {f"collect/{name}": RunFolder(c.run) for name, c in recipe.collections().items()}
    stages |= {f"select/{arm}": RunFolder(c.run) for arm, c in recipe.select.items()}
    stages |= {f"train/{arm}": RunFolder(c.run) for arm, c in recipe.train.items()}
    stages |= {f"evaluate/{arm}": RunFolder(evaluation.run).child(arm) for arm in evaluation.models}
    return ReportInput(
        recipe=recipe.config.name,
        seeds=[recipe.config.seed],
        git_commit=first["git_commit"],
        versions=first["versions"],
        seconds={name: _finished(folder)["seconds"] for name, folder in stages.items()},
        arms=[_arm(recipe, arm, path) for arm, path in evaluation.models.items()],
        trajectories=read_trajectories(recipe.expert),
        selections={arm: RunFolder(c.run).read(SELECTIONS) for arm, c in recipe.select.items()},
        specs=specs,
        n_expected={
            env: len(spec.tasks("test", evaluation.tasks[env])) * evaluation.samples for env, spec in specs.items()
        },
        temperature=evaluation.temperature,
        instruction=evaluation.instructions or "the environment's own",
        max_excluded=evaluation.max_excluded,
    )


def _arm(recipe: Recipe, name: str, model: str) -> Arm:
    selector: SelectorConfig | None = recipe.arms.get(name)
    trained = _finished(RunFolder(recipe.train[name].run)) if selector else {}
    steps = read_metrics(RunFolder(recipe.train[name].run)) if selector else []
    return Arm(
        name=name,
        model=model,
        selector=selector.name if selector else None,
        ratio=getattr(selector, "ratio", None),
        step_fraction=trained.get("step_fraction"),
        loss_token_fraction=trained.get("loss_token_fraction"),
        train_steps=trained.get("train_steps"),
        episodes=RunFolder(recipe.evaluate.run).child(name).read(EPISODES),
        losses=[step["loss"] for step in steps],
        validation=[(step["step"], step["validation_loss"]) for step in steps if "validation_loss" in step],
    )


def _finished(folder: RunFolder) -> dict[str, Any]:
    finished = folder.finished
    if finished is None:
        raise UserError(f"{folder.uri} is not finished", "run the recipe first: atlas run RECIPE")
    return finished
