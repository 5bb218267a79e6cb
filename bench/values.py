"""Economical against exhaustive values: how well each finds the critical steps that many rollouts show, at what cost.

    python -m bench values --model FOLDER --data EXPERT [--run runs/bench-values]

The truth is the exhaustive mode with `--truth` rollouts a start, at another seed than any run that it judges. All runs
lie in `--run` and go on where they stopped: about half an hour the first time. Per environment and in all: F1 of the
chosen steps against the truth's, generated tokens, and how far two exhaustive runs with different seeds agree.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from atlas_ray.config import validate
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.collect import collect
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Selection
from bench.rollouts import write_model
from bench.table import Entry, parse, write_bench

ENVIRONMENTS = ("maze", "textcraft")
TRUTH_SEED = 1000
RESAMPLES = 2000

Run = Mapping[str, Selection]
Figure = Callable[[Sequence[str]], float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing, prints the tables and writes `bench/values.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="runs/quickstart/train/base/model")
    parser.add_argument("--data", default="runs/quickstart/collect/expert")
    parser.add_argument("--run", default="runs/bench-values")
    parser.add_argument("--truth", type=int, default=50, help="rollouts a start")
    parser.add_argument("--limit", type=int, default=31, help="trajectories an environment")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=2)
    with tempfile.TemporaryDirectory() as place:
        small = {"model": f"{place}/model", "data": f"{place}/expert", "run": f"{place}/run"}
        given = parse(parser, arguments, **small, truth=4, limit=2, seeds=2, replicas=1)
        if given.data == small["data"]:
            write_model(given.model)
            tasks = dict.fromkeys(ENVIRONMENTS, given.limit)
            collect(validate(CollectConfig, {"run": given.data, "envs": list(ENVIRONMENTS), "tasks": tasks}))
        _measure(given)


def _measure(given: argparse.Namespace) -> None:
    def run(name: str, seed: int, **selector: object) -> Run:
        values = {
            "run": f"{given.run}/{name}-{seed}",
            "data": {"path": given.data, "envs": list(ENVIRONMENTS), "limit": given.limit},
            "selector": {
                "name": "value",
                "model": given.model,
                "max_tokens": 48,
                "engine": {"replicas": given.replicas},
                **selector,
            },
            "seed": seed,
        }
        folder = select_steps(validate(SelectConfig, values))
        return {s.id: s for s in RunFolder(folder.uri).read(SELECTIONS)}

    seeds = range(1, given.seeds + 1)
    economical = [run("economical", seed, mode="economical") for seed in seeds]
    exhaustive = [run("exhaustive", seed) for seed in seeds]
    truth = run("truth", TRUTH_SEED, rollouts=given.truth)
    write_bench("values", compare(truth, economical, exhaustive), given.tiny)


def compare(truth: Run, economical: Sequence[Run], exhaustive: Sequence[Run]) -> list[Entry]:
    """Prints figures with intervals over trajectories, and returns the benchmark's entries."""
    ids = sorted(key for key, s in truth.items() if s.error is None)
    n = min(len(rewards) for key in ids for rewards in truth[key].rewards[:-1])
    table = Table("over", "figure", "economical", "exhaustive", "difference or ratio", title=f"truth: N >= {n}")
    for env in (*ENVIRONMENTS, "both"):
        here = [key for key in ids if env in (truth[key].env, "both")]
        of = f"{env}: {len(here)} trajectories, {sum(len(truth[key].chosen) for key in here)} critical steps"
        ours, theirs = mean_f1(economical, truth), mean_f1(exhaustive, truth)
        table.add_row(
            of,
            "F1 against the truth",
            said(ours, here),
            said(theirs, here),
            said(difference(ours, theirs), here, "+"),
        )
        less, whole = tokens(economical), tokens(exhaustive)
        table.add_row(
            "",
            "generated tokens",
            f"{less(here):,.0f}",
            f"{whole(here):,.0f}",
            said(quotient(less, whole), here),
        )
        table.add_row("", "runs among themselves (F1)", said(among(economical), here), said(among(exhaustive), here))
    Console().print(table)
    pairs = list(zip(economical, exhaustive, strict=True))
    scores = [f1(a, truth, ids) for a, _ in pairs], [f1(b, truth, ids) for _, b in pairs]
    spent = [tokens([a])(ids) for a, _ in pairs], [tokens([b])(ids) for _, b in pairs]
    alike = pairwise(economical, ids), pairwise(exhaustive, ids)
    return [
        _entry("f1", *scores, unit="F1", floor=1.0),
        _entry("tokens", *spent, unit="generated tokens", better="lower"),
        _entry("agreement", *alike, unit="F1 between two seeds", floor=1.0),
    ]


def _entry(name: str, ours: Sequence[float], rival: Sequence[float], **kind: Any) -> Entry:
    return Entry(name, ours, rival, against="ours, exhaustive", **kind)


def f1(found: Run, truth: Run, keys: Sequence[str]) -> float:
    """F1 of the chosen steps, counted over all steps of the trajectories; symmetric in its two runs."""
    hits = sum(len(set(found[key].chosen) & set(truth[key].chosen)) for key in keys)
    chosen = sum(len(found[key].chosen) + len(truth[key].chosen) for key in keys)
    return 2 * hits / chosen if chosen else 1.0


def mean_f1(runs: Sequence[Run], truth: Run) -> Figure:
    """Mean over runs with different seeds."""
    return lambda keys: fmean(f1(found, truth, keys) for found in runs)


def tokens(runs: Sequence[Run]) -> Figure:
    """Mean number of generated tokens."""
    return lambda keys: fmean(sum(found[key].usage.completion_tokens for key in keys) for found in runs)


def difference(a: Figure, b: Figure) -> Figure:
    """a - b over the same trajectories."""
    return lambda keys: a(keys) - b(keys)


def quotient(a: Figure, b: Figure) -> Figure:
    """a / b over the same trajectories."""
    return lambda keys: a(keys) / b(keys)


def pairwise(runs: Sequence[Run], keys: Sequence[str]) -> list[float]:
    """Agreement of every two runs."""
    return [f1(a, b, keys) for i, a in enumerate(runs) for b in runs[i + 1 :]]


def among(runs: Sequence[Run]) -> Figure:
    """Median agreement of two runs."""
    return lambda keys: median(pairwise(runs, keys))


def said(figure: Figure, keys: Sequence[str], sign: str = "") -> str:
    """A figure with its 95 % percentile bootstrap interval over trajectories."""
    rng = random.Random(0)
    drawn = sorted(figure(rng.choices(keys, k=len(keys))) for _ in range(RESAMPLES))
    low, high = drawn[RESAMPLES // 40], drawn[-1 - RESAMPLES // 40]
    return f"{figure(keys):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
