"""From a recipe's run folders to its report. Flows in: a recipe; flows out: the folder `report/`.

What is finished is reported; what is not is named as missing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from atlas_ray.address import name_of
from atlas_ray.environments import registry
from atlas_ray.errors import UserError
from atlas_ray.evaluation.items import test_tasks
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.models.pretrained import weights_note
from atlas_ray.recipes.paper_runs import gather_paper
from atlas_ray.recipes.preflight.findings import RECORD
from atlas_ray.recipes.settings import BASE
from atlas_ray.report.html import write_report
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.paper.figures import cost_figures, figure2
from atlas_ray.report.paper.render import as_table, chosen_table, cost_table, write_paper_tables
from atlas_ray.report.paper.tables import PaperTable, paper_tables
from atlas_ray.report.results import build_results
from atlas_ray.report.selection_figures import selection_figures
from atlas_ray.report.site import SiteInput
from atlas_ray.report.tables import Table, print_table, print_tables
from atlas_ray.rollouts.episode import episode_id
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.progress import console
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.training.metrics import read_metrics
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Episode, Task

if TYPE_CHECKING:
    from atlas_ray.recipes.graph import Recipe
    from atlas_ray.selection.protocol import Selector


def report_recipe(recipe: Recipe, shown: Collection[str] | None = None) -> str:
    """Builds the report of a recipe's runs, prints its tables and says where the page lies.

    Args:
        shown: Names of the paper's tables that are printed; the recipe's where None. The page has all of them.

    Raises:
        UserError: If nothing was evaluated.
    """
    given = gather(recipe)
    results, folder = build_results(given), RunFolder(recipe.at("report"))
    runs = gather_paper(recipe)
    tables = [made for made in paper_tables(runs) if made.name in recipe.config.tables]
    written = write_paper_tables(folder, tables)
    site = site_of(given)
    site = replace(
        site,
        episodes={**site.episodes, **_apart(recipe)},
        tables=[shown for made in tables for shown in _page_tables(made)],
        figures=[*figure2(runs), *cost_figures(runs), *selection_figures(results, given.selections)],
        downloads=written,
    )
    page = write_report(folder, results, site)
    print_tables(results)
    asked = [made for made in tables if made.name in (recipe.tables if shown is None else shown)]
    ran = [made for made in asked if any(cell.ours for row in made.rows for cell in row.cells)]
    print_table(*(as_table(made, averages=True) for made in ran))
    print_table(*(chosen_table(made) for made in asked if made.chosen))
    if written:
        console.print(f"the paper's tables beside ours: {len(written)} files in {folder.child('tables').uri}")
    console.print(f"report: {page}")
    return page


def _page_tables(made: PaperTable) -> Iterator[Table]:
    yield as_table(made)
    if made.costs:
        yield cost_table(made)
    if made.chosen:
        yield chosen_table(made)


def site_of(given: ReportInput) -> SiteInput:
    """What the viewer shows of the records that a report is about."""
    played = {arm.name: arm.episodes for arm in given.arms if arm.episodes}
    return SiteInput(given.trajectories, given.selections, played)


def _apart(recipe: Recipe) -> dict[str, Sequence[Episode]]:
    """What models played that are evaluated in some environments alone."""
    groups = [config for key, config in recipe.evaluations.items() if key]
    folders = {unit: RunFolder(config.run).child(unit) for config in groups for unit in config.models}
    return {unit: folder.read(EPISODES) for unit, folder in folders.items() if folder.finished is not None}


def gather(recipe: Recipe) -> ReportInput:
    """Reads what the report is made of: the arms of the main evaluation, their seeds together.

    Raises:
        UserError: If no model was evaluated to the end.
    """
    evaluation, seeds = recipe.evaluations[""], recipe.config.seeds
    specs = {env: registry.get(env) for env in evaluation.tasks}
    stages = {f"collect/{name}": RunFolder(c.run) for name, c in recipe.collections().items()}
    stages |= {f"select/{name}": RunFolder(c.run) for name, c in recipe.select.items()}
    stages |= {f"train/{name}": RunFolder(c.run) for name, c in recipe.train.items()}
    evaluated = {n: RunFolder(c.run).child(n) for c in recipe.evaluations.values() for n in c.models}
    stages |= {f"evaluate/{name}": folder for name, folder in evaluated.items()}
    finished = {name: found for name, folder in stages.items() if (found := folder.finished) is not None}
    tried = evaluated | {name_of(c.run): RunFolder(c.run) for c in recipe.verify.values()}
    failures = {name: reason for name, folder in tried.items() if (reason := failure_of(folder)) is not None}
    empty = {f"evaluate/{name}" for name in failures}
    if missing := [name for name in stages if name not in finished and name not in empty]:
        causes = {name: f" ({why})" for name in missing if (why := failure_of(stages[name]))}
        console.print(f"not finished, so not reported: {', '.join(name + causes.get(name, '') for name in missing)}")
    names = [*recipe.backbones, *(arm for arm in recipe.arms if recipe.group_of(arm) == ""), *recipe.models]
    arms = [arm for name in names if (arm := _arm(recipe, name, finished, failures)) is not None]
    begun = (folder for name in evaluation.models if (folder := RunFolder(evaluation.run).child(name)).exists)
    if not arms or (first := next(begun, None)) is None:
        why = next((f"; {name} failed: {cause}" for name, f in stages.items() if (cause := failure_of(f))), "")
        raise UserError(f"nothing is evaluated in {recipe.root}{why}", "run the recipe first: atlas run RECIPE")
    manifest = first.read_json("manifest.json")
    selections = {n: RunFolder(c.run) for n, c in recipe.select.items() if f"select/{n}" in finished}
    return ReportInput(
        recipe=recipe.config.name,
        seeds=seeds,
        git_commit=manifest["git_commit"],
        versions=manifest["versions"],
        seconds={name: found["seconds"] for name, found in finished.items()},
        arms=arms,
        trajectories=read_trajectories(recipe.expert),
        selections={name: folder.read(SELECTIONS) for name, folder in selections.items()},
        specs=specs,
        n_expected={env: len(tasks) * evaluation.samples for env, tasks in test_tasks(evaluation).items()},
        temperature=evaluation.temperature,
        openings=manifest.get("openings", {}),
        critical=recipe.config.critical,
        max_excluded=evaluation.max_excluded,
        failures=failures,
        made_base=BASE in recipe.tiny,
        preflight=_preflight(RunFolder(recipe.root)),
        other_tasks=other_tasks(evaluation.tasks, evaluation.environments) if recipe.config.tables else {},
    )


def _preflight(root: RunFolder) -> str | None:
    """What became of the last preflight; None where there was none yet."""
    if not root.has(RECORD):
        return None
    record = root.read_json(RECORD)
    if record["skipped"]:
        return "left out (--skip-preflight)"
    failed = sum(finding["result"] == "failed" for finding in record["findings"])
    return f"{failed} of {len(record['findings'])} checks failed" if failed else "passed"


def _arm(recipe: Recipe, name: str, finished: dict[str, dict[str, Any]], failures: Collection[str]) -> Arm | None:
    """An arm or the base with what its seeds played, one after the other as samples of the same tasks; without any
    where none could be loaded.
    """
    units = [unit.name for unit in recipe.units if unit.arm == name] or [name]
    played = [unit for unit in units if f"evaluate/{unit}" in finished]
    known = [*played, *(unit for unit in units if unit in failures)]
    if not known:
        return None
    evaluation = recipe.evaluations[""]
    episodes: list[Episode] = []
    for i, unit in enumerate(played):
        found = RunFolder(evaluation.run).child(unit).read(EPISODES)
        episodes += [_as_sample(e, e.sample + i * evaluation.samples) for e in found]
    selector = recipe.selector_of(name) if name in recipe.arms else None
    trained = finished.get(f"train/{known[0]}", {}) if selector else {}
    steps: Sequence[dict[str, Any]] = read_metrics(RunFolder(recipe.train[known[0]].run)) if selector else []
    model = evaluation.played[known[0]]
    return Arm(
        name=name,
        model=model.path,
        selector=selector.name if selector else None,
        ratio=getattr(selector, "ratio", None),
        step_fraction=trained.get("step_fraction"),
        loss_token_fraction=trained.get("loss_token_fraction"),
        train_steps=trained.get("train_steps"),
        episodes=episodes,
        losses=[step["loss"] for step in steps],
        validation=[(step["step"], step["validation_loss"]) for step in steps if "validation_loss" in step],
        start=recipe.arms[name].start if name in recipe.arms else name,
        selection=recipe.arms[name].like if name in recipe.arms else None,
        reference=getattr(selector, "reference", None),
        words=_words(recipe, name, selector),
        match_loss_tokens=name in recipe.arms and recipe.arms[name].match_loss_tokens,
        runs=len(played),
        context=next((finished[f"evaluate/{unit}"].get("context") for unit in played), None),
        weights=weights_note(model),
    )


def _words(recipe: Recipe, name: str, selector: Selector | None) -> str:
    """What a model is: before fine-tuning, or which steps it was tuned on, as the selector says of itself."""
    if selector is None:
        tiny = recipe.tiny.get(name)
        layers = f"{tiny.layers} layers of {tiny.hidden_size}" if tiny else ""
        size = f": a tiny one ({layers}), trained here on a script's clumsy play" if tiny else ""
        return f"The model before fine-tuning{size}." if name in recipe.backbones else "Another model, as it is."
    said = (inspect.getdoc(type(selector)) or "").partition("\n\n")[0].replace("\n", " ")
    said = re.sub(r" \((section|App\.)[^)]*\)", "", said)  # where the paper speaks of it
    reference = getattr(selector, "reference", None)
    if recipe.arms[name].match_loss_tokens:
        said += " As many tokens carried loss as with all steps: the passes were repeated."
    return said.replace("`reference`", reference).replace("the reference", reference) if reference else said


def _as_sample(episode: Episode, sample: int) -> Episode:
    task = Task(episode.env, episode.item_id)
    return replace(episode, id=episode_id(task, sample, episode.start_step), sample=sample)
