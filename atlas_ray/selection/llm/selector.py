"""The LLM selector: what its settings mean for recipes, plans and runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from atlas_ray.config import EndpointConfig, EngineConfig
from atlas_ray.models.protocol import ModelUse
from atlas_ray.selection.llm.backends.submissions import BATCHES
from atlas_ray.selection.llm.settings import LlmSettings
from atlas_ray.selection.protocol import Forecast, Selector, Stage, StageContext
from atlas_ray.types import Selection

if TYPE_CHECKING:
    from atlas_ray.runs.folder import RunFolder
    from atlas_ray.runs.tables import TableSpec
    from atlas_ray.trajectories.agenttraj import Shape
    from atlas_ray.types import Trajectory


class LlmSelector(LlmSettings, Selector):
    """An LLM reads the trajectory and names its critical steps (section 3.2, App. D.1)."""

    retries_failures: ClassVar[bool] = True

    def digests(self) -> dict[str, str]:
        """Of the user's own prompt."""
        from atlas_ray.selection.llm.prompt import load_prompt

        return {} if self.prompt_file is None else {self.prompt_file: load_prompt(self.prompt_file).hash}

    def models(self) -> list[ModelUse]:
        """What our own engines hold, and whose tokenizer counts."""
        held = [] if self.engine is None else [ModelUse(self.model, tokens=self.engine.max_model_len)]
        return held if self.tokenizer is None else [*held, ModelUse(self.tokenizer, tokenizer_only=True)]

    def engines(self) -> list[EngineConfig]:
        """Those that hold the model."""
        return [] if self.engine is None else [self.engine]

    @property
    def paid_endpoint(self) -> EndpointConfig | None:
        """The endpoint, where no engine of our own answers."""
        return self.endpoint if self.engine is None else None

    async def check_endpoint(self) -> str:
        """Asks the endpoint for one token, which costs about as much.

        Raises:
            AtlasError: If it does not answer.
        """
        from atlas_ray.models.client import ChatClient
        from atlas_ray.models.request import shortest

        client = ChatClient(self.model, self.endpoint.model_copy(update={"max_retries": 0}))
        try:
            done = await client.complete(shortest())
        finally:
            await client.close()
        return f"answers, {done.usage.prompt_tokens + done.usage.completion_tokens} tokens"

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast | None:
        """Calls, tokens and dollars, from the mean trajectories of the data."""
        from atlas_ray.selection.llm.estimate import forecast

        return forecast(self, shapes)

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """Calls, tokens, dollars and time of selecting in these."""
        from atlas_ray.selection.llm.estimate import estimate_lines

        return estimate_lines(self, trajectories)

    def kept_on_clean(self) -> list[TableSpec[Any]]:
        """Replies, and the record of batches: both were paid for."""
        from atlas_ray.selection.llm.journal import REPLIES

        return [REPLIES, BATCHES]

    def outdated(self, folder: RunFolder) -> bool:
        """Whether the replies were read by another version of the parser."""
        from atlas_ray.selection.llm.stage import read_by_another_parser

        return read_by_another_parser(folder)

    def stage(self, context: StageContext) -> Stage:
        """Judging actors, and what they share."""
        from atlas_ray.selection.llm.stage import LlmStage

        return LlmStage(self, context)

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        """Whether the price is known, and how many selections lack plan or categories, or saw shortened texts."""
        incomplete = shortened = 0
        for s in selections:
            incomplete += s.error is None and (not s.plan or s.categories.keys() != set(s.chosen))
            shortened += s.shortened > 0
        return {"price_known": self.price is not None, "incomplete": incomplete, "shortened": shortened}
