"""Configuration of every stage: pydantic models, read from YAML, overridden by `--set a.b=c`.

Unknown keys are refused with the closest valid name. Flows in: a YAML file and overrides; flows out: a frozen model.
"""

from __future__ import annotations

import difflib
import re
import sys
import types
import typing
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from atlas_ray.address import refuse_credentials
from atlas_ray.chat_template import read_template
from atlas_ray.errors import UserError
from atlas_ray.plugins import add_named
from atlas_ray.yaml_text import parse_yaml, read_yaml

warnings.filterwarnings("ignore", 'Field name "register" in', UserWarning)  # ABCMeta has a method of this name
CONTEXT = 8192  # tokens that every model of a comparison gets, or fewer where it was made for fewer

# In place of the tokenizer's own: the name of a built-in one, a file, or Jinja text; settings hold the text.
ChatTemplate = Annotated[str, AfterValidator(read_template)]


class Placement(Enum):
    """Marks a setting of where or how fast a run goes, which changes nothing about its results: it may differ when the
    run is resumed. `ADDRESSES`: of a mapping the values alone, e.g. where a server stands, not which there are."""

    FREE = "free"
    ADDRESSES = "addresses"


PLACEMENT = Placement.FREE


@dataclass(frozen=True, slots=True)
class Renamed:
    """Marks a setting that the version before called `old`: that key is still read, with a warning."""

    old: str


@cache
def _warn_renamed(old: str, new: str) -> None:
    sys.stderr.write(f"atlas: the setting `{old}` is called `{new}` now; the next version will refuse the old name\n")


