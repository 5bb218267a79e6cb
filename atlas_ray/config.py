"""Configuration of every stage: pydantic models, read from YAML, overridden by `--set a.b=c`.

Unknown keys are refused with the closest valid name. Flows in: a YAML file and overrides; flows out: a frozen model.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from atlas_ray.errors import UserError


class Strict(BaseModel):
    """Frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Strict):
    """Where expert trajectories come from.

    `path` is a file (.json, .jsonl, .parquet), a folder of them, or a Hugging Face dataset id.
    """

    path: str
    format: Literal["auto", "agenttraj", "sharegpt", "openai"] = "auto"
    revision: str | None = None
    envs: list[str] | None = None
    limit: int | None = Field(None, ge=1, description="first trajectories per environment")


class RayConfig(Strict):
    """How to reach Ray: an address, or None for `RAY_ADDRESS` and else a cluster on this machine."""

    address: str | None = None
    num_cpus: int | None = None


class EngineConfig(Strict):
    """One vLLM engine replica and how many of them."""

    replicas: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_model_len: int | None = Field(None, ge=16)
    max_num_seqs: int = Field(256, ge=1, description="sequences that the engine decodes at once")
    episodes_in_flight: int = Field(256, ge=1, description="per replica")
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    cpu_kv_cache_gb: int = Field(1, ge=1, description="key-value cache where the engine runs on CPU")


class EnvironmentsConfig(Strict):
    """Servers by environment; an environment without one is the built-in of that name."""

    servers: dict[str, list[str]] = {}
    timeout_s: float = Field(60.0, gt=0, description="of one request")


class EndpointConfig(Strict):
    """An OpenAI-compatible endpoint. The key comes from the environment variable `api_key_env`, never from here."""

    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = Field(120.0, gt=0)
    concurrency: int = Field(64, ge=1)
    max_retries: int = Field(6, ge=0)


class AllSelector(Strict):
    """Every step: ordinary fine-tuning on whole trajectories."""

    name: Literal["all"] = "all"


class RandomSelector(Strict):
    """Steps drawn uniformly (section 4.5.3)."""

    name: Literal["random"] = "random"
    ratio: float = Field(0.3, gt=0, le=1)


class GoldSelector(Strict):
    """The built-in expert's own annotation, cut to the budget by its ranks."""

    name: Literal["gold"] = "gold"
    ratio: float = Field(0.3, gt=0, le=1)


class ComplementSelector(Strict):
    """As many steps as the reference chose, drawn from those it did not choose (section 4.5.1)."""

    name: Literal["complement"] = "complement"
    ratio: float = Field(0.3, gt=0, le=1)
    reference: str = Field("gold", description="`gold`, or the run folder of a finished selection")


class PerplexitySelector(Strict):
    """The steps that the base model finds hardest to generate (App. B.2, Eq. 5)."""

    name: Literal["perplexity"] = "perplexity"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    dtype: Literal["bfloat16", "float32"] = "float32"
    batch_tokens: int = Field(8192, ge=64)
    max_length: int = Field(8192, ge=16)
    workers: int = Field(1, ge=1)


class ValueSelector(Strict):
    """Steps after which Monte-Carlo rollouts do better by more than a threshold (section 4.5.4, App. B.3)."""

    name: Literal["value"] = "value"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    rollouts: int = Field(5, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    threshold: float = 0.1
    estimator: Literal["mean_reward", "discounted", "eq9"] = "mean_reward"
    gamma: float = Field(0.99, gt=0, le=1)
    ratio: float | None = Field(None, gt=0, le=1, description="caps the steps only where given")
    engine: EngineConfig = EngineConfig()


class LlmSelector(Strict):
    """An LLM reads the trajectory and names its critical steps (section 3.2, App. D.1)."""

    name: Literal["llm"] = "llm"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "gpt-4o-2024-08-06"
    endpoint: EndpointConfig = EndpointConfig()
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=16)
    prompt_file: str | None = None
    max_cost: float | None = Field(None, gt=0, description="US dollars; stops cleanly and resumes")


def _paper_default(value: Any) -> Any:
    """A selector section without a name is the paper's: the LLM."""
    return {"name": "llm", **value} if isinstance(value, Mapping) else value


SelectorConfig = Annotated[
    AllSelector | RandomSelector | GoldSelector | ComplementSelector | PerplexitySelector | ValueSelector | LlmSelector,
    Field(discriminator="name"),
    BeforeValidator(_paper_default),
]


class CollectConfig(Strict):
    """Trajectories of a scripted agent in built-in environments."""

    run: str = "runs/collect"
    envs: list[str] = ["maze", "textcraft", "wordle"]
    role: Literal["expert", "novice"] = "expert"
    split: Literal["train", "test"] = "train"
    tasks: int | dict[str, int] | None = Field(None, description="by environment or for each; all where not given")
    samples: int | dict[str, int] = Field(1, description="trajectories a task, by environment or for each")
    max_rounds: int | None = Field(None, ge=1, description="cuts episodes short of the environment's own cap")
    keep_failures: bool = False
    seed: int = 0
    ray: RayConfig = RayConfig()


class SelectConfig(Strict):
    """Critical steps of a data set by one selector."""

    run: str = "runs/select"
    data: DataConfig
    selector: SelectorConfig = LlmSelector()
    seed: int = 0
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()


