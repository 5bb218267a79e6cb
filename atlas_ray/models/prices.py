"""What models cost and hold. Flows in: a model's name, the package's list and the user's; flows out: a `Price`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from atlas_ray.config import FrozenConfig
from atlas_ray.errors import UserError
from atlas_ray.types import Usage

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, and what else the list says about a model.

    Attributes:
        context: Tokens that prompt and reply may have together, or None where the list does not say.
        structured: Whether replies can be held to a JSON schema.
        batch_discount: Factor of the price where requests go through the Batch API.
    """

    prompt: float
    cached: float
    completion: float
    context: int | None = None
    structured: bool = False
    batch_discount: float = 1.0

    def of(self, usage: Usage) -> float:
        """What a usage costs, in US dollars."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        paid = fresh * self.prompt + usage.cached_tokens * self.cached + usage.completion_tokens * self.completion
        return paid / 1e6


class _Listed(FrozenConfig):
    prompt: float = Field(ge=0)
    cached: float | None = Field(None, ge=0)
    completion: float = Field(ge=0)
    context: int | None = Field(None, ge=16)
    structured: bool = False


class _File(FrozenConfig):
    about: str = ""
    batch_discount: float = Field(0.5, gt=0, le=1)
    models: dict[str, _Listed]


def price(model: str, file: str | None = None, *, batch: bool = False) -> Price | None:
    """List price of a model, dated snapshots like the model itself; None where it is unknown.

    Args:
        model: Its name at the endpoint.
        file: The user's own list, which goes before the package's.
        batch: Through the Batch API, which takes a part of the price; what a cache saves elsewhere, it saves not there.

    Raises:
        UserError: If the file cannot be read or is no list of prices.
    """
    table = {**_prices(None), **(_prices(file) if file else {})}
    listed = table.get(model) or table.get(_SNAPSHOT.sub("", model))
    if listed is None or not batch:
        return listed
    part = listed.batch_discount
    return replace(
        listed, prompt=part * listed.prompt, cached=part * listed.prompt, completion=part * listed.completion
    )


@cache
def _prices(file: str | None) -> Mapping[str, Price]:
    try:
        if file is None:
            text = (resources.files("atlas_ray.models") / "prices.json").read_text(encoding="utf-8")
        else:
            text = Path(file).read_text(encoding="utf-8")
        listed = TypeAdapter(_File).validate_python(json.loads(text))
    except (OSError, ValueError, ValidationError) as error:
        why = f"{e['loc']}: {e['msg']}" if isinstance(error, ValidationError) and (e := error.errors()[0]) else error
        form = '{"models": {"my-model": {"prompt": 2.5, "completion": 10.0}}}, in US dollars per million tokens'
        raise UserError(f"the price list {file} cannot be used: {why}", f"write {form}") from None
    return {
        name: Price(
            m.prompt, m.prompt if m.cached is None else m.cached, m.completion, m.context, m.structured,
            listed.batch_discount,
        )
        for name, m in listed.models.items()
    }  # fmt: skip
