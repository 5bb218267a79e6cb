"""Who plays: policy backends by name, of the entry-point group `atlas_ray.policies`, or `policy: module:NAME`.

A backend is one file with one subclass of `ModelConfig`: its settings are a section of `models`, and with them it says
how its replicas are built, how many there are, and whether they cost money.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny

from atlas_ray.config import BackboneConfig, EndpointConfig, EngineConfig
from atlas_ray.models.protocol import ModelSpec, ModelUse, Policy
from atlas_ray.plugins import Registry, chosen_by


class ModelConfig(BackboneConfig, ABC):
    """A model as it is: a folder or hub id, or with `endpoint` the name that an OpenAI-compatible endpoint gives it."""

    policy: str = Field("engine", description="the backend that plays; `endpoint` where there is such a section")
    revision: str | None = Field(None, description="of the hub; pin one to make a run repeatable")
    endpoint: EndpointConfig | None = Field(None, description="that is asked, and paid")

    @classmethod
    def subclass_for(cls, section: Mapping[str, Any]) -> type[ModelConfig]:
        """The class whose settings a section holds.

        Raises:
            UserError: If no backend has its name.
        """
        usual = "engine" if section.get("endpoint") is None else "endpoint"
        return POLICIES.find(str(section.get("policy", usual)))

    @abstractmethod
    def spec(self, name: str, engine: EngineConfig) -> ModelSpec[Policy]:
        """What a replica builds its policy from.

        Args:
            name: The policy's, in records.
            engine: The settings of engines, for all models that are compared.
        """

    def models(self) -> list[ModelUse]:
        """The models that its replicas load, on GPUs where there are any."""
        return []

    def pool(self, engine: EngineConfig) -> EngineConfig:
        """How many replicas there are, and episodes in flight at each: as those settings say."""
        return engine


def played_by(model: str | ModelConfig) -> ModelConfig:
    """All that is said of a model, also of one that is named by its path alone."""
    return model if isinstance(model, ModelConfig) else ModelConfig.subclass_for({})(path=model)


ModelSection = Annotated[str | SerializeAsAny[ModelConfig], chosen_by(ModelConfig.subclass_for)]
POLICIES: Registry[type[ModelConfig]] = Registry(
    "policy backend",
    ModelConfig,
    {"engine": f"{__package__}.engine:EngineModel", "endpoint": f"{__package__}.endpoint:EndpointModel"},
    group="atlas_ray.policies",
)
