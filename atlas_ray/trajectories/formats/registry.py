"""Data formats by name: built in, of the entry-point group `atlas_ray.formats`, or `data.format: module:NAME`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atlas_ray.plugins import Registry
from atlas_ray.trajectories.formats.protocol import DataFormat

# A row is held against them in this order: what shows in fewer rows says more.
FORMATS: Registry[DataFormat] = Registry(
    "data format",
    DataFormat,
    {
        name: f"{__package__}.{name}:FORMAT"
        for name in (
            *("atlas", "verifiers", "inspect_ai", "anthropic", "responses", "openai", "agenttraj", "sharegpt"),
        )
    },
    group="atlas_ray.formats",
)


def detect(row: Any) -> str | None:
    """The format that a row is written in, or None where it shows none."""
    if not isinstance(row, dict):
        return None
    return next((name for name, form in FORMATS.items() if form.recognises(row)), None)


def detect_all(rows: Iterable[Any]) -> str:
    """The format that a file's first rows show; one row with loss flags outweighs broken ones without."""
    shown = [name for name in map(detect, rows) if name is not None]
    return "agenttraj" if "agenttraj" in shown or not shown else shown[0]
