"""Settings of the selection stage; a selector's own section stands with the selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from atlas_ray.config import PLACEMENT, DataConfig, EnvironmentsConfig, FrozenConfig, MaxFailed, RayConfig
from atlas_ray.plugins import chosen_by
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.protocol import Selector


def _named(section: Any) -> Any:
    """A section with `combine` is a combination."""
    if isinstance(section, Mapping) and "combine" in section and section.get("name", "combine") == "combine":
        section = {"name": "combine", **section}
        section["parts"] = section.pop("combine")
    return section


# pydantic asks the last one first
SelectorConfig = Annotated[SerializeAsAny[Selector], chosen_by(Selector.subclass_for), BeforeValidator(_named)]


class SelectConfig(FrozenConfig):
    """Critical steps of a data set by one selector."""

    run: Annotated[str, PLACEMENT] = "runs/select"
    data: DataConfig
    selector: SelectorConfig = LlmSelector()
    seed: int = 0
    max_failed: MaxFailed = 0.5
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()
