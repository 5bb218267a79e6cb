"""A study's page: the announced comparisons in every cell, one figure, one table.

Flows in: the records of each cell; flows out: `study.json`, `index.html` and `figure.svg` in the study's folder. A
difference is taken task by task over the seeds' means; it counts as shown if its interval excludes 0 and every seed by
itself has the same sign. Where the cells are replicates, one over all of them is the mean of theirs, with an interval
that covers what differs between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

from atlas_ray.evaluation.intervals import OUTCOME_WORDS, Interval, average, mean_of_replicates
from atlas_ray.evaluation.metrics import by_task
from atlas_ray.evaluation.paired import difference
from atlas_ray.report.drawing import standalone
from atlas_ray.report.html import duration, templates
from atlas_ray.report.inputs import Arm, ReportInput
from atlas_ray.report.site import write_assets
from atlas_ray.report.study.figure import Line, draw, draw_replicates
from atlas_ray.report.verdict import held_environments
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Episode

GROUPS = {"in": "held in", "out": "held out"}


@dataclass(frozen=True, slots=True)
class CellInput:
    """One cell's records.

    Attributes:
        dial: Where it stands in the figure, if it is in it.
        samples: Episodes a task and seed.
    """

    name: str
    words: str
    dial: float | None
    samples: int
    given: ReportInput


@dataclass(frozen=True, slots=True)
class Question:
    """An announced comparison; see `recipes.study.QuestionConfig`."""

    question: str
    expected: str
    arm: str
    against: str
    cells: Sequence[str]


@dataclass(frozen=True, slots=True)
class StudyInput:
    """What the page is made of."""

    name: str
    title: str
    dial: str
    panels: Mapping[str, Sequence[str]]
    cells: Sequence[CellInput]
    questions: Sequence[Question]
    replicates: bool = False


def write_study(folder: RunFolder, study: StudyInput) -> str:
    """Writes the page and what it shows; the same input gives the same bytes.

    Returns:
        Where the page lies.
    """
    results = study_results(study)
    folder.write_json("study.json", results)
    panels = {title: _lines(results, arms) for title, arms in study.panels.items()}
    svg = draw_replicates(panels) if study.replicates else draw(panels, study.dial)
    folder.write_bytes("figure.svg", standalone(svg).encode())
    write_assets(folder)
    page = templates().get_template("study.html.j2")
    said = {"study": study, "results": results, "svg": svg, "groups": GROUPS, "outcomes": OUTCOME_WORDS}
    hours = duration(sum(cell["seconds"] for cell in results["cells"]))
    folder.write_bytes("index.html", page.render(**said, hours=hours).encode())
    return folder.child("index.html").uri


def study_results(study: StudyInput) -> dict[str, Any]:
    """Figures of every arm in every cell, and the announced comparisons, in their order."""
    rows: list[dict[str, Any]] = []
    for asked in study.questions:
        found = list(_comparisons(asked, study.cells))
        rows += [*found, *(_together(found) if study.replicates else ())]
    return {"study": study.name, "cells": [_cell(cell) for cell in study.cells], "comparisons": rows}


def _lines(results: dict[str, Any], arms: Sequence[str]) -> list[Line]:
    """Success on the environments that were trained in, of each arm over the cells that lie on the dial."""
    on_dial = sorted((c for c in results["cells"] if c["dial"] is not None), key=lambda c: c["dial"])
    lines = []
    for name in arms:
        found = [(c["dial"], arm["in"]) for c in on_dial for arm in c["arms"] if arm["name"] == name and arm["in"]]
        points = [(x, score["success"], min(score["by_seed"]), max(score["by_seed"])) for x, score in found]
        lines.append(Line(name, points))
    return lines


def _cell(cell: CellInput) -> dict[str, Any]:
    given = cell.given
    steps = [len(t.steps) for t in given.trajectories]
    return {
        "name": cell.name,
        "words": cell.words,
        "dial": cell.dial,
        "seeds": list(given.seeds),
        "git_commit": given.git_commit,
        "trajectories": len(steps),
        "steps_a_trajectory": round(fmean(steps), 2),
        "seconds": round(sum(given.seconds.values())),
        "arms": [_arm(arm, cell) for arm in given.arms],
    }


def _arm(arm: Arm, cell: CellInput) -> dict[str, Any]:
    scores = {held: _score(arm.episodes, held, cell.given) for held in GROUPS}
    by_seed = [{h: _score(own, h, cell.given) for h in GROUPS} for own in _by_seed(arm, cell.samples)]
    return {
        "name": arm.name,
        "words": arm.words,
        "step_fraction": arm.step_fraction,
        "loss_token_fraction": arm.loss_token_fraction,
        "train_steps": arm.train_steps,
        "episodes": len(arm.episodes),
        **{
            held: None
            if scores[held] is None
            else {
                "success": round(scores[held] or 0.0, 4),
                "by_seed": [round(one[held] or 0.0, 4) for one in by_seed],
                "rounds": round(_rounds(arm.episodes, held, cell.given), 2),
            }
            for held in GROUPS
        },
        "environments": {
            env: round(fmean(tasks.values()), 4) for env in cell.given.specs if (tasks := _tasks(arm.episodes, env))
        },
    }


def _by_seed(arm: Arm, samples: int) -> list[list[Episode]]:
    """Its episodes seed by seed, in which a recipe's report numbers them on."""
    return [[e for e in arm.episodes if e.sample // samples == seed] for seed in range(arm.runs)]


def _score(episodes: Sequence[Episode], held: str, given: ReportInput) -> float | None:
    """Mean success over a group's environments, each weighing the same; None where one was not played."""
    found = [_tasks(episodes, env) for env in held_environments(given, held)]
    return fmean(fmean(tasks.values()) for tasks in found) if found and all(found) else None


def _rounds(episodes: Sequence[Episode], held: str, given: ReportInput) -> float:
    """Mean turns of an episode, environments weighing the same."""
    return fmean(fmean(e.rounds for e in episodes if e.env == env) for env in held_environments(given, held))


def _tasks(episodes: Sequence[Episode], env: str) -> dict[str, float]:
    return by_task([e for e in episodes if e.env == env], "success")


def _comparisons(asked: Question, cells: Sequence[CellInput]) -> Iterator[dict[str, Any]]:
    """One for each cell and group of environments that both arms have played."""
    for cell in cells:
        arms = {arm.name: arm for arm in cell.given.arms if arm.episodes}
        if cell.name not in asked.cells:
            continue
        row = {**asdict(asked), "cell": cell.name}
        del row["cells"]
        if asked.arm not in arms or asked.against not in arms:
            yield {**row, "held": None, "outcome": "missing"}
            continue
        ours, theirs = arms[asked.arm], arms[asked.against]
        for held in GROUPS:
            by_env = _differences(ours.episodes, theirs.episodes, held, cell.given)
            if not by_env:
                continue
            found = average([*by_env.values()])
            pairs = zip(_by_seed(ours, cell.samples), _cycled(theirs, ours.runs, cell.samples), strict=True)
            parts = [_differences(one, other, held, cell.given) for one, other in pairs]
            by_seed = [average([*part.values()]).value for part in parts if part]
            yield {
                **row,
                "held": held,
                **_rounded(found),
                "by_seed": [round(value, 4) for value in by_seed],
                "environments": {env: _rounded(one) for env, one in by_env.items()},
                "outcome": _outcome(found, by_seed),
            }


def _together(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A question's answer over all cells, each an independent repetition, for each group of environments."""
    for held in GROUPS:
        own = [row for row in rows if row["held"] == held]
        if len(own) < 2:
            continue
        by_cell = [row["difference"] for row in own]
        found = mean_of_replicates(by_cell)
        by_env = {env: [row["environments"][env]["difference"] for row in own] for env in own[0]["environments"]}
        yield {
            **own[0],
            "cell": f"all {len(own)} cells",
            **_rounded(found),
            "by_seed": by_cell,
            "environments": {env: _rounded(mean_of_replicates(values)) for env, values in by_env.items()},
            "outcome": found.outcome,
        }


def _rounded(found: Interval) -> dict[str, Any]:
    return {"difference": round(found.value, 4), "ci95": [round(limit, 4) for limit in found.limits]}


def _cycled(arm: Arm, runs: int, samples: int) -> list[list[Episode]]:
    """Its episodes for each of so many seeds; a model that was not trained under each is the same under all."""
    own = _by_seed(arm, samples)
    return [own[i % len(own)] for i in range(runs)]


def _differences(
    ours: Sequence[Episode], theirs: Sequence[Episode], held: str, given: ReportInput
) -> dict[str, Interval]:
    """In success, task by task, in each environment of a group; none where one of it was not played by both."""
    found = {env: difference(ours, theirs, env, "success") for env in held_environments(given, held)}
    parts = {env: part[0] for env, part in found.items() if part is not None}
    return parts if len(parts) == len(found) else {}


def _outcome(found: Interval, by_seed: Sequence[float]) -> Literal["better", "worse", "none"]:
    agree = all(value > 0 for value in by_seed) or all(value < 0 for value in by_seed)
    return found.outcome if agree else "none"
