"""Selectors by name: the package's own, those that other packages bring, and any class named as `module:Class`."""

from __future__ import annotations

import difflib
import os
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from atlas_ray.errors import UserError

GROUP = "atlas_ray.selectors"  # of entry points: `name = "module:Class"`
DEFAULT = "llm"  # the paper's
_OWN = {
    "all": "baselines:AllSelector",
    "random": "baselines:RandomSelector",
    "gold": "baselines:GoldSelector",
    "complement": "baselines:ComplementSelector",
    "first": "baselines:FirstSelector",
    "last": "baselines:LastSelector",
    "file": "file:FileSelector",
    "python": "python_function:PythonSelector",
    "combine": "combine:CombineSelector",
    "perplexity": "perplexity.settings:PerplexitySelector",
    "value": "value.settings:ValueSelector",
    "llm": "llm.settings:LlmSelector",
}


def find(name: str) -> type[Any]:
    """The class of a selector.

    Raises:
        UserError: If there is none of that name.
    """
    if name in _OWN:
        return _load(f"{__package__}.{_OWN[name]}")
    others = {entry.name: entry.value for entry in _brought()}
    if name in others or ":" in name:
        return _load(others.get(name, name))
    known = [*_OWN, *others]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean `{close[0]}`?" if close else f"valid: {', '.join(known)}, or `module:Class`"
    raise UserError(f"there is no selector {name!r}; {hint}")


@cache
def _brought() -> Any:
    return entry_points(group=GROUP)


def _load(place: str) -> type[Any]:
    """A class by `module:Class`; modules are looked for in the working directory too."""
    module, _, name = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), name, None)
    except ImportError as error:
        raise UserError(f"cannot import {module}: {error}", "check the selector's name") from error
    if not isinstance(found, type) or not hasattr(found, "stage"):
        raise UserError(f"{module} has no selector {name}", "name a subclass of atlas_ray.selection.protocol:Selector")
    return found
