"""Which built-in simulators cannot be made on this machine."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from atlas_ray.environments.registry import ENVIRONMENTS
from atlas_ray.errors import UserError


@functools.cache
def absent(env: str) -> str | None:
    """Why a simulator cannot be made here: its extra is not installed. In CI everything has to be there."""
    spec = ENVIRONMENTS.get(env)
    if spec is None or spec.simulator is None or spec.extra is None or os.environ.get("CI") == "true":
        return None
    try:
        spec.simulator()
    except UserError as error:
        return f"{error.what}: {error.remedy}"
    return None


def here(envs: Sequence[str]) -> list[str]:
    """Those that can be made."""
    return [env for env in envs if not absent(env)]
