"""Options that several verbs share, and how a verb's settings are read and shown. Imports nothing heavy."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

Config = Annotated[str | None, typer.Option("--config", "-c", help="YAML file with the stage's keys.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key: a.b=c.")]
Run = Annotated[str | None, typer.Option("--run", help="Run folder: a path or an s3:// or gs:// URI.")]
Data = Annotated[str | None, typer.Option("--data", help="File, folder or Hugging Face data set of trajectories.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and its cost, and stop.")]
Clean = Annotated[bool, typer.Option("--clean", help="Start anew; judgements that were paid for are kept.")]
Extra = Annotated[list[str] | None, typer.Option("--with", help="Include what costs money, e.g. llm.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="What these tables need alone: table3, ...")]

# Where each verb's settings are declared; read only when the verb runs.
_SETTINGS = {
    "CollectConfig": "atlas_ray.trajectories.settings",
    "SelectConfig": "atlas_ray.selection.settings",
    "TrainConfig": "atlas_ray.training.settings",
    "ExportConfig": "atlas_ray.training.settings",
    "EvaluateConfig": "atlas_ray.evaluation.settings",
    "VerifyConfig": "atlas_ray.evaluation.settings",
    "DataConfig": "atlas_ray.config",
}


_process = {"ends with its command": False}


def ends_with_its_command() -> None:
    """Says that nothing else will run in this process."""
    _process["ends with its command"] = True


@contextmanager
def looking(*unneeded: str) -> Iterator[None]:
    """For a verb that looks at something: where its process ends with it, libraries that it does not need are not
    loaded, and what it loads is not searched for garbage, which with torch takes a third of the time.

    Args:
        unneeded: Libraries that others would load where they find them; in this process they do not.
    """
    if not _process["ends with its command"]:
        yield
        return
    for name in unneeded:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # an import fails as if it was not installed
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # nobody need hear that there is no torch
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # the interpreter's end would search all of it as well


def load_settings(kind: str, file: str | None, overrides: list[str] | None, **given: Any) -> Any:
    """The settings of a class of `_SETTINGS`, from a file, overrides, and keys that have options of their own."""
    from atlas_ray import config

    if isinstance(given.get("data"), str):
        given["data.path"] = given.pop("data")
    return config.load(getattr(import_module(_SETTINGS[kind]), kind), file, overrides or [], **given)


def show_plan(config: BaseModel, *lines: str) -> None:
    """Prints a plan: the resolved configuration, and what it will cost."""
    import yaml

    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip())
    for line in lines:
        typer.echo(f"# {line}")
