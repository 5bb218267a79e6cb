"""Settings of the selection stage: one section per selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from atlas_ray.config import (
    PLACEMENT,
    ChatTemplate,
    DataConfig,
    EndpointConfig,
    EngineConfig,
    EnvironmentsConfig,
    FrozenConfig,
    LimitsConfig,
    RayConfig,
    Renamed,
)


class AllSelector(FrozenConfig):
    """Every step: ordinary fine-tuning on whole trajectories."""

    name: Literal["all"] = "all"


class RandomSelector(FrozenConfig):
    """Steps drawn uniformly (section 4.5.3)."""

    name: Literal["random"] = "random"
    ratio: float = Field(0.3, gt=0, le=1)


class GoldSelector(FrozenConfig):
    """The built-in expert's own annotation, cut to the budget by its ranks."""

    name: Literal["gold"] = "gold"
    ratio: float = Field(0.3, gt=0, le=1)
    noise: float = Field(0.0, ge=0, le=1, description="chance that a chosen step gives way to another")


class ComplementSelector(FrozenConfig):
    """As many steps as the reference chose, drawn from those it did not choose (section 4.5.1)."""

    name: Literal["complement"] = "complement"
    ratio: float = Field(0.3, gt=0, le=1)
    reference: str = Field("gold", description="`gold`, the annotation, or a finished selection: see `sources.py`")


class FirstSelector(FrozenConfig):
    """The first steps: what a selector must beat to say more than "early"."""

    name: Literal["first"] = "first"
    ratio: float = Field(0.3, gt=0, le=1)


class LastSelector(FrozenConfig):
    """The last steps: what a selector must beat to say more than "late"."""

    name: Literal["last"] = "last"
    ratio: float = Field(0.3, gt=0, le=1)


class FileSelector(FrozenConfig):
    """Steps from a table made elsewhere or by hand, such as `atlas export-selection` writes."""

    name: Literal["file"] = "file"
    path: str = Field(description=".csv or .jsonl with `trajectory_id` and `chosen`")


class PythonSelector(FrozenConfig):
    """Steps that a function of the user's names, or scores; see `own.py`."""

    name: Literal["python"] = "python"
    call: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$", description="`my_module:function`, of one trajectory")
    gives: Literal["steps", "scores"] = Field("steps", description="steps from 1, or one score a step: top k")
    ratio: float | None = Field(0.3, gt=0, le=1, description="null: no cap on steps; all that score above 0")