class FrozenConfig(BaseModel):
    """Frozen, and closed to unknown keys. An empty section (`train:` with nothing below) is as if it were not there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read_keys(cls, values: Any, info: ValidationInfo) -> Any:
        """Gives old names of settings the new ones, and drops empty sections."""
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for name, field in cls.model_fields.items():
            for old in (mark.old for mark in field.metadata if isinstance(mark, Renamed) and mark.old in found):
                order = list(found)  # what is given last holds, as where one name is given twice: a file, then --set
                given = found.pop(old)
                if name not in found or order.index(old) > order.index(name):
                    found[name] = given
                if not info.context:
                    _warn_renamed(old, name)
            if found.get(name, ...) is None and not _takes_none(field.annotation):
                del found[name]
        return found


class DataConfig(FrozenConfig):
    """Where expert trajectories come from.

    `path` is a file (.json, .jsonl, .csv, these with .gz or .zst, .parquet), a folder of them, the URI of one in an
    object store, or a Hugging Face dataset id. `format` is told from the rows, or the name of a data format, or one's
    place as `module:NAME`.
    """

    path: str
    format: str = "auto"
    revision: str | None = None
    envs: list[str] | None = None
    limit: int | None = Field(None, ge=1, description="first trajectories per environment")


class RayConfig(FrozenConfig):
    """How to reach Ray: an address, or None for `RAY_ADDRESS` and else a cluster on this machine."""

    address: str | None = None
    num_cpus: int | None = None


# Of nodes, in Ray's forms: `a`, `!a`, `in(a, b)`.
LabelSelector = dict[str, str]


MaxFailed = Annotated[
    float,
    PLACEMENT,
    Field(ge=0, le=1, description="share of failures above which a run has failed; all are too many in any case"),
]


ActionProtocol = Literal["react", "tools"]  # how a policy acts: by text (Thought, Action), or by native calls of tools


class EngineConfig(FrozenConfig):
    """One vLLM engine replica and how many of them."""

    replicas: Annotated[int, PLACEMENT] = Field(1, ge=1)
    tensor_parallel: Annotated[int, PLACEMENT] = Field(1, ge=1)
    coordinators: Annotated[int | None, PLACEMENT] = Field(
        None, ge=1, description="actors that coordinate episodes; None: one for 32 replicas, none where one is enough"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto",
        description="auto: the model's own on GPUs; on CPUs with instructions for it, unless the model is tiny, "
        "bfloat16; else float32",
    )
    max_model_len: int | None = Field(
        None, ge=16, description=f"context in tokens, at most the model's own; models that are compared: {CONTEXT}"
    )
    max_num_seqs: Annotated[int, PLACEMENT] = Field(256, ge=1, description="sequences that the engine decodes at once")
    episodes_in_flight: Annotated[int, PLACEMENT] = Field(256, ge=1, description="per replica")
    gpu_memory_utilization: Annotated[float, PLACEMENT] = Field(0.9, gt=0, le=1)
    cpu_kv_cache_gb: Annotated[int, PLACEMENT] = Field(
        1, ge=1, description="key-value cache where the engine runs on CPU"
    )
    label_selector: Annotated[LabelSelector | None, PLACEMENT] = Field(
        None, description="labels of the nodes it runs on; None: `group: rollout` where the cluster has such nodes"
    )
    start_s: Annotated[float, PLACEMENT] = Field(
        900.0, gt=0, description="that an engine may take to start; raise it for slow storage"
    )

    @property
    def cap(self) -> int:
        """Tokens that every model of a comparison gets at most, whatever it was made for."""
        return self.max_model_len or CONTEXT

    def capped(self, own: int | None = None) -> Self:
        """The same with the cap written down: `own` where a model is to get less."""
        return self.model_copy(update={"max_model_len": min(self.cap, own or self.cap)})


class BackboneConfig(FrozenConfig):
    """A model to start from: a folder or hub id, with what its files do not say."""

    path: str
    chat_template: ChatTemplate | None = Field(
        None, description="built-in name, file or Jinja text; the tokenizer's own else"
    )
    max_model_len: int | None = Field(
        None, ge=16, description="context of this model alone, where it is to be less than the cap of all"
    )


class EnvironmentsConfig(FrozenConfig):
    """Servers by environment; an environment without one is the built-in of that name."""

    register: dict[str, str] = Field(
        {},
        description="further environments by name, each as `module:SPEC` (the module is sent to Ray's workers), "
        "`textarena:ID`, `gymnasium:ID`, `openenv:URL_OR_PACKAGE` or `verifiers:ID`",
    )
    servers: Annotated[dict[str, list[str]], Placement.ADDRESSES] = {}
    alfworld_mappings: str | list[str] | None = Field(
        None,
        description="numbers of ALFWorld's games, for data that calls them by task and trial: AgentGym's checkout or "
        "its mappings_*.json, or the folder that `atlas serve alfworld --data` serves",
    )
    agentboard: dict[str, str] = Field(
        {},
        description="AgentBoard's checkout or data set, of `jericho` and `pddl`: its tasks in place of the built-in",
    )
    timeout_s: Annotated[float, PLACEMENT] = Field(60.0, gt=0, description="of one request")
    replay_tolerance: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {},
        description="environment -> share of an answer's words and numbers that may differ where recorded steps are "
        "played again; `atlas environments list` shows the usual ones",
    )

    @model_validator(mode="after")
    def _register(self) -> Self:
        for name, place in self.register.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or not re.fullmatch(r"[\w.]+:[\w.:/?&=%+-]+", place):
                raise ValueError(f"register.{name}: {place} is none of the form NAME: module:SPEC")
        if self.register:
            add_named("atlas_ray.environments", self.register)
        return self


class OpeningsConfig(FrozenConfig):
    """Where the three opening turns of an environment come from: its training data, else AgentGym, else itself."""

    data: DataConfig | None = Field(None, description="trajectories that the models are trained on")
    agentgym: str | None = Field(
        None,
        description="checkout of AgentGym, for environments on a server that the data lacks, and for error turns; "
        "read, never run",
    )
    differing: list[str] = Field(
        [], description="environments whose first observation need not be the data's; turns 1 and 2 still are"
    )


class LimitsConfig(FrozenConfig):
    """How long an episode may take; one that takes longer is a failure of the infrastructure, and is played again."""

    turn_s: float = Field(600.0, gt=0, description="of one reply or one answer")
    episode_s: float = Field(7200.0, gt=0, description="of all of them")


class EndpointConfig(FrozenConfig):
    """An OpenAI-compatible endpoint, and how much it may be asked; 429 and its like slow the calls down besides.

    The key comes from the environment variable `api_key_env`, never from here.
    """

    base_url: Annotated[str, PLACEMENT] = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: Annotated[float, PLACEMENT] = Field(120.0, gt=0)
    concurrency: Annotated[int, PLACEMENT] = Field(64, ge=1)
    max_retries: Annotated[int, PLACEMENT] = Field(6, ge=0)
    requests_per_minute: Annotated[float | None, PLACEMENT] = Field(None, gt=0)
    tokens_per_minute: Annotated[float | None, PLACEMENT] = Field(
        None, gt=0, description="prompts, and replies at their longest"
    )
    request: dict[str, str | None] = Field(
        {},
        description="names of a request's fields where the endpoint has others, e.g. "
        "`max_tokens: max_completion_tokens`; null leaves a field out. What it refuses by name is found out besides",
    )


_Config = TypeVar("_Config", bound=BaseModel)


def load(kind: type[_Config], file: str | None = None, overrides: Iterable[str] = (), **given: Any) -> _Config:
    """Reads a configuration.

    Args:
        kind: The model to fill.
        file: YAML file, or None.
        overrides: `a.b=c` strings; values are parsed as YAML.
        **given: Values from dedicated command-line options by their dotted keys; None is ignored.

    Raises:
        UserError: A missing file, bad YAML, an unknown key (with the closest valid one), or a bad value.
    """
    values: dict[str, Any] = {}
    if file:
        loaded = read_yaml(file)
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{file} holds no mapping", "write keys and values: `data: {path: ...}`")
        values = loaded or {}
    for key, value in given.items():
        if value is not None:
            _put(values, key.split("."), value, key)
    for override in overrides:
        assign(values, override)
    return validate(kind, values, where=file)


def validate(
    kind: type[_Config], values: Mapping[str, Any], where: str | None = None, *, recorded: bool = False
) -> _Config:
    """Fills `kind`, turning pydantic's complaints into one `UserError` that names keys and remedies.

    Args:
        where: What to mend.
        recorded: The values are a manifest's: old names in it are no mistake, and nobody is warned.
    """
    refuse_credentials(values)
    try:
        return kind.model_validate(values, context={"recorded": True} if recorded else None)
    except ValidationError as error:
        lines = [
            _explain(kind, values, e["loc"], e["type"], e["msg"], e.get("input")) for e in _relevant(error.errors())
        ]
        raise UserError("\n  ".join(dict.fromkeys(lines)), f"mend {where or '--set / --config'}") from None


def _relevant(errors: list[Any]) -> Iterator[Any]:
    """Without the complaint that a section is no text, where it is wrong as a section too: it was meant as one."""
    for e in errors:
        *section, kind = e["loc"] or ("",)
        others = (len(o["loc"]) > len(e["loc"]) and [*o["loc"]][: len(section)] == section for o in errors)
        if not (kind == "str" and e["type"] == "string_type" and any(others)):
            yield e


def assign(values: dict[str, Any], override: str) -> None:
    """Puts the value of an `a.b=c` string into nested values.

    Raises:
        UserError: If it has not this form, its value is not YAML, or a part of its key is no section.
    """
    refuse_credentials(override)
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {override!r} is not of the form key=value", "write --set selector.ratio=0.3")
    try:
        value = parse_yaml(text, f"--set {key.strip()}")
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML", "quote it") from None
    _put(values, key.strip().split("."), value, f"--set {override!r}")


def _put(values: dict[str, Any], path: Sequence[str], value: Any, what: str) -> None:
    """Sets a value in nested sections; empty ones are filled."""
    *parents, last = path
    at = values
    for parent in parents:
        if at.get(parent) is None:
            at[parent] = {}
        at = at[parent]
        if not isinstance(at, dict):
            raise UserError(f"{what}: {parent} is not a section", "check the key")
    at.pop(last, None)  # last among them: a setting may be given by its old name too
    at[last] = value


def _takes_none(annotation: Any) -> bool:
    """Whether None is a value of a field of this type."""
    return any(kind in (Any, types.NoneType) for kind in _members(annotation) or [_bare(annotation)])


def _explain(kind: type, values: Any, loc: tuple[int | str, ...], code: str, message: str, given: Any) -> str:
    """One line for one complaint: dotted key, what is wrong, closest valid names."""
    model, path, at = kind, [], values
    fields: list[str] = []
    for part in loc:
        model = _chosen(model, at)
        fields = sorted(getattr(model, "model_fields", {}))
        tagged = _by_tag(model, str(part))
        if str(part) not in fields and (tagged is not model or (isinstance(at, Mapping) and part not in at)):
            # the member of a union, which stands in no file
            model = tagged
            continue
        path.append(str(part))
        at = at.get(part, at) if isinstance(at, Mapping) else None
        if typing.get_origin(model) is dict:
            model = typing.get_args(model)[1]
            continue
        annotation = getattr(model, "model_fields", {}).get(part)
        model = annotation.annotation if annotation is not None else model
    key = ".".join(path)
    if code == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], fields, 1)
        hint = f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(fields)}"
        return f"unknown key `{key}`; {hint}"
    if code == "missing":
        return f"missing key `{key}`"
    message = message.removeprefix("Value error, ")
    if not key:  # of the whole file, which need not be shown again
        return message
    return f"`{key}`: {message[0].lower()}{message[1:]}" + (f" (got {given!r})" if given is not None else "")


def _chosen(model: Any, section: Any) -> Any:
    """The class that a section chooses by what stands in it, where its type leaves that open."""
    for member in _members(model) or [_bare(model)]:
        if isinstance(section, Mapping) and hasattr(member, "subclass_for"):
            with suppress(UserError):
                return member.subclass_for(section)
    return model


def _by_tag(model: Any, tag: str) -> Any:
    """The member of a union of models whose class is called `tag`."""
    return next((member for member in _members(model) if getattr(member, "__name__", "") == tag), model)


def _members(union: Any) -> list[Any]:
    """The types of a union, whatever is annotated to it or to them; none of what is no union."""
    if typing.get_origin(_bare(union)) not in (typing.Union, types.UnionType):
        return []
    return [kind for part in typing.get_args(_bare(union)) for kind in (_members(part) or [_bare(part)])]


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind
