"""A recipe: the whole run as an ordered list of stages, each resumable by itself.

Flows in: a `RecipeConfig`; flows out: run folders under `runs/<name>/<stage>/<arm>` and the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from atlas_ray.config import DataConfig, EnvironmentsConfig, RayConfig, Strict, validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console
from atlas_ray.selection.settings import SelectConfig, SelectorConfig
from atlas_ray.selection.sources import source_names
from atlas_ray.training.settings import TinyConfig, TrainConfig
from atlas_ray.trajectories.settings import CollectConfig

_PASSED_OVER = 2.0  # seconds; a stage that takes no longer was finished before, and says nothing about the pace


class RecipeConfig(Strict):
    """A whole run: which stages, with which settings. Sections hold the stages' own keys, checked when it is read.

    Attributes:
        expert: Trajectories to select in and train on: a data set, or a collection from scripted experts.
        base: Model to start from: a folder or hub id, or a tiny model trained on the spot.
        arms: Fine-tuned models by name, each with its selector.
        extra_arms: The same, run only when asked for by name (`--with`): what costs money.
        train, evaluate: Settings of every arm's training and of the evaluation.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    runs: str = Field("runs", description="folder or URI under which the recipe's folder lies")
    seed: int = 0
    expert: DataConfig | CollectConfig
    base: str | TinyConfig
    arms: dict[str, SelectorConfig]
    extra_arms: dict[str, SelectorConfig] = {}
    train: dict[str, Any] = {}
    evaluate: dict[str, Any]
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()


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


