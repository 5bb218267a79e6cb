"""Environments of other libraries, as a process meets them that has registered none and started no server."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.foreign import openenv, openenv_servers
from tests.support.docs_blocks import ROOT

OURS = [ROOT / "tests" / "support" / name for name in ("verifiers_tasksets", "openenv_package")]


def forget(monkeypatch: pytest.MonkeyPatch, found: Iterable[Path] = ()) -> None:
    """What a test registers and starts is its own; workers and servers find the packages in these folders."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [ROOT, *found])))
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))
    monkeypatch.setattr(openenv_servers, "_servers", {})
    monkeypatch.setattr(openenv, "_offers", {})
