"""Jobs on two nodes, one of which is killed or cut off in their midst: the results are those of undisturbed runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES, TableSpec
from atlas_ray.training.metrics import read_metrics
from tests.selection.value.test_value_runs import experts
from tests.support.nodes import Nodes, namespaces_or_skip
from tests.support.training import curve, kept_lines

pytestmark = pytest.mark.slow
NOTICED_SECONDS = 20.0
ENGINE = {"replicas": 2, "episodes_in_flight": 8}


@dataclass(frozen=True)
class Stage:
    """A job, and how a test sees what it does.

    Attributes:
        job: In `jobs/`.
        config: Given its folder and a tiny model.
        recorded: Ids of what its folder holds, as often as they stand there.
        midst: So many that the stage is in its midst.
        kept: What bears the time at which it was made, and may not be made again.
        results: All of them, but for what differs from run to run.
        told: What the job says of the loss.
        needs_both: Whether it waits for the lost node.
    """

    job: str
    config: Callable[[Path, str], dict[str, Any]]
    recorded: Callable[[Path], list[Any]]
    midst: int
    kept: Callable[[Path], list[str]]
    results: Callable[[Path], list[Any]]
    told: str = "died and is started again"
    needs_both: bool = False


def ids(folder: RunFolder, table: TableSpec[Any]) -> list[str]:
    return [key for shard in folder.tables(table, ["id"]) for key in shard["id"].to_pylist()]


def shards(folder: Path) -> list[str]:
    return [str(file) for file in (folder / "run").rglob("*.parquet")]


def write_experts(folder: Path, number: int) -> dict[str, Any]:
    RunFolder(str(folder / "data")).write_shard(TRAJECTORIES, asyncio.run(experts(number)))
    return {"path": str(folder / "data" / "trajectories")}


def evaluation(folder: Path, model: str) -> dict[str, Any]:
    tasks = {"maze": 50, "textcraft": 50, "wordle": 50}
    return {"models": {"tiny": model}, "tasks": tasks, "max_tokens": 24, "engine": ENGINE}


def played(folder: Path) -> list[str]:
    return ids(RunFolder(f"{folder}/run/tiny"), EPISODES)


def episodes(folder: Path) -> list[Any]:
    found = RunFolder(f"{folder}/run/tiny").read(EPISODES)
    assert not [e.error for e in found if e.stop_reason.is_infrastructure]
    return [replace(e, seconds=0.0, usage=replace(e.usage, cached_tokens=0)) for e in found]


def training(folder: Path, model: str) -> dict[str, Any]:
    """120 steps of 4; a worker fills a node."""
    plain = {"epochs": 6, "global_batch_size": 4, "checkpoint_steps": 10, "max_length": 1024, "learning_rate": 1e-3}
    workers = {"num_workers": 2, "cpus_per_worker": 2, "dtype": "float32", "keep_checkpoint": True}
    return {"model": model, "data": write_experts(folder, 80)} | plain | workers


def steps(folder: Path) -> list[int]:
    return [line["step"] for line in read_metrics(RunFolder(f"{folder}/run"))]


def learnt(folder: Path) -> list[Any]:
    weights = (folder / "run" / "model" / "model.safetensors").read_bytes()
    return [*curve(read_metrics(RunFolder(f"{folder}/run"))), hashlib.sha256(weights).hexdigest()]


def by_value(folder: Path, model: str) -> dict[str, Any]:
    selector = {"name": "value", "model": model, "rollouts": 2, "max_tokens": 12, "engine": ENGINE}
    return {"data": write_experts(folder, 16), "selector": selector}


def selected(folder: Path) -> list[str]:
    return ids(RunFolder(f"{folder}/run"), SELECTIONS)


def selections(folder: Path) -> list[Any]:
    found = RunFolder(f"{folder}/run").read(SELECTIONS)
    assert not [s.error or s.excluded for s in found if s.error or s.excluded]
    return [replace(s, usage=replace(s.usage, cached_tokens=0)) for s in found]


STAGES = {
    "evaluate": Stage("evaluate_agent", evaluation, played, 32, shards, episodes),
    "train": Stage(
        "train_agent", training, steps, 25, kept_lines, learnt, "waiting for room for 2 training workers", True
    ),
    "select": Stage("select_steps", by_value, selected, 4, shards, selections),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    namespaces_or_skip()
    with TemporaryDirectory(ignore_cleanup_errors=True) as short:
        nodes = Nodes(f"{short}/c")
        nodes("up", "2")
        try:
            yield nodes
        finally:
            nodes("down")


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """Both of them there."""
    cluster.restore()
    return cluster


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Nodes, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[Any]]:
    """Results of a stage whose nodes live; made once."""
    made: dict[str, list[Any]] = {}

    def results(name: str) -> list[Any]:
        if name not in made:
            folder, stage = tmp_path_factory.mktemp(name), STAGES[name]
            cluster.restore()
            cluster.submit(stage.job, written(folder, stage, tiny_models[0])).succeed()
            made[name] = stage.results(folder)
        return made[name]

    return results


def written(folder: Path, stage: Stage, model: str) -> Path:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"run": str(folder / "run")} | stage.config(folder, model)))
    return file


@pytest.mark.parametrize("fault", ["kill", "cut"])
@pytest.mark.parametrize("name", STAGES)
def test_a_lost_node_changes_nothing(
    nodes: Nodes,
    undisturbed: Callable[[str], list[Any]],
    tiny_models: tuple[str, str],
    tmp_path: Path,
    name: str,
    fault: str,
) -> None:
    stage, expected = STAGES[name], undisturbed(name)
    job = nodes.submit(stage.job, written(tmp_path, stage, tiny_models[0]))
    job.wait_until(lambda: len(stage.recorded(tmp_path)) >= stage.midst)
    nodes.lose(1, fault)
    before = stage.recorded(tmp_path)
    noticed = nodes.seconds_until_noticed(1)
    print(f"\n{name}, {fault}: noticed after {noticed:.1f} s, with {len(before)} units recorded")
    assert noticed < NOTICED_SECONDS
    kept = stage.kept(tmp_path)
    if stage.needs_both:
        job.wait_until(lambda: stage.told in job.said)
        nodes.restore()
    job.succeed()
    assert stage.told in job.said
    after = stage.recorded(tmp_path)
    assert len(before) < len(after)  # it was in the midst
    assert set(Counter(after).values()) == {1}
    assert set(kept) <= set(stage.kept(tmp_path))
    assert stage.results(tmp_path) == expected


def test_a_lost_head_loses_nothing_that_was_recorded(
    nodes: Nodes, undisturbed: Callable[[str], list[Any]], tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    stage, expected = STAGES["evaluate"], undisturbed("evaluate")
    config = written(tmp_path, stage, tiny_models[0])
    job = nodes.submit(stage.job, config)
    job.wait_until(lambda: len(stage.recorded(tmp_path)) >= stage.midst)
    nodes.lose(0, "kill")
    job.fail()
    before = shards(tmp_path)
    nodes.renew()
    nodes.submit(stage.job, config).succeed()
    assert set(before) < set(shards(tmp_path))
    assert set(Counter(stage.recorded(tmp_path)).values()) == {1}
    assert stage.results(tmp_path) == expected


ARMS = {name: {"name": name} for name in ("all", "gold", "random", "complement", "first", "last")}


def a_recipe(folder: Path, data: dict[str, Any], model: str, name: str) -> Path:
    """Six arms, and one whose selection cannot be made."""
    recipe = {
        "name": name,
        "runs": str(folder),
        "expert": data,
        "base": model,
        "arms": ARMS | {"broken": {"name": "file", "path": str(folder / "nowhere.csv")}},
        "train": {"epochs": 4, "global_batch_size": 4, "max_length": 1024, "learning_rate": 1e-3, "dtype": "float32"},
        "evaluate": {"tasks": {"maze": 6, "textcraft": 6}, "max_tokens": 12, "engine": {"episodes_in_flight": 8}},
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def outcome(root: Path) -> dict[str, Any]:
    """What a report holds, and what was trained, but for what differs from run to run."""
    results: dict[str, Any] = json.loads((root / "report" / "results.json").read_text())
    weights = root.glob("train/*/model/model.safetensors")
    digests = {file.parents[1].name: hashlib.sha256(file.read_bytes()).hexdigest() for file in weights}
    for arm in results["arms"]:
        arm["model"] = arm["model"].replace(str(root), "")
    return {key: value for key, value in results.items() if key not in ("seconds", "recipe")} | {"weights": digests}


def intervals(root: Path) -> list[tuple[float, float]]:
    """When each training began and ended."""
    folders = [root / "train" / arm for arm in ARMS]
    return [((f / "manifest.json").stat().st_mtime, (f / "finished.json").stat().st_mtime) for f in folders]


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(begun <= at < ended for begun, ended in spans) for at, _ in spans)


def test_a_recipe_trains_several_arms_at_once_with_the_results_of_one_after_another(
    nodes: Nodes, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    data = write_experts(tmp_path, 24)
    for name, jobs in (("wide", []), ("narrow", ["--jobs", "1"])):
        file = a_recipe(tmp_path, data, tiny_models[0], name)
        began = time.monotonic()
        job = nodes.run_recipe(tmp_path / f"{name}.log", str(file), *jobs)
        job.fail(1500.0)
        assert "exit code 1" in job.said, job.said[-3000:]  # the driver's own
        assert "select/broken: " in job.said
        assert "skipped, for they need these: " in job.said
        spans = intervals(tmp_path / name)
        print(f"\n{name}: {time.monotonic() - began:.0f} s, {most_at_once(spans)} trainings at once")
        for arm, (begun, ended) in zip(ARMS, spans, strict=True):
            print(f"  train/{arm}: {begun - spans[0][0]:.1f} to {ended - spans[0][0]:.1f} s")
    wide, narrow = outcome(tmp_path / "wide"), outcome(tmp_path / "narrow")
    assert wide == narrow
    assert set(wide["weights"]) == set(ARMS)
    assert most_at_once(intervals(tmp_path / "wide")) >= 2
    assert most_at_once(intervals(tmp_path / "narrow")) == 1
    broken = next(arm for arm in wide["arms"] if arm["name"] == "broken")
    assert all(cell["n"] == 0 for cell in broken["environments"])
    assert wide["failures"]["broken"].startswith("select/broken failed: ")
    assert all(cell["n"] for arm in wide["arms"] if arm["name"] != "broken" for cell in arm["environments"])