class Recipe:
    """A recipe's settings resolved into the stages' own configurations.

    Args:
        config: The recipe.
        extra: Names of `extra_arms` to include.

    Raises:
        UserError: An unknown extra arm, or a stage's section that does not fit the stage.
    """

    def __init__(self, config: RecipeConfig, extra: Iterable[str] = ()) -> None:
        self.config = config
        self.root = f"{config.runs.rstrip('/')}/{config.name}"
        unknown = sorted(set(extra) - set(config.extra_arms))
        if unknown:
            raise UserError(
                f"the recipe has no extra arm {unknown[0]!r}", f"valid: {', '.join(config.extra_arms) or 'none'}"
            )
        self.arms = config.arms | {name: config.extra_arms[name] for name in extra}
        tiny = isinstance(config.base, TinyConfig)
        self.base = f"{self.root}/train/base/model" if tiny else str(config.base)
        self.expert = (
            config.expert if isinstance(config.expert, DataConfig) else DataConfig(path=f"{self.root}/collect/expert")
        )
        # every section is checked here, before anything runs
        self.evaluate = validate(
            EvaluateConfig,
            {
                "seed": config.seed,
                "environments": config.environments.model_dump(),
                "ray": config.ray.model_dump(),
                **config.evaluate,
                "run": f"{self.root}/evaluate",
                "models": {"base": self.base} | {arm: self._model(arm) for arm in self.arms},
            },
            where="the recipe's evaluate section",
        )
        self.select = {arm: self._select(arm, self.arms[arm]) for arm in self._in_order()}
        self.train = {arm: self._train(arm, self.base, self.expert, config.train) for arm in self.arms}
        if isinstance(config.base, TinyConfig):
            novice = DataConfig(path=f"{self.root}/collect/novice")
            self.train["base"] = self._train("base", f"{self.root}/collect/untrained", novice, config.base.train)

    def _model(self, arm: str) -> str:
        return f"{self.root}/train/{arm}/model"

    def _in_order(self) -> list[str]:
        """Arms, those first whose selections others are made from; a part by an arm's name is that arm's selection."""
        found: list[str] = []

        def visit(arm: str, made_for: tuple[str, ...]) -> None:
            if arm in made_for:
                raise UserError(
                    f"the arms {' -> '.join([*made_for, arm])} are made from each other", "break the circle"
                )
            for name in source_names(self.arms[arm]):
                if name in self.arms:
                    visit(name, (*made_for, arm))
                elif "/" not in name and RunFolder(f"{self.root}/select/{name}").finished is None:
                    extra = name in self.config.extra_arms
                    remedy = f"include it: --with {name}" if extra else f"arms: {', '.join(self.arms)}"
                    kind = "an extra arm that is not included" if extra else "no arm of the recipe"
                    raise UserError(f"the arm `{arm}` is made from `{name}`, {kind}", remedy)
            if arm not in found:
                found.append(arm)

        for arm in self.arms:
            visit(arm, ())
        return found

    def _select(self, arm: str, selector: SelectorConfig) -> SelectConfig:
        # models that score steps are the recipe's base unless it says otherwise
        if selector.name in ("perplexity", "value") and "model" not in selector.model_fields_set:
            selector = selector.model_copy(update={"model": self.base})
        return SelectConfig(
            run=f"{self.root}/select/{arm}",
            data=self.expert,
            selector=selector,
            seed=self.config.seed,
            environments=self.config.environments,
            ray=self.config.ray,
        )

    def _train(self, arm: str, model: str, data: DataConfig, settings: dict[str, Any]) -> TrainConfig:
        return validate(
            TrainConfig,
            {
                "seed": self.config.seed,
                "ray": self.config.ray.model_dump(),
                **settings,
                "run": f"{self.root}/train/{arm}",
                "rendered": f"{self.root}/rendered",
                "model": model,
                "data": data.model_dump(),
                "selection": None if arm == "base" else f"{self.root}/select/{arm}",
            },
            where="the recipe's train section",
        )

    def stages(self) -> list[Stage]:
        """All stages in order."""
        from atlas_ray.evaluation.stage import evaluate
        from atlas_ray.report.gather import report_recipe
        from atlas_ray.training.distributed import train_agent
        from atlas_ray.trajectories.collect import collect, episodes_of

        collected = {name: len(episodes_of(c)) for name, c in self.collections().items()}
        experts = collected.get("expert", 10_000)
        found = [
            Stage(
                f"collect/{name}",
                f"{c.role} trajectories in {', '.join(c.envs)}",
                partial(collect, c),
                5 + collected[name] / 300,
            )
            for name, c in self.collections().items()
        ]
        if isinstance(self.config.base, TinyConfig):
            weight = 10 + collected["novice"] / 40
            found.append(Stage("train/base", "the tiny base model, on the novice", self._train_base, weight))
        for arm, select in self.select.items():
            costs = {"value": 30 + experts, "perplexity": 15 + experts / 50, "llm": 15 + experts / 5}
            weight = costs.get(select.selector.name, 1.0)
            words = _selector_words(select.selector)
            found.append(Stage(f"select/{arm}", words, partial(self._select_steps, select), weight))
        for arm in self.arms:
            train, weight = self.train[arm], 10 + experts * self.train[arm].epochs / 100
            found.append(Stage(f"train/{arm}", f"the base on steps by `{arm}`", partial(train_agent, train), weight))
        tasks = ", ".join(f"{env} {n if n is not None else 'all'}" for env, n in self.evaluate.tasks.items())
        models = f"{len(self.evaluate.models)} models on test tasks: {tasks}"
        weight = 20 + 15 * len(self.evaluate.models)
        found.append(Stage("evaluate", models, partial(evaluate, self.evaluate), weight))
        found.append(Stage("report", f"{self.root}/report/index.html", partial(report_recipe, self)))
        return found

    def collections(self) -> dict[str, CollectConfig]:
        """The collections that the recipe makes itself, by name."""
        given: dict[str, CollectConfig] = {}
        if isinstance(self.config.expert, CollectConfig):
            given["expert"] = self.config.expert
        if isinstance(self.config.base, TinyConfig):
            given["novice"] = self.config.base.novice
        return {
            name: c.model_copy(
                update={"run": f"{self.root}/collect/{name}", "seed": self.config.seed, "ray": self.config.ray}
            )
            for name, c in given.items()
        }

    @staticmethod
    def _select_steps(config: SelectConfig) -> None:
        from atlas_ray.selection.estimate import estimate_lines
        from atlas_ray.selection.pipeline import select_steps

        if config.selector.name == "llm" and RunFolder(config.run).finished is None:
            # it costs money: the estimate comes first
            for line in estimate_lines(config):
                console.print(line)
        select_steps(config)

    def _train_base(self) -> None:
        from atlas_ray.models.tiny import write_untrained
        from atlas_ray.training.distributed import train_agent
        from atlas_ray.trajectories.readers import read_trajectories

        tiny = self.config.base
        assert isinstance(tiny, TinyConfig)
        train = self.train["base"]
        if RunFolder(train.run).finished is None:
            words = [t for c in self.collections().values() for t in read_trajectories(DataConfig(path=c.run))]
            size = write_untrained(
                train.model,
                words,
                hidden_size=tiny.hidden_size,
                layers=tiny.layers,
                heads=tiny.heads,
                context=tiny.context,
                seed=self.config.seed,
            )
            console.print(f"tiny model: {size / 1e6:.2f} M parameters")
        train_agent(train)

    def plan_lines(self) -> list[str]:
        """What each stage will do, in counts; dollars where a stage costs any."""
        from atlas_ray.environments import table
        from atlas_ray.trajectories.collect import episodes_of

        lines = []
        for name, c in self.collections().items():
            lines.append(f"collect/{name}: {len(episodes_of(c))} episodes by script, no model call")
        if isinstance(self.config.base, TinyConfig):
            lines.append(f"train/base: {self.train['base'].epochs:g} epochs on the novice's trajectories")
        for arm, select in self.select.items():
            lines.append(f"select/{arm}: {_selector_words(select.selector)}{self._cost(select)}")
        for arm, train in self.train.items():
            if arm != "base":
                lines.append(f"train/{arm}: {train.epochs:g} epochs, {train.workers} worker(s), no model call")
        specs = {env: table.get(env) for env in self.evaluate.tasks}
        episodes = self.evaluate.samples * sum(len(s.tasks("test", self.evaluate.tasks[e])) for e, s in specs.items())
        calls = self.evaluate.samples * sum(
            len(s.tasks("test", self.evaluate.tasks[e])) * s.max_rounds for e, s in specs.items()
        )
        models = len(self.evaluate.models)
        lines.append(f"evaluate: {models} models x {episodes} episodes, at most {models * calls} local calls")
        return lines

    def _cost(self, select: SelectConfig) -> str:
        """Calls, tokens and dollars of a selection, where its trajectories are there to be counted."""
        if select.selector.name not in ("llm", "value"):
            return ""
        if isinstance(self.config.expert, CollectConfig) and RunFolder(self.expert.path).finished is None:
            return " (its cost is known once the expert's trajectories are collected)"
        from atlas_ray.selection.estimate import estimate_lines

        return "; " + "; ".join(estimate_lines(select))

    def clean(self) -> None:
        """Deletes what the recipe made, but for judgements that were paid for."""
        paid = [arm for arm, c in self.select.items() if c.selector.name == "llm"]
        for stage in ("collect", "train", "evaluate", "report"):
            RunFolder(f"{self.root}/{stage}").delete()
        for arm in self.arms:
            if arm not in paid:
                RunFolder(f"{self.root}/select/{arm}").delete()

    def run(self, only: Iterable[str] = ()) -> None:
        """Runs the stages in order; what is finished is passed over by the stages themselves.

        Args:
            only: Names or groups (`train`, `select/gold`) to run; all where empty.
        """
        stages = self.stages()
        chosen = [s for s in stages if not (wanted := set(only)) or s.name in wanted or s.name.split("/")[0] in wanted]
        if not chosen:
            raise UserError(f"the recipe has no stage {', '.join(only)}", f"valid: {', '.join(s.name for s in stages)}")
        spent = weighed = 0.0
        for number, stage in enumerate(chosen, 1):
            pace = spent / weighed if weighed else 1.0
            left = pace * sum(s.weight for s in chosen[number - 1 :])
            words = f"{stage.description}  (about {left / 60:.0f} min left in all)"
            console.rule(f"[bold]{number}/{len(chosen)} {stage.name}[/bold]  {words}", align="left")
            begun = time.monotonic()
            stage.run()
            if (seconds := time.monotonic() - begun) > _PASSED_OVER:
                spent, weighed = spent + seconds, weighed + stage.weight


def _selector_words(selector: SelectorConfig) -> str:
    ratio = getattr(selector, "ratio", None)
    return f"steps by `{selector.name}`" + (f", at most {ratio:.0%}" if ratio else "")