class CombineSelector(FrozenConfig):
    """Finished selections of the same trajectories, combined. `{combine: {llm: 0.5, value: 0.5}}` is short for it.

    `weighted_rank` takes the steps that the parts rank highest; `union` and `intersection` take what any, or every,
    part chose, and are capped only where a ratio is given.
    """

    name: Literal["combine"] = "combine"
    parts: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=2, description="weights by selection (`sources.py`)"
    )
    rule: Literal["weighted_rank", "union", "intersection"] = "weighted_rank"
    ratio: float | None = Field(None, gt=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """A list of parts weighs them equally; a weighted rank has the usual budget where none is given."""
        if not isinstance(given, Mapping):
            return given
        parts, ranked = given.get("parts"), given.get("rule", "weighted_rank") == "weighted_rank"
        if isinstance(parts, list):
            given = {**given, "parts": {str(part): 1.0 for part in parts}}
        return {**given, "ratio": 0.3} if ranked and given.get("ratio") is None else given


class PerplexitySelector(FrozenConfig):
    """The steps that the base model finds hardest to generate (App. B.2, Eq. 5)."""

    name: Literal["perplexity"] = "perplexity"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    chat_template: ChatTemplate | None = Field(None, description="of the model, where its tokenizer's is not used")
    dtype: Literal["auto", "bfloat16", "float32"] = Field("auto", description="auto: bfloat16 on GPUs, float32 on CPU")
    engine: Literal["auto", "torch", "vllm"] = Field("auto", description="auto: vllm on CPU in float32, else torch")
    batch_tokens: int = Field(4096, ge=64, description="tokens of one forward pass of the torch engine")
    max_length: int = Field(8192, ge=16, description="tokens of a trajectory that are read")
    num_workers: Annotated[int | None, PLACEMENT, Renamed("workers")] = Field(
        None, ge=1, description="null: one to each GPU of the cluster, one on CPU"
    )
    scores: str | None = Field(None, description="run folder of a finished selection whose scores are used")


class Economy(FrozenConfig):
    """Devices of the economical mode, each by itself; see `selection/economy.py`.

    Attributes:
        stop: A start gets no further sample once its step is settled.
        share: A rollout that rejoins the expert's path ends there; the later starts tell the rest.
        skip: Starts go from the end, and end where the value is too low for an earlier step to have raised it.
        rejoin: What must agree with the expert's next turn, beside the answer to it: the action, or the whole text.
        probes: First turns drawn at a start before anything is played out.
        played: Rollouts played out at a start, at most.
        sureness: Standard deviations between a difference and the threshold that settle a step.
    """

    stop: bool = True
    share: bool = True
    skip: bool = True
    rejoin: Literal["action", "text"] = "action"
    probes: int = Field(6, ge=1)
    played: int = Field(1, ge=1)
    sureness: float = Field(0.3, gt=0)


class ValueSelector(FrozenConfig):
    """Steps after which Monte-Carlo rollouts do better by more than a threshold (section 4.5.4, App. B.3)."""

    name: Literal["value"] = "value"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    chat_template: ChatTemplate | None = Field(None, description="of the model, where its tokenizer's is not used")
    rollouts: int = Field(5, ge=1)
    temperature: float = Field(1.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    threshold: float = 0.1
    estimator: Literal["mean_reward", "discounted", "eq9"] = "mean_reward"
    gamma: float = Field(0.99, gt=0, le=1)
    ratio: float | None = Field(None, gt=0, le=1, description="caps the steps only where given")
    mode: Literal["exhaustive", "economical"] = "exhaustive"
    economy: Economy = Field(Economy(), description="read by the economical mode only")
    scores: str | None = Field(None, description="run folder of a finished selection whose scores are used")
    engine: EngineConfig = EngineConfig()
    limits: Annotated[LimitsConfig, PLACEMENT] = LimitsConfig()

    @model_validator(mode="after")
    def _has_an_estimator(self) -> ValueSelector:
        if self.mode == "economical" and self.estimator == "eq9":
            raise ValueError("`eq9` sums over the values of all starts: it needs mode `exhaustive`")
        return self


class SelectorEndpoint(EndpointConfig):
    """The endpoint that judges, and how much it may be asked; 429 and its like slow the calls down besides."""

    requests_per_minute: Annotated[float | None, PLACEMENT] = Field(None, gt=0)
    tokens_per_minute: Annotated[float | None, PLACEMENT] = Field(
        None, gt=0, description="prompts, and replies at their longest"
    )


class LlmSelector(FrozenConfig):
    """An LLM reads the trajectory and names its critical steps (section 3.2, App. D.1)."""

    name: Literal["llm"] = "llm"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "gpt-4o-2024-08-06"
    endpoint: SelectorEndpoint = SelectorEndpoint()
    mode: Literal["live", "batch"] = Field("live", description="batch: OpenAI's Batch API, half price, up to a day")
    engine: EngineConfig | None = Field(None, description="vLLM engines of our own hold `model`; no endpoint is asked")
    temperature: float = Field(0.0, ge=0)
    votes: int = Field(1, ge=1, le=100, description="replies a trajectory; above 1 their steps are kept by frequency")
    vote_temperature: float = Field(0.7, ge=0, description="in place of `temperature`, where there are several votes")
    max_tokens: int = Field(1024, ge=16)
    structured: Literal["auto", "json", "text"] = Field(
        "auto", description="form of the replies; auto: json by a schema where the model is known to take one"
    )
    context: int | None = Field(None, ge=256, description="tokens; longer requests lose the middle of observations")
    tokenizer: str | None = Field(None, description="folder, hub id or tiktoken encoding; a rule for English else")
    prompt: Literal["improved", "paper"] = Field(
        "improved", description="paper: App. D.1's instructions in its order, answered in its three lines; never json"
    )
    prompt_file: str | None = Field(None, description="template of your own, in place of `prompt`")
    prices_file: Annotated[str | None, PLACEMENT] = Field(None, description="goes before the package's prices.json")
    cache: Annotated[str | None, PLACEMENT] = Field(None, description="folder of paid replies that runs share")
    max_cost: Annotated[float | None, PLACEMENT] = Field(
        None, gt=0, description="US dollars; stops cleanly and resumes"
    )

    @model_validator(mode="after")
    def _batches_are_the_endpoints(self) -> LlmSelector:
        if self.engine is not None and self.mode == "batch":
            raise ValueError("mode: batch belongs to an endpoint; leave it out beside engine")
        return self

    @model_validator(mode="after")
    def _papers_prompt_is_whole(self) -> LlmSelector:
        if self.prompt == "paper" and self.structured == "json":
            raise ValueError("`prompt: paper` asks for three lines of text; leave out `structured: json`")
        if self.prompt == "paper" and self.prompt_file is not None:
            raise ValueError("`prompt: paper` and `prompt_file` are two prompts; leave one of them out")
        return self


def _named(value: Any) -> Any:
    """A section with `combine` is a combination; one without a name is the paper's selector, the LLM."""
    if not isinstance(value, Mapping):
        return value
    if "combine" in value and value.get("name", "combine") == "combine":
        value = {"name": "combine", **value}
        value["parts"] = value.pop("combine")
    return {"name": "llm", **value}


SelectorConfig = Annotated[
    AllSelector
    | RandomSelector
    | GoldSelector
    | ComplementSelector
    | FirstSelector
    | LastSelector
    | FileSelector
    | PythonSelector
    | CombineSelector
    | PerplexitySelector
    | ValueSelector
    | LlmSelector,
    Field(discriminator="name"),
    BeforeValidator(_named),
]


class SelectConfig(FrozenConfig):
    """Critical steps of a data set by one selector."""

    run: Annotated[str, PLACEMENT] = "runs/select"
    data: DataConfig
    selector: SelectorConfig = LlmSelector()
    seed: int = 0
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()
