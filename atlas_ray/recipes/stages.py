"""A recipe's stages in order, and the running of them. Flows in: a `Recipe`; flows out: run folders and the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.text import Text

from atlas_ray.address import name_of
from atlas_ray.errors import ModelUnavailable, UserError
from atlas_ray.recipes.graph import Recipe, selector_words, untrained
from atlas_ray.recipes.settings import BASE, load_recipe
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console
from atlas_ray.selection.settings import SelectConfig

_PASSED_OVER = 2.0  # seconds; a stage that takes no longer was finished before, and says nothing about the pace


@dataclass(frozen=True)
class Stage:
    """One stage of a plan: `group/name`, what it will do in words, and the call that does it.

    `weight` is its share of the whole, in seconds of the quickstart on two cores; the pace of the stages already run
    turns the weights left into an ETA.
    """

    name: str
    description: str
    run: Callable[[], Any]
    weight: float = 5.0


def opened(
    file: str, overrides: Iterable[str] = (), extra: Iterable[str] = (), only: Sequence[str] = ()
) -> tuple[Recipe, Recipe, list[str]]:
    """A recipe from its file, by the names that `atlas run` takes.

    Args:
        file: Of the recipe.
        overrides: `a.b=c` strings.
        extra: What costs money and is included.
        only: Names of parts; those of tables narrow the recipe down to what they need.

    Returns:
        What is wanted of the recipe, all of it, and the names of `only` that are stages.

    Raises:
        UserError: A setting or name that is not known.
    """
    config, extra = load_recipe(file, overrides), list(extra)
    whole, tables = Recipe(config, extra), [name for name in only if name in config.tables]
    wanted = Recipe(config, extra, tables) if tables else whole
    return wanted, whole, [name for name in only if name not in tables]


def stages(recipe: Recipe, whole: Recipe | None = None) -> list[Stage]:
    """All stages in order.

    Args:
        recipe: What is run.
        whole: What is reported, where that is more.
    """
    from atlas_ray.evaluation.stage import evaluate
    from atlas_ray.evaluation.verification import verify
    from atlas_ray.recipes.report import report_recipe
    from atlas_ray.training.stage import train_agent
    from atlas_ray.trajectories.collect import collect, episodes_of

    collected = {name: len(episodes_of(c)) for name, c in recipe.collections().items()}
    experts = collected.get("expert", 10_000)
    found = [
        Stage(
            f"collect/{name}",
            f"{c.role} trajectories in {', '.join(c.envs)}",
            partial(collect, c),
            5 + collected[name] / 300,
        )
        for name, c in recipe.collections().items()
    ]
    for name in recipe.tiny:
        words, weight = f"the tiny model `{name}`, on the novice", 10 + collected.get("novice", 0) / 40
        found.append(Stage(f"train/{name}", words, partial(_train_tiny, recipe, name), weight))
    for name, select in recipe.select.items():
        costs = {"value": 30 + experts, "perplexity": 15 + experts / 50, "llm": 15 + experts / 5}
        weight = costs.get(select.selector.name, 1.0)
        found.append(Stage(f"select/{name}", selector_words(select.selector), partial(_select, select), weight))
    for unit in recipe.units:
        train = recipe.train[unit.name]
        words, weight = f"on steps by `{unit.selection}`", 10 + experts * train.epochs / 100
        found.append(Stage(f"train/{unit.name}", words, partial(train_agent, train), weight))
    for key, config in recipe.evaluations.items():
        tasks = ", ".join(f"{env} {n if n is not None else 'all'}" for env, n in config.tasks.items())
        words, weight = f"{len(config.models)} model(s) on test tasks: {tasks}", 20.0 + 15 * len(config.models)
        found.append(Stage(f"evaluate/{key}".rstrip("/"), words, partial(evaluate, config), weight))
    for verification in recipe.verify.values():
        words = f"the base model from `{recipe.config.verify_arm}`'s steps"
        found.append(Stage(name_of(verification.run), words, partial(verify, verification), 120))
    report = partial(report_recipe, whole or recipe, recipe.tables)
    found.append(Stage("report", recipe.at("report", "index.html"), report))
    return found


def run(recipe: Recipe, only: Sequence[str] = (), whole: Recipe | None = None, *, skip_preflight: bool = False) -> None:
    """Runs a preflight, then the stages in order; what is finished is passed over by the stages themselves.

    Args:
        recipe: What to run.
        only: Names or groups (`train`, `select/gold`) of stages to run; all where empty.
        whole: What the report is about, where that is more.
        skip_preflight: Starts without it, and records that.

    Raises:
        UserError: If no stage is of such a name, or the preflight finds a fault.
        ModelUnavailable: If models could not be loaded; every other stage has run by then.
    """
    from atlas_ray.recipes.preflight.run import require_passed, skip

    planned = stages(recipe, whole)
    wanted = set(only)
    chosen = [s for s in planned if not wanted or wanted & _names(s.name)]
    if not chosen:
        tables = [f"; tables: {', '.join(recipe.config.tables)}"] if recipe.config.tables else []
        valid = ", ".join(s.name for s in planned)
        raise UserError(f"the recipe has no stage {', '.join(only)}", f"valid: {valid}{''.join(tables)}")
    if skip_preflight:
        skip(recipe)
    else:
        require_passed(recipe, [s.name for s in chosen], console)
    spent = weighed = 0.0
    missing: list[ModelUnavailable] = []
    for number, stage in enumerate(chosen, 1):
        pace = spent / weighed if weighed else 1.0
        left = pace * sum(s.weight for s in chosen[number - 1 :])
        words = f"{stage.description}  (about {left / 60:.0f} min left in all)"
        title = Text.assemble((f"{number}/{len(chosen)} {stage.name}", "bold"), f"  {words}")
        console.rule(title, align="left")
        begun = time.monotonic()
        try:
            stage.run()
        except ModelUnavailable as error:
            console.print(Text(f"{error.what}\n  the stages that are left go on without", "red"))
            missing.append(error)
        if (seconds := time.monotonic() - begun) > _PASSED_OVER:
            spent, weighed = spent + seconds, weighed + stage.weight
    if missing:
        raise ModelUnavailable("\n  ".join(error.what for error in missing), missing[0].remedy)


def clean(recipe: Recipe) -> None:
    """Deletes what the recipe's stages made, but for judgements that were paid for; of a table, what it needs."""
    made = [RunFolder(c.run) for c in recipe.collections().values()]
    made += [RunFolder(c.run) for c in recipe.train.values()]
    made += [RunFolder(c.run) for c in recipe.select.values() if c.selector.name != "llm"]
    made += [RunFolder(c.run).child(name) for c in recipe.evaluations.values() for name in c.models]
    made += [RunFolder(c.run) for c in recipe.verify.values()]
    for folder in (*made, RunFolder(recipe.at("rendered")), RunFolder(recipe.at("report"))):
        folder.delete()


