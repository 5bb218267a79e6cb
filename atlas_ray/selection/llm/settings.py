"""The LLM selector's section of the settings, and what follows from it alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from atlas_ray.config import PLACEMENT, EndpointConfig, EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.models.prices import Price, price
from atlas_ray.selection.budget import BudgetSettings
from atlas_ray.selection.llm.backends.submissions import MOST_BATCHED

if TYPE_CHECKING:
    from atlas_ray.selection.llm.prompt import ReplyForm

_REPAIR_TOKENS = 200  # of the request that says what was wrong


class LlmSettings(BudgetSettings):
    """How an LLM is asked for critical steps."""

    name: Literal["llm"] = "llm"
    ratio: float = Field(0.3, gt=0, le=1)
    model: str = "gpt-4o-2024-08-06"
    endpoint: EndpointConfig = EndpointConfig()
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
    num_workers: Annotated[int, PLACEMENT] = Field(
        1, ge=1, description="processes that ask the endpoint, within its limits together; more where one CPU is busy"
    )

    @model_validator(mode="after")
    def _batches_are_the_endpoints(self) -> Self:
        if self.engine is not None and self.mode == "batch":
            raise ValueError("mode: batch belongs to an endpoint; leave it out beside engine")
        return self

    @model_validator(mode="after")
    def _papers_prompt_is_whole(self) -> Self:
        if self.prompt == "paper" and self.structured == "json":
            raise ValueError("`prompt: paper` asks for three lines of text; leave out `structured: json`")
        if self.prompt == "paper" and self.prompt_file is not None:
            raise ValueError("`prompt: paper` and `prompt_file` are two prompts; leave one of them out")
        return self

    @property
    def price(self) -> Price | None:
        """What replies cost: nothing on engines of our own, a part of the list price in batches; None: not known.

        Raises:
            UserError: If the user's price list is unusable.
        """
        if self.engine is not None:
            return Price(0.0, 0.0, 0.0, self.engine.max_model_len, structured=True)
        return price(self.model, self.prices_file, batch=self.mode == "batch")

    @property
    def reply_form(self) -> ReplyForm:
        """The form that replies are asked for in."""
        if self.prompt == "paper":
            return "text"
        if self.structured != "auto":
            return self.structured
        known = self.price
        return "json" if known is not None and known.structured else "text"

    @property
    def prompt_limit(self) -> int | None:
        """Tokens that a request may have, so that its reply and a repair still fit the context; None where not known.

        Raises:
            UserError: If the context holds no more than the replies.
        """
        known = self.price
        context = self.context or (known.context if known else None)
        if context is None:
            return None
        limit = context - 2 * self.max_tokens - _REPAIR_TOKENS
        if limit < 1:
            what = f"a context of {context} tokens leaves no room beside two replies of max_tokens={self.max_tokens}"
            raise UserError(what, "lower selector.max_tokens, or raise selector.context")
        return limit

    @property
    def at_once(self) -> int:
        """Trajectories that are worth having at once: more than are asked about, so that requests are ready."""
        if self.engine is not None:
            return self.engine.replicas * self.engine.episodes_in_flight
        return 2 * self.endpoint.concurrency if self.mode == "live" else MOST_BATCHED
