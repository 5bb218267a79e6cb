"""Settings of the selector that asks an LLM, and what they mean for a plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, EndpointConfig, EngineConfig
from atlas_ray.runs.tables import TableSpec
from atlas_ray.selection.protocol import Forecast, ModelUse, Selector
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.types import Selection, Trajectory


class SelectorEndpoint(EndpointConfig):
    """The endpoint that judges, and how much it may be asked; 429 and its like slow the calls down besides."""

    requests_per_minute: Annotated[float | None, PLACEMENT] = Field(None, gt=0)
    tokens_per_minute: Annotated[float | None, PLACEMENT] = Field(
        None, gt=0, description="prompts, and replies at their longest"
    )


class LlmSelector(Selector):
    """An LLM reads the trajectory and names its critical steps (section 3.2, App. D.1)."""

    retries_failures: ClassVar[bool] = True

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

    def models(self) -> list[ModelUse]:
        """What our own engines hold, and whose tokenizer counts."""
        found = [ModelUse(self.model, tokens=self.engine.max_model_len)] if self.engine is not None else []
        return [*found, *([ModelUse(self.tokenizer, tokenizer_only=True)] if self.tokenizer is not None else [])]

    def engines(self) -> list[EngineConfig]:
        """Our own, where no endpoint is asked."""
        return [] if self.engine is None else [self.engine]

    @property
    def paid_endpoint(self) -> EndpointConfig | None:
        """The endpoint, unless engines of our own hold the model."""
        return self.endpoint if self.engine is None else None

    async def check_endpoint(self) -> str:
        """Asks for one token, once.

        Raises:
            AtlasError: If the endpoint does not answer.
        """
        from atlas_ray.selection.llm.backends.chat import ChatBackend
        from atlas_ray.selection.llm.backends.protocol import CompletionRequest

        once = self.endpoint.model_copy(update={"max_retries": 0})
        client = ChatBackend(self.model_copy(update={"endpoint": once}))
        try:
            done = await client.complete(CompletionRequest([{"role": "user", "content": "Say OK."}], 0.0, 1))
        finally:
            await client.close()
        return f"answers, {done.usage.prompt_tokens + done.usage.completion_tokens} tokens"

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast:
        """One call a trajectory and vote."""
        from atlas_ray.selection.llm.estimate import forecast

        return forecast(self, shapes)

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """Calls, tokens, dollars, and how long they take."""
        from atlas_ray.selection.llm.estimate import estimate_lines

        return estimate_lines(self, list(trajectories))

    def kept_on_clean(self) -> list[TableSpec[Any]]:
        """Replies and batches."""
        from atlas_ray.selection.llm.backends.submissions import BATCHES
        from atlas_ray.selection.llm.journal import REPLIES

        return [REPLIES, BATCHES]

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        """Replies that lack a plan or categories, requests that were shortened."""
        from atlas_ray.models.prices import price_of

        incomplete = shortened = 0
        for s in selections:
            shortened += s.shortened > 0
            incomplete += s.error is None and (not s.plan or s.categories.keys() != set(s.chosen))
        return {"price_known": price_of(self) is not None, "incomplete": incomplete, "shortened": shortened}
