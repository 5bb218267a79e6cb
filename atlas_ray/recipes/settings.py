"""A recipe's settings, and how its file is read: files that it includes, merged under its own keys.

Flows in: YAML under `jobs/`; flows out: a `RecipeConfig`. No stage is imported here but for its settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from atlas_ray.config import (
    PLACEMENT,
    BackboneConfig,
    DataConfig,
    EnvironmentsConfig,
    FrozenConfig,
    MaxFailed,
    RayConfig,
    assign,
    validate,
)
from atlas_ray.errors import UserError
from atlas_ray.models.policies import ModelSection
from atlas_ray.selection.matched import MatchedRandomSelector
from atlas_ray.selection.settings import SelectorConfig
from atlas_ray.training.settings import TinyConfig
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.yaml_text import read_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
BASE = "base"


class ArmConfig(FrozenConfig):
    """A model fine-tuned on chosen steps. `{name: SELECTOR, ...}` is short for `{select: {...}}`, own keys beside it.

    Attributes:
        select: The selector whose steps it is trained on.
        like: Instead of it, the arm whose selection it shares.
        start: The model it starts from: `base`, or one of the recipe's `backbones`.
        envs: Environments that it is trained and evaluated on; the recipe's where None.
        train: False: nothing is trained and evaluated, its selection alone is made and counted.
        control: `random`: a further arm, `ARM-random`, is trained on random steps with as many loss tokens.
        match_loss_tokens: Passes are repeated until as many tokens carried loss as all steps have in training's epochs.
        stand_in: What stands here in the place of the paper's, in words for the tables.
    """

    select: SelectorConfig | None = None
    like: str | None = None
    start: str = BASE
    envs: list[str] | None = None
    train: bool = True
    control: Literal["random"] | None = None
    match_loss_tokens: bool = False
    stand_in: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not {"name", "combine"} & set(given):
            return given
        section = dict(given)
        own = {key: section.pop(key) for key in ("control", "match_loss_tokens") if key in section}
        return {**own, "select": section}

    @model_validator(mode="after")
    def _one_selection(self) -> Self:
        if (self.select is None) == (self.like is None):
            raise ValueError("an arm has either `select` or `like`")
        if not self.train and self.select is None:
            raise ValueError("an arm that is not trained has a selection of its own: `select`, not `like`")
        if not self.train and self.control is not None:
            raise ValueError("an arm that is not trained has no control: leave out `control`")
        return self


def control_of(arm: str) -> str:
    """Name of an arm's control."""
    return f"{arm}-random"


def with_controls(arms: Mapping[str, ArmConfig], max_length: int | None = None) -> dict[str, ArmConfig]:
    """Arms by name, each with its control behind it where it has one.

    Args:
        max_length: Of training.

    Raises:
        ValueError: If an arm has the name of another one's control.
    """
    found: dict[str, ArmConfig] = {}
    for name, arm in arms.items():
        found[name] = arm
        if arm.control is not None:
            if control_of(name) in arms:
                raise ValueError(f"the arm `{control_of(name)}` has the name of the control of `{name}`")
            other = arms.get(arm.like or "")
            shared = other is not None and other.control is not None and other.start == arm.start
            select = MatchedRandomSelector(reference=arm.like or name, max_length=max_length)
            steps = {"like": control_of(arm.like or "")} if shared else {"select": select}
            alike = {"start": arm.start, "envs": arm.envs, "match_loss_tokens": arm.match_loss_tokens}
            found[control_of(name)] = ArmConfig.model_validate(steps | alike)
    return found


class AssumeConfig(FrozenConfig):
    """What a plan reckons with: the model's size and what a GPU does in an hour. No result depends on it."""

    parameters: float = Field(8.03e9, gt=0, description="of the model that is trained and played")
    flops: float = Field(312e12, gt=0, description="peak of one GPU in bfloat16; A100: 312e12, H100: 989e12")
    mfu: float = Field(0.45, gt=0, le=1, description="of training")
    prefill: float = Field(20_000, gt=0, description="prompt tokens a second and GPU, those of the prefix cache aside")
    decode: float = Field(3_000, gt=0, description="generated tokens a second and GPU")
    gpus: int | None = Field(
        None,
        ge=0,
        description="where none are at hand; None: as many as the largest stage takes; 0: none are needed, and what is "
        "said of a GPU holds for the machine",
    )
    dollars_per_gpu_hour: float | None = Field(None, ge=0, description="what a GPU costs; no dollars where None")


