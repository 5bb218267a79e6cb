"""A recipe resolved: every stage's own configuration, and which of them share what.

Flows in: a `RecipeConfig`; flows out: configurations by name, and the stages in order. Parts that several arms need are
there once: a selection serves every arm that is like it, a base model is trained and evaluated once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from atlas_ray.address import below
from atlas_ray.config import CONTEXT, BackboneConfig, DataConfig, EngineConfig, validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig, VerifyConfig
from atlas_ray.models.engine import EngineModel
from atlas_ray.models.policies import ModelConfig, played_by
from atlas_ray.recipes.settings import BASE, Backbone, RecipeConfig, control_of, with_controls
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.settings import SelectConfig, SelectorConfig
from atlas_ray.training.settings import TinyConfig, TrainConfig
from atlas_ray.trajectories.settings import CollectConfig


@dataclass(frozen=True, slots=True)
class Unit:
    """One fine-tuned model: an arm under one seed.

    Attributes:
        name: Of its folders: the arm's, and behind it every seed's but the first.
        selection: Name of the selection whose steps it is trained on.
    """

    name: str
    arm: str
    seed: int
    selection: str


class Recipe:
    """A recipe's settings resolved into the stages' own configurations.

    Args:
        config: The recipe.
        extra: What costs money and is included: names of `extra_arms`, and of models behind endpoints.
        tables: Only what these of the recipe's tables need; everything where empty.

    Raises:
        UserError: An unknown extra arm or table, or a stage's section that does not fit the stage.
    """

    def __init__(self, config: RecipeConfig, extra: Iterable[str] = (), tables: Collection[str] = ()) -> None:
        self.config = config
        self.root = below(config.runs, config.name)
        paid = [name for name, model in config.models.items() if played_by(model).endpoint]
        if unknown := sorted(set(extra) - {*config.extra_arms, *paid}):
            valid = ", ".join([*config.extra_arms, *paid]) or "none"
            raise UserError(f"the recipe has no extra arm {unknown[0]!r}", f"valid: {valid}")
        included = {name: arm for name, arm in config.extra_arms.items() if name in set(extra)}
        trained = config.train.get("max_length", TrainConfig.model_fields["max_length"].default)
        self.arms = with_controls(config.arms | included, trained if isinstance(trained, int) else None)
        self.models = {name: model for name, model in config.models.items() if name not in set(paid) - set(extra)}
        self.backbones: dict[str, Backbone] = {BASE: config.base} | config.backbones
        self.verifies = config.verify is not None
        self.tables = list(tables or config.tables)
        if tables:
            self._narrow(set(tables))
        self.expert = (
            config.expert if isinstance(config.expert, DataConfig) else DataConfig(path=self.at("collect", "expert"))
        )
        # every section is checked here, before anything runs
        self.select = self._selections()
        self.units = [self._unit(name, seed) for name, arm in self.arms.items() if arm.train for seed in config.seeds]
        self.train: dict[str, TrainConfig] = {}
        for name, tiny in self.tiny.items():
            data = DataConfig(path=self.at("collect", self._novice(name)))
            settings = {"seed": config.seeds[0], **tiny.train}
            self.train[name] = self._training(name, self.at("collect", untrained(name)), data, None, settings)
        self.train |= {unit.name: self._train(unit) for unit in self.units}
        self.evaluations = self._evaluations()
        self.verify = self._verifications()

    def at(self, *names: str) -> str:
        """Where something of this recipe lies."""
        return below(self.root, *names)

    @cached_property
    def tiny(self) -> dict[str, TinyConfig]:
        """Backbones that are trained on the spot."""
        return {name: model for name, model in self.backbones.items() if isinstance(model, TinyConfig)}

    def start_of(self, backbone: str) -> BackboneConfig:
        """A backbone's folder or hub id, with what its files do not say."""
        model = self.backbones[backbone]
        if isinstance(model, TinyConfig):
            model = self.at("train", backbone, "model")
        return BackboneConfig(path=model) if isinstance(model, str) else model

    def group_of(self, arm: str) -> str:
        """The evaluation that an arm belongs to: one for all models that are played in the same environments."""
        return "-".join(self.arms[arm].envs or []) if arm in self.arms else ""

    def collections(self) -> dict[str, CollectConfig]:
        """The collections that the recipe makes itself, by name."""
        given: dict[str, CollectConfig] = {}
        if isinstance(self.config.expert, CollectConfig):
            given["expert"] = self.config.expert
        for name, tiny in self.tiny.items():
            given[self._novice(name)] = tiny.novice
        common = {"seed": self.config.seeds[0], "ray": self.config.ray}
        return {name: c.model_copy(update={"run": self.at("collect", name), **common}) for name, c in given.items()}

    def _novice(self, backbone: str) -> str:
        """The collection that a tiny backbone learns from; those that are asked for alike are one."""
        first = next(name for name, tiny in self.tiny.items() if tiny.novice == self.tiny[backbone].novice)
        return "novice" if first == BASE else f"novice-{first}"

    def _narrow(self, tables: set[str]) -> None:
        """Leaves only what the tables need, and what that is made of."""
        if unknown := sorted(tables - set(self.config.tables)):
            raise UserError(f"the recipe has no table {unknown[0]!r}", f"valid: {', '.join(self.config.tables)}")
        wanted = {name for table in tables for name in self.config.tables[table].values()}
        wanted |= {control_of(name) for name in wanted if name in self.arms and self.arms[name].control is not None}
        self.verifies = self.verifies and "table6" in tables
        if self.verifies:
            wanted.add(self.config.verify_arm)
        needed: set[str] = set()

        def need(arm: str) -> None:
            if arm in needed or arm not in self.arms:
                return
            needed.add(arm)
            for name in self.selector_of(arm).sources():
                need(name)
            need(self.arms[arm].like or arm)

        for name in wanted:
            need(name)
        self.arms = {name: arm for name, arm in self.arms.items() if name in needed}
        self.models = {name: model for name, model in self.models.items() if name in wanted}
        starts = {arm.start for arm in self.arms.values()} | wanted | {BASE}
        self.backbones = {name: model for name, model in self.backbones.items() if name in starts}

    def selector_of(self, arm: str) -> SelectorConfig:
        """The selector whose steps an arm is trained on."""
        own = self.arms[arm].select or self.arms[self.arms[arm].like or ""].select
        assert own is not None
        return own

    def _selections(self) -> dict[str, SelectConfig]:
        """By name, those first that others are made from; a part by an arm's name is that arm's selection."""
        found: list[str] = []

        def visit(arm: str, made_for: tuple[str, ...]) -> None:
            if arm in made_for:
                raise UserError(
                    f"the arms {' -> '.join([*made_for, arm])} are made from each other", "break the circle"
                )
            for name in self.selector_of(arm).sources():
                if name in self.arms:
                    visit(name, (*made_for, arm))
                elif "/" not in name and RunFolder(self.at("select", name)).finished is None:
                    extra = name in self.config.extra_arms
                    remedy = f"include it: --with {name}" if extra else f"arms: {', '.join(self.arms)}"
                    kind = "an extra arm that is not included" if extra else "no arm of the recipe"
                    raise UserError(f"the arm `{arm}` is made from `{name}`, {kind}", remedy)
            if arm not in found and self.arms[arm].select is not None:
                found.append(arm)

        for arm in self.arms:
            visit(arm, ())
        return {self._named(arm, seed): self._select(arm, seed) for arm in found for seed in self.config.seeds}

    def _named(self, arm: str, seed: int) -> str:
        """Name of an arm's selection under a seed: one for all seeds, unless it is drawn and costs nothing."""
        drawn = self.selector_of(arm).drawn
        return _seeded(self.arms[arm].like or arm, seed, self.config.seeds[0]) if drawn else self.arms[arm].like or arm

    def _select(self, arm: str, seed: int) -> SelectConfig:
        name, start = self._named(arm, seed), self.start_of(self.arms[arm].start)
        selector = self.selector_of(arm).for_seed(lambda one: self._named(one, seed) if one in self.arms else one)
        return SelectConfig(
            run=self.at("select", name),
            data=self._data(self.arms[arm].envs),
            selector=selector.for_arm(start, self._engine(), self._engine(start)),
            seed=seed if name != arm else self.config.seeds[0],
            max_failed=self.config.max_failed,
            environments=self.config.environments,
            ray=self.config.ray,
        )

    def _engine(self, start: BackboneConfig | None = None) -> EngineConfig:
        """Evaluation's engines; the context that they give the model of a backbone."""
        engine = validate(EngineConfig, self.config.evaluate.get("engine") or {}, where="the recipe's evaluate.engine")
        trained = self.config.train.get("max_length")
        if engine.max_model_len is None and isinstance(trained, int) and trained > CONTEXT:
            engine = engine.model_copy(update={"max_model_len": trained})
        own = start.max_model_len if start is not None else None
        return engine if own is None else engine.capped(own)

    def _data(self, envs: list[str] | None) -> DataConfig:
        return self.expert.model_copy(update={"envs": envs}) if envs else self.expert

    def _unit(self, arm: str, seed: int) -> Unit:
        return Unit(_seeded(arm, seed, self.config.seeds[0]), arm, seed, self._named(arm, seed))

    def _train(self, unit: Unit) -> TrainConfig:
        arm = self.arms[unit.arm]
        settings = {"seed": unit.seed, **self.config.train}
        if arm.match_loss_tokens:
            settings["match_loss_tokens"] = True
        selection, start = self.at("select", unit.selection), self.start_of(arm.start)
        if start.chat_template is not None:
            settings["chat_template"] = start.chat_template
        return self._training(unit.name, start.path, self._data(arm.envs), selection, settings)

    def _training(
        self, name: str, model: str, data: DataConfig, selection: str | None, settings: dict[str, Any]
    ) -> TrainConfig:
        given = {
            "ray": self.config.ray.model_dump(),
            **settings,
            "run": self.at("train", name),
            "rendered": self.at("rendered"),
            "model": model,
            "data": data.model_dump(),
            "selection": selection,
        }
        return validate(TrainConfig, given, where="the recipe's train section")

    def _evaluations(self) -> dict[str, EvaluateConfig]:
        """One evaluation for all models in the same environments: they take turns in the same engines."""
        main = {name: _played(self.start_of(name)) for name in self.backbones}
        groups: dict[str, tuple[list[str], dict[str, str | ModelConfig]]] = {
            "": (list(self.config.evaluate.get("tasks", {})), main)
        }
        for unit in self.units:
            group = groups.setdefault(self.group_of(unit.arm), (self.arms[unit.arm].envs or [], {}))
            # it brings its template along
            trained = {"path": self.at("train", unit.name, "model"), "chat_template": None}
            group[1][unit.name] = _played(self.start_of(self.arms[unit.arm].start).model_copy(update=trained))
        main |= self.models
        return {key: self._evaluation(key, envs, models) for key, (envs, models) in groups.items()}

    def _evaluation(self, key: str, envs: list[str], models: dict[str, str | ModelConfig]) -> EvaluateConfig:
        settings, expert = self.config.evaluate, self.config.expert
        tasks = settings.get("tasks", {})
        if unknown := [env for env in envs if env not in tasks]:
            raise UserError(f"an arm is about {unknown[0]!r}, where nothing is evaluated", "name it in evaluate.tasks")
        return validate(
            EvaluateConfig,
            {
                "seed": self.config.seeds[0],
                "environments": self.config.environments.model_dump(),
                "ray": self.config.ray.model_dump(),
                "max_failed": self.config.max_failed,
                **({"protocol": expert.protocol} if isinstance(expert, CollectConfig) else {}),
                **settings,
                "engine": _given(self._engine()),
                "openings": self._openings(),
                "tasks": {env: tasks[env] for env in envs},
                "run": self.at("evaluate", *filter(None, [key])),
                "models": models,
            },
            where="the recipe's evaluate section",
        )

    def _openings(self) -> Any:
        """As the section says; the data is the experts', unless it is made here, in environments that are evaluated."""
        settings = self.config.evaluate
        given = settings.get("openings", {})
        if "instructions" in settings or not isinstance(self.config.expert, DataConfig):
            return given or None
        return {"data": self.expert.model_dump(), **given} if isinstance(given, dict) else given

    def _verifications(self) -> dict[int, VerifyConfig]:
        """By seed: it draws the control's starts, and what a model says that is not greedy."""
        return {seed: self._verification(seed) for seed in self.config.seeds} if self.verifies else {}

    def _verification(self, seed: int) -> VerifyConfig:
        arm = self.config.verify_arm
        if arm not in self.arms:
            raise UserError(f"verify_arm names `{arm}`, which is no arm", f"arms: {', '.join(self.arms)}")
        settings, first = dict(self.config.verify or {}), self.config.seeds[0]
        start = self.start_of(BASE)
        return validate(
            VerifyConfig,
            {
                "seed": seed,
                "environments": self.config.environments.model_dump(),
                "ray": self.config.ray.model_dump(),
                "max_failed": self.config.max_failed,
                "data": {**self.expert.model_dump(), **settings.pop("data", {})},
                **settings,
                "engine": _given(self._engine(start)) | (settings.get("engine") or {}),
                "run": self.at(_seeded("verify", seed, first)),
                "model": start.path,
                "chat_template": start.chat_template,
                "selection": self.at("select", self._named(arm, seed)),
            },
            where="the recipe's verify section",
        )


def _played(model: BackboneConfig) -> str | ModelConfig:
    """A model as evaluation takes it; by its path alone where nothing else is said of it."""
    return EngineModel(**_given(model)) if model.chat_template or model.max_model_len else model.path


def _given(settings: BaseModel) -> dict[str, Any]:
    """The keys that were set, with their values."""
    return {key: getattr(settings, key) for key in settings.model_fields_set}


def _seeded(arm: str, seed: int, first: int) -> str:
    return arm if seed == first else f"{arm}.seed{seed}"


def untrained(backbone: str) -> str:
    """Name of the folder of a tiny backbone's first weights, among the collections."""
    return "untrained" if backbone == BASE else f"untrained-{backbone}"


def selector_words(selector: SelectorConfig) -> str:
    """A selector and its budget in words."""
    ratio, reference = getattr(selector, "ratio", None), getattr(selector, "reference", None)
    prompt = ", by the paper's prompt" if getattr(selector, "prompt", None) == "paper" else ""
    of = f" for `{reference}`" if reference else ""
    return f"steps by `{selector.name}`{of}" + (f", at most {ratio:.0%}" if ratio else "") + prompt
