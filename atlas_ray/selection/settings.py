"""Settings of the selection stage; a selector's own section stands with the selector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, ValidationInfo

from atlas_ray.config import PLACEMENT, DataConfig, EnvironmentsConfig, FrozenConfig, RayConfig
from atlas_ray.errors import UserError
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.protocol import Selector


def _read(section: Any, info: ValidationInfo) -> Any:
    """A section with `combine` is a combination; one without a name is the paper's selector, the LLM."""
    if not isinstance(section, Mapping):
        return section
    if "combine" in section and section.get("name", "combine") == "combine":
        section = {"name": "combine", **section}
        section["parts"] = section.pop("combine")
    try:
        kind = Selector.subclass_for(section)
    except UserError as error:
        raise ValueError(f"{error.what}; {error.remedy}") from None
    return kind.model_validate(section, context=info.context)


SelectorConfig = Annotated[SerializeAsAny[Selector], BeforeValidator(_read)]


class SelectConfig(FrozenConfig):
    """Critical steps of a data set by one selector."""

    run: Annotated[str, PLACEMENT] = "runs/select"
    data: DataConfig
    selector: SelectorConfig = LlmSelector()
    seed: int = 0
    environments: EnvironmentsConfig = EnvironmentsConfig()
    ray: Annotated[RayConfig, PLACEMENT] = RayConfig()