def _names(stage: str) -> set[str]:
    """What a stage answers to: its own name, its group's, and for all seeds alike the name without the seed."""
    return {stage, stage.partition(".seed")[0], stage.partition("/")[0]}


def _select(config: SelectConfig) -> None:
    from atlas_ray.selection.estimate import estimate_lines
    from atlas_ray.selection.pipeline import select_steps

    if config.selector.name == "llm" and RunFolder(config.run).finished is None:
        # it costs money: the estimate comes first
        for line in estimate_lines(config):
            console.print(line)
    select_steps(config)


def _train_tiny(recipe: Recipe, name: str) -> None:
    from atlas_ray.config import DataConfig
    from atlas_ray.models.tiny import write_untrained
    from atlas_ray.training.stage import train_agent
    from atlas_ray.trajectories.readers import read_trajectories

    tiny, train = recipe.tiny[name], recipe.train[name]
    if RunFolder(train.run).finished is None:
        words = [t for c in recipe.collections().values() for t in read_trajectories(DataConfig(path=c.run))]
        with TemporaryDirectory() as made:
            size = write_untrained(
                made,
                words,
                hidden_size=tiny.hidden_size,
                layers=tiny.layers,
                heads=tiny.heads,
                context=tiny.context,
                seed=recipe.config.seeds[0],
            )
            RunFolder(recipe.at("collect", untrained(name))).copy_from(Path(made))
        what = "tiny model" if name == BASE else f"tiny model {name}"
        console.print(f"{what}: {size / 1e6:.2f} M parameters")
    train_agent(train)
