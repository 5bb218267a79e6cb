"""Selectors by name: the package's own, those that other packages bring, and any class named as `module:Class`."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.plugins import Registry

DEFAULT = "llm"  # the paper's
SELECTORS: Registry[type[Any]] = Registry(
    "selector",
    type,
    {
        "all": "atlas_ray.selection.baselines:AllSelector",
        "random": "atlas_ray.selection.baselines:RandomSelector",
        "matched_random": "atlas_ray.selection.matched:MatchedRandomSelector",
        "gold": "atlas_ray.selection.baselines:GoldSelector",
        "complement": "atlas_ray.selection.baselines:ComplementSelector",
        "first": "atlas_ray.selection.baselines:FirstSelector",
        "last": "atlas_ray.selection.baselines:LastSelector",
        "file": "atlas_ray.selection.file:FileSelector",
        "python": "atlas_ray.selection.python_function:PythonSelector",
        "combine": "atlas_ray.selection.combine:CombineSelector",
        "perplexity": "atlas_ray.selection.perplexity.selector:PerplexitySelector",
        "value": "atlas_ray.selection.value.selector:ValueSelector",
        "llm": "atlas_ray.selection.llm.selector:LlmSelector",
    },
    "atlas_ray.selectors",
)


def is_own(module: str) -> bool:
    """Whether a module is of this package, which every worker has."""
    return module.partition(".")[0] == __name__.partition(".")[0]


def source_digest(module: str) -> str:
    """SHA-256 of the source of an imported module: what a selection is made by.

    Raises:
        UserError: If it has no source.
    """
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        raise UserError(f"{module} has no source file", "put the function in a module of your own")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