class TrainConfig(Strict):
    """Fine-tuning with loss on the selected steps only (section 3.3, App. B.1: the defaults)."""

    run: str = "runs/train"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    data: DataConfig
    selection: str | None = Field(None, description="run folder of a selection; all steps where not given")
    epochs: float = Field(3, gt=0)
    optimizer: Literal["adam", "muon"] = Field("adam", description="muon: for matrices, AdamW for the rest")
    learning_rate: float = Field(2e-5, gt=0)
    muon_learning_rate: float = Field(2e-2, gt=0)
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    global_batch: int = Field(128, ge=1, description="trajectories an optimizer step")
    micro_batch_tokens: int = Field(16384, ge=16, description="padded tokens a forward pass and worker")
    max_length: int = Field(8192, ge=16)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    workers: int = Field(1, ge=1)
    use_gpu: bool | None = Field(None, description="None: where the cluster has GPUs")
    cpus_per_worker: int = Field(1, ge=1)
    checkpoint_steps: int = Field(25, ge=1)
    max_failures: int = Field(2, ge=0)
    seed: int = 0
    ray: RayConfig = RayConfig()


class EvaluateConfig(Strict):
    """Models in live environments; greedy, as AgentGym's evaluator."""

    run: str = "runs/evaluate"
    models: dict[str, str] = Field(description="arm name -> model folder or hub id")
    tasks: dict[str, int | None] = Field(description="environment -> number of test tasks (null: all)")
    instructions: str | None = Field(None, description="data set whose opening instructions are used")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    max_excluded: float = Field(0.02, ge=0, le=1, description="share of infrastructure failures that flags a cell")
    retries: int = Field(2, ge=0)
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()


class VerifyConfig(Strict):
    """A model from scratch and from right after each critical step (section 4.6, Table 6)."""

    run: str = "runs/verify"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    data: DataConfig
    selection: str = Field(description="run folder of a selection of the same data")
    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: RayConfig = RayConfig()


class TinyConfig(Strict):
    """A tiny Llama with its own tokenizer, trained on the spot on novice trajectories: the laptop's base model.

    `novice` and `train` hold the keys of collection and training; their run folders are set by the recipe.
    """

    novice: CollectConfig
    hidden_size: int = Field(128, ge=32)
    layers: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    context: int = Field(1024, ge=64, description="tokens")
    train: dict[str, Any] = {}


_Config = TypeVar("_Config", bound=BaseModel)


def load(kind: type[_Config], file: str | None = None, overrides: Iterable[str] = (), **given: Any) -> _Config:
    """Reads a configuration.

    Args:
        kind: The model to fill.
        file: YAML file, or None.
        overrides: `a.b=c` strings; values are parsed as YAML.
        **given: Values from dedicated command-line options; None is ignored.

    Raises:
        UserError: A missing file, bad YAML, an unknown key (with the closest valid one), or a bad value.
    """
    values: dict[str, Any] = {}
    if file:
        try:
            loaded = yaml.safe_load(Path(file).read_text())
        except OSError as error:
            raise UserError(f"cannot read the configuration {file}: {error.strerror}", "check --config") from None
        except yaml.YAMLError as error:
            raise UserError(f"{file} is not valid YAML: {error}", "mend the file") from None
        if loaded is not None and not isinstance(loaded, dict):
            raise UserError(f"{file} holds no mapping", "write keys and values: `data: {path: ...}`")
        values = loaded or {}
    for name, value in given.items():
        if value is not None:
            values[name] = value
    for override in overrides:
        _assign(values, override)
    return validate(kind, values, where=file)


def validate(kind: type[_Config], values: Mapping[str, Any], where: str | None = None) -> _Config:
    """Fills `kind`, turning pydantic's complaints into one `UserError` that names keys and remedies."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, values, e["loc"], e["type"], e["msg"], e.get("input")) for e in error.errors()]
        raise UserError("\n  ".join(dict.fromkeys(lines)), f"mend {where or '--set / --config'}") from None


def _assign(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise UserError(f"--set {override!r} is not of the form key=value", "write --set selector.ratio=0.3")
    *parents, last = key.strip().split(".")
    at = values
    for parent in parents:
        child = at.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {parent} is not a section", "check the key")
        at = child
    try:
        at[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML", "quote it") from None


def _explain(kind: type, values: Any, loc: tuple[int | str, ...], code: str, message: str, given: Any) -> str:
    """One line for one complaint: dotted key, what is wrong, closest valid names."""
    model, path, at = kind, [], values
    fields: list[str] = []
    for part in loc:
        fields = sorted(getattr(model, "model_fields", {}))
        if isinstance(at, Mapping) and part not in at and str(part) not in fields:
            # the tag of a discriminated union, which stands in no file
            model = _by_tag(model, str(part))
            continue
        path.append(str(part))
        at = at.get(part) if isinstance(at, Mapping) else None
        annotation = getattr(model, "model_fields", {}).get(part)
        model = annotation.annotation if annotation is not None else model
    key = ".".join(path)
    if code == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], fields, 1)
        hint = f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(fields)}"
        return f"unknown key `{key}`; {hint}"
    if code == "missing":
        return f"missing key `{key}`"
    if code == "union_tag_invalid":
        close = difflib.get_close_matches(str(given.get("name")), _tags(model), 1)
        hint = f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(_tags(model))}"
        return f"unknown `{key}.name` {given.get('name')!r}; {hint}"
    return f"`{key}`: {message[0].lower()}{message[1:]}" + (f" (got {given!r})" if given is not None else "")


def _tags(union: Any) -> list[str]:
    return [member.model_fields["name"].default for member in typing.get_args(union)]


def _by_tag(model: Any, tag: str) -> Any:
    """The member of a union of models whose `name` is `tag`."""
    members = typing.get_args(model) if isinstance(model, types.UnionType) or typing.get_args(model) else ()
    for member in members:
        if getattr(member, "model_fields", {}).get("name", None) is not None and (
            member.model_fields["name"].default == tag
        ):
            return member
    return model


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
