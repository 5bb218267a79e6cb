"""Settings of evaluation and of step verification."""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from atlas_ray.config import (
    PLACEMENT,
    ActionProtocol,
    ChatTemplate,
    DataConfig,
    EngineConfig,
    EnvironmentsConfig,
    FrozenConfig,
    LimitsConfig,
    MaxFailed,
    OpeningsConfig,
    RayConfig,
)
from atlas_ray.models.policies import ModelConfig, ModelSection, played_by

_log = logging.getLogger(__name__)

SUITES = {"held_in": "in", "held_out": "out"}


def suite(name: str, servers: Container[str]) -> list[str]:
    """Environments of a suite that can be played here; any other name stands for itself."""
    from atlas_ray.environments.registry import ENVIRONMENTS

    if name not in SUITES:
        return [name]
    members = [spec for spec in ENVIRONMENTS.values() if spec.held == SUITES[name]]
    found = [spec.name for spec in members if spec.simulator is not None or spec.name in servers]
    if missing := [spec.name for spec in members if spec.name not in found]:
        _log.warning("%s without %s: no server is named for them", name, ", ".join(missing))
    return found


class PlayConfig(FrozenConfig):
    """How episodes are played; greedy, as AgentGym's evaluator."""

    samples: int = Field(1, ge=1)
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(512, ge=1)
    max_excluded: float = Field(0.02, ge=0, le=1, description="share of infrastructure failures that flags a cell")
    max_failed: MaxFailed = 0.5
    retries: Annotated[int, PLACEMENT] = Field(2, ge=0)
    limits: Annotated[LimitsConfig, PLACEMENT] = LimitsConfig()
    seed: int = 0
    engine: EngineConfig = EngineConfig()
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()


class EvaluateConfig(PlayConfig):
    """Models in live environments."""

    run: Annotated[str, PLACEMENT] = "runs/evaluate"
    models: dict[str, ModelSection] = Field(description="arm name -> model folder or hub id")
    tasks: dict[str, int | None] = Field(
        description="environment, or suite (held_in, held_out) -> number of test tasks (null: all)"
    )
    items: DataConfig | None = Field(
        None,
        description="data set that names test tasks by item_id, e.g. AgentGym/AgentEval; built-in ones else",
    )
    openings: OpeningsConfig | None = Field(
        None, description="what conversations open with; the environments' own where not given"
    )
    protocol: ActionProtocol | None = Field(
        None,
        description="whether models act by text, or by native calls of tools; as in `openings.data` where not given, "
        "else by text",
    )

    @property
    def played(self) -> dict[str, ModelConfig]:
        """The models with all that is said of them."""
        return {name: played_by(model) for name, model in self.models.items()}

    @model_validator(mode="before")
    @classmethod
    def _instructions(cls, values: Any) -> Any:
        """Takes the name that `openings.data.path` had."""
        if not isinstance(values, dict) or "instructions" not in values:
            return values
        path = values["instructions"]
        values = {key: value for key, value in values.items() if key != "instructions"}
        if path is None:
            return values
        _log.warning("`instructions` is now `openings: {data: {path: %s}}`, which takes all three opening turns", path)
        return values | {"openings": values.get("openings") or {"data": {"path": path}}}

    @model_validator(mode="before")
    @classmethod
    def _suites(cls, values: Any) -> Any:
        """Puts the environments of a suite in its place: those that are built in or have a server."""
        if not isinstance(values, dict) or not isinstance(values.get("tasks"), dict):
            return values
        given = values.get("environments")
        servers = given.servers if isinstance(given, EnvironmentsConfig) else (given or {}).get("servers") or {}
        tasks: dict[str, Any] = {}
        for name, limit in values["tasks"].items():
            tasks |= dict.fromkeys(suite(name, servers), limit)
        # named by itself, an environment has its own number
        return values | {"tasks": tasks | {k: v for k, v in values["tasks"].items() if k in tasks}}

    @model_validator(mode="after")
    def _one_cap_for_all(self) -> Self:
        for name, model in self.played.items():
            own = model.max_model_len
            if own is not None and own > self.engine.cap:
                raise ValueError(
                    f"the model `{name}` asks for a context of {own}, but all models of a comparison have "
                    f"{self.engine.cap}: raise engine.max_model_len for all, or leave the model's out"
                )
        return self


class VerifyConfig(PlayConfig):
    """A model from scratch, from right after each critical step, and with those put in (section 4.6, Table 6)."""

    run: Annotated[str, PLACEMENT] = "runs/verify"
    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    chat_template: ChatTemplate | None = Field(None, description="of the model, where its tokenizer's is not used")
    data: DataConfig
    selection: str = Field(description="run folder of a selection of the same data")
    iterative: bool = Field(True, description="also one episode with the critical steps put in")
