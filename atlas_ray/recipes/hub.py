"""What a recipe reads of the Hugging Face hub, so that all of it can be fetched before a GPU is held.

Flows in: a `Recipe`; flows out: models and data sets with their revisions. Nothing is called or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from atlas_ray.config import DataConfig
from atlas_ray.recipes.graph import Recipe
from atlas_ray.trajectories.locate import is_hub_id

_NEWEST = "main"


@dataclass(frozen=True, slots=True)
class HubFiles:
    """A repository of the hub at a revision."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id} {self.revision}"


def hub_files(recipe: Recipe) -> list[HubFiles]:
    """Every repository that a recipe's stages read: models that are trained, played, judge or score, then data.

    Models behind endpoints, folders and URIs are none; of a repository at the same revision there is one.
    """
    models = [("model", name, revision) for name, revision in _models(recipe)]
    data = [("dataset", name, revision) for name, revision in _data(recipe)]
    found = dict.fromkeys(
        HubFiles(kind, name, revision or _NEWEST)  # type: ignore[arg-type]
        for kind, name, revision in [*models, *data]
        if is_hub_id(name)
    )
    return list(found)


def _models(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    for name in recipe.backbones:
        yield recipe.start_of(name).path, None
    for evaluation in recipe.evaluations.values():
        yield from ((use.path, use.revision) for m in evaluation.played.values() for use in m.models())
    for selection in recipe.select.values():
        yield from ((model.path, None) for model in selection.selector.models())
    for verification in recipe.verify.values():
        yield verification.model, None


def _data(recipe: Recipe) -> Iterator[tuple[str, str | None]]:
    sections: list[DataConfig] = [recipe.expert, *(v.data for v in recipe.verify.values())]
    for evaluation in recipe.evaluations.values():
        opened = evaluation.openings.data if evaluation.openings else None
        sections += [data for data in (evaluation.items, opened) if data is not None]
    yield from ((section.path, section.revision) for section in sections)
