"""The report of a run elsewhere, brought here.

Flows in: the arguments of a job that builds a report; flows out: the report's files (page, tables, figures), or where
they lie. Models and records stay where they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.address import below
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console

_PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class Report:
    """Where a recipe's report will lie.

    Attributes:
        uri: Of its folder, as the cluster's nodes see it.
        name: The recipe's.
    """

    uri: str
    name: str


def report_to_fetch(stage: str, arguments: Sequence[str], *, wait: bool, folder: str | None) -> Report | None:
    """The report that is brought here when a job has ended; None where it is not waited for, or builds none.

    Args:
        stage: `run` and `report` build one.
        arguments: Of the job.
        wait: Whether the job is followed to its end.
        folder: Where the report is asked for, if it is.

    Raises:
        UserError: If the recipe is not valid, or a report is asked for that there will not be.
    """
    report = report_of(stage, arguments)
    if folder is not None and (report is None or not wait):
        why = "the job is not waited for" if not wait else f"`{stage}` builds none that is known here"
        raise UserError(f"there is no report to fetch: {why}", "--fetch goes with `submit run` and `submit report`")
    return report if wait else None


def report_of(stage: str, arguments: Sequence[str]) -> Report | None:
    """The report that a job builds; None where it builds none."""
    if stage not in ("run", "report"):
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("-s", "--set", action="append", default=[])
    for other in ("--with", "--only"):
        parser.add_argument(other, action="append")
    try:
        given, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        return None  # the job says what is wrong
    if given.recipe is None:
        return None
    config = load_recipe(given.recipe, given.set)
    return Report(below(config.runs, config.name, "report"), config.name)


def bring(report: Report, folder: str | None) -> None:
    """Copies a report here and says where its page lies.

    Args:
        folder: Where to; None: below `runs/`, unless the report lies on this machine or cannot be reached from it.

    Raises:
        AtlasError: If there is a folder, and the report cannot be reached or written there.
    """
    try:
        found = RunFolder(report.uri)
        if not found.has(_PAGE):
            raise AtlasError(
                f"no report lies at {report.uri}, as seen from this machine",
                "mount the folder here, or keep runs at an s3:// or gs:// URI: those are read from anywhere",
            )
        if folder is None and "://" not in report.uri:
            console.print(f"report: {below(report.uri, _PAGE)}")
            return
        target = Path(folder or f"runs/{report.name}-report")
        found.copy_to(target)
        console.print(f"report: {target / _PAGE}")
    except AtlasError as error:
        if folder is not None:
            raise
        console.print(f"the report is not fetched: {error.what}", style="yellow")