def _kind(given: Any) -> str:
    """The class that a setting is held against: complaints are then about that one."""
    if isinstance(given, Mapping):
        return TinyConfig.__name__ if "novice" in given else BackboneConfig.__name__
    return type(given).__name__ if isinstance(given, BackboneConfig | TinyConfig) else str.__name__


# A folder or hub id, by itself or with what its files do not say; or a model that is trained on the spot.
Backbone = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[BackboneConfig, Tag(BackboneConfig.__name__)]
    | Annotated[TinyConfig, Tag(TinyConfig.__name__)],
    Discriminator(_kind),
]


class RecipeConfig(FrozenConfig):
    """A whole run: which stages, with which settings. Sections hold the stages' own keys, checked when it is read.

    Attributes:
        seeds: One run of every arm for each; a number n is short for 0 to n - 1. Collections, base models and
            selections that cost model calls are made once, under the first.
        expert: Trajectories to select in and train on: a data set, or a collection from scripted experts.
        base: Model to start from: a folder or hub id, by itself or with its chat template, or a tiny model trained on
            the spot.
        backbones: Further models that arms start from, by name.
        models: Further models that are evaluated as they are, by name.
        arms: Fine-tuned models by name.
        extra_arms: The same, run only when asked for by name (`--with`): what costs money.
        critical: The arm whose benefit is in question.
        train, evaluate: Settings of every arm's training and of the evaluation.
        verify: Settings of step verification, of the base model on `verify_arm`'s selection; none where None.
        tables: Which arm or model stands in which row of the paper's tables.
        stand_ins: What stands in for the paper's in a whole table: environments by the paper's environment.
        max_failed: Share of failures above which a selection, evaluation or verification has failed.
        jobs: Stages that run at once at most; as many as the cluster has room for where None, one on a laptop.
        assume: What `--dry-run` and the time left are reckoned with where nothing can be counted.
    """

    name: str = Field(pattern=NAME)
    runs: str = Field("runs", description="folder or URI under which the recipe's folder lies")
    seeds: list[int] = Field([0], min_length=1)
    expert: DataConfig | CollectConfig
    base: Backbone
    backbones: dict[str, Backbone] = {}
    models: dict[str, ModelSection] = {}
    arms: dict[str, ArmConfig]
    extra_arms: dict[str, ArmConfig] = {}
    critical: str = "gold"
    train: dict[str, Any] = {}
    evaluate: dict[str, Any]
    verify: dict[str, Any] | None = None
    verify_arm: str = "gold"
    tables: dict[str, dict[str, str]] = {}
    stand_ins: dict[str, dict[str, str]] = {}
    jobs: Annotated[int | None, PLACEMENT] = Field(None, ge=1)
    max_failed: MaxFailed = 0.5
    assume: AssumeConfig = AssumeConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()

    @field_validator("seeds", mode="before")
    @classmethod
    def _count(cls, given: Any) -> Any:
        return list(range(given)) if isinstance(given, int) and not isinstance(given, bool) and given > 0 else given

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, given: list[int]) -> list[int]:
        if len(set(given)) < len(given):
            raise ValueError("every seed once")
        return given

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        arms = with_controls(self.arms | self.extra_arms)
        for name, arm in arms.items():
            if arm.start != BASE and arm.start not in self.backbones:
                raise ValueError(f"arm `{name}` starts from `{arm.start}`, which is neither `base` nor a backbone")
            if arm.like is not None and (arm.like not in arms or arms[arm.like].select is None):
                raise ValueError(f"arm `{name}` is like `{arm.like}`, which is no arm with a selection of its own")
        places = [*arms, BASE, *self.backbones, *self.models]
        if len(set(places)) < len(places):
            raise ValueError("an arm, a backbone and a model cannot share a name")
        for table, rows in self.tables.items():
            if strange := [name for name in rows.values() if name not in places]:
                raise ValueError(f"tables.{table} names `{strange[0]}`, which is no arm and no model")
        return self


