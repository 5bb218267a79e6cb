"""The example of docs/own-environment.md on two nodes: a file that lies beside the driver alone serves every stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from tests.support.docs_blocks import DOCS, blocks
from tests.support.nodes import Nodes, namespaces_or_skip

pytestmark = pytest.mark.slow
LAMPS = next(block.text for block in blocks(DOCS / "own-environment.md") if block.file == "my_lamps.py")
ENVIRONMENTS = {"register": {"lamps": "my_lamps:SPEC"}}
ENGINE = {"replicas": 2, "episodes_in_flight": 8}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    namespaces_or_skip()
    with TemporaryDirectory(ignore_cleanup_errors=True) as short:
        nodes = Nodes(f"{short}/c")
        nodes("up", "2")
        try:
            yield nodes
        finally:
            nodes("down")


def test_lamps_are_collected_selected_by_value_evaluated_and_verified(
    nodes: Nodes, tiny_models: tuple[str, str], tmp_path: Path
) -> None:
    beside_driver = tmp_path / "own"
    beside_driver.mkdir()
    (beside_driver / "my_lamps.py").write_text(LAMPS)

    def run(job: str, name: str, **config: Any) -> RunFolder:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"run": str(tmp_path / name), "environments": ENVIRONMENTS} | config))
        nodes.submit(job, file, modules=beside_driver).succeed(600)
        return RunFolder(str(tmp_path / name))

    collected = run("collect_trajectories", "experts", envs=["lamps"])
    assert {t.item_id for t in collected.read(TRAJECTORIES)} == {f"lamps_{i}" for i in range(5, 20)}

    data = {"path": str(tmp_path / "experts"), "limit": 4}
    economy = {"mode": "economical", "rollouts": 1, "max_tokens": 8}
    selector = {"name": "value", "model": tiny_models[0], "engine": ENGINE} | economy
    selected = run("select_steps", "values", data=data, selector=selector)
    found = selected.read(SELECTIONS)
    assert [(s.error, s.excluded) for s in found] == [(None, {})] * 4
    assert selected.read_json("replays.json")["lamps"]["counts"] == {"exact": 4, "near": 0, "differs": 0}

    models = {"tiny": tiny_models[0]}
    run("evaluate_agent", "scores", models=models, tasks={"lamps": 3}, max_tokens=8, engine=ENGINE)
    played = RunFolder(f"{tmp_path}/scores/tiny").read(EPISODES)
    assert {e.item_id for e in played} == {f"lamps_{i}" for i in range(3)}
    assert not [e.error for e in played if e.stop_reason.is_infrastructure]

    given = {"model": tiny_models[0], "data": data, "selection": str(tmp_path / "values")}
    verified = run("verify_steps", "verified", **given, max_tokens=8, engine=ENGINE)
    assert not [e.error for e in verified.read(EPISODES) if e.stop_reason.is_infrastructure]
    rows = json.loads((tmp_path / "verified" / "results.json").read_text())["rows"]
    assert {row["env"] for row in rows} >= {"lamps"}
