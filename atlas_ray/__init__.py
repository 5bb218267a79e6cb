"""Agent tuning on critical steps (ATLAS), on Ray, from a laptop to a cluster."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["WorldEnv", "Worlds"]  # what verifiers looks for in the taskset `atlas-ray`


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("atlas_ray.environments.foreign.verifiers_worlds"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