class _Loader(yaml.SafeLoader):
    """Safe YAML with `!replace`: the value takes the place of an included one instead of being merged with it."""


class _Replace:
    def __init__(self, value: Any) -> None:
        self.value = value


def _replace(loader: _Loader, node: yaml.Node) -> _Replace:
    if isinstance(node, yaml.MappingNode):
        return _Replace(loader.construct_mapping(node, deep=True))
    if isinstance(node, yaml.SequenceNode):
        return _Replace(loader.construct_sequence(node, deep=True))
    assert isinstance(node, yaml.ScalarNode)
    return _Replace(loader.construct_scalar(node))


_Loader.add_constructor("!replace", _replace)


def load_recipe(file: str, overrides: Iterable[str] = ()) -> RecipeConfig:
    """Reads a recipe with what it includes.

    `include: [FILE, ...]` names files relative to its own, or the package's recipes; they are merged in order, and its
    own keys over them: mappings key by key, everything else as a whole.

    Args:
        file: A path, or the bare name of a recipe that the package brings: `quickstart`.
        overrides: `a.b=c` strings.

    Raises:
        UserError: A missing file, a study, files that include each other, bad YAML, an unknown key, or a bad value.
    """
    values = merged({}, read_layers(file))
    if "cells" in values:
        raise UserError(f"{file} is a study, which has recipes in its cells", f"atlas study {file}")
    for override in overrides:
        assign(values, override)
    return validate(RecipeConfig, values, where=file)


def read_layers(file: str, beside: Path = Path()) -> dict[str, Any]:
    """What a file says with what it includes, before it is checked, for `merged`; raises what `load_recipe` does."""
    return _read(file, beside)


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Settings with others over them: mappings key by key; everything else, and what `!replace` marks, as a whole."""
    return _plain(_merged(under, over))


def unmarked(value: Any) -> Any:
    """What `!replace` marks, or what has no such mark; marks within it stay."""
    return value.value if isinstance(value, _Replace) else value


def _located(file: str, beside: Path = Path()) -> Path:
    """The path that is given; for a bare name where no such file is, the package's own recipe of that name."""
    path, package = beside / file, Path(__file__).parents[1]
    if path.exists() or path.suffix or Path(file).name != file:
        return path
    # in a wheel within the package, in a checkout beside it
    found = {one.stem: one for folder in (package, package.parent) for one in (folder / "jobs").glob("*.yaml")}
    if file not in found:
        raise UserError(f"there is no file and no recipe {file!r}", f"recipes: {', '.join(sorted(found))}; or a path")
    return found[file]


def _read(name: str, beside: Path = Path(), within: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        file = _located(name, beside)
        own = read_yaml(file, _Loader)
    except UserError as error:
        where = f" (included by {within[-1].name})" if within else ""
        raise UserError(f"{error.what}{where}", error.remedy) from None
    if (at := file.resolve()) in within:
        raise UserError(f"{file} includes itself, by way of {within[-1].name}", "break the circle")
    if not isinstance(own, dict):
        raise UserError(f"{file} holds no mapping", "write keys and values: `arms: {gold: {name: gold}}`")
    included = own.pop("include", None) or []
    if isinstance(included, str):
        included = [included]
    values: dict[str, Any] = {}
    for other in included:
        values = _merged(values, _read(other, file.parent, (*within, at)))
    return _merged(values, own)


def _merged(under: Any, over: Any) -> Any:
    if isinstance(under, _Replace) and isinstance(over, dict):
        return _Replace(_merged(under.value, over))
    if isinstance(under, dict) and isinstance(over, dict):
        return under | {k: _merged(under[k], v) if k in under else v for k, v in over.items()}
    return over


def _plain(value: Any) -> Any:
    """Without the marks of `!replace`, which have done their work in merging."""
    if isinstance(value, _Replace):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
