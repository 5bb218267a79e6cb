"""A recipe whose runs lie in an object store, from collecting to the report; killed twice, it repeats nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from typer.testing import CliRunner

from atlas_ray.cli.main import app
from atlas_ray.recipes.fetch import Report, bring
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.training.metrics import read_checkpoints, read_metrics
from tests.support.recipes import TASKS, a_recipe, kill_when, recorded_twice, start
from tests.support.store import Store

RUNS = "s3://bucket/runs"


@pytest.fixture
def named_by_variable(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store, reached as users reach an S3-compatible server: by a variable of the AWS tools."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.address)
    return store


def contents(store: Store, path: str) -> dict[str, str]:
    """Digests of all objects below a path."""
    fs = store.files()
    found = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    return {
        i.path: hashlib.sha256(fs.open_input_stream(i.path).read()).hexdigest()
        for i in found
        if i.type == pafs.FileType.File
    }


def episodes(folder: RunFolder) -> dict[str, Any]:
    return {episode.id: episode for episode in folder.read(EPISODES)}


@pytest.mark.slow
def test_killed_in_training_and_in_evaluation_it_repeats_nothing(named_by_variable: Store, tmp_path: Path) -> None:
    store, root = named_by_variable, RunFolder(RUNS).child("small")
    recipe = a_recipe(Path("runs"), {"gold": {"name": "gold", "ratio": 0.3}}) | {"runs": RUNS}
    gold, base = root.child("train", "gold"), root.child("evaluate", "base")

    kill_when(start(tmp_path, recipe), lambda: bool(read_checkpoints(gold)))
    assert gold.finished is None
    saved = read_checkpoints(gold)[0]["step"]
    trained = read_metrics(gold)[:saved]
    earlier = {stage: contents(store, f"bucket/runs/small/{stage}") for stage in ("collect", "train/base", "select")}
    assert all(earlier.values())

    kill_when(start(tmp_path, recipe), lambda: len(base.done(EPISODES)) >= 32)
    assert base.finished is None
    played = episodes(base)

    process = start(tmp_path, recipe)
    assert process.wait(timeout=900) == 0, (tmp_path / "out.log").read_text()[-3000:]
    for stage, before in earlier.items():
        assert contents(store, f"bucket/runs/small/{stage}") == before
    steps = read_metrics(gold)
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert steps[:saved] == trained  # with the seconds that they took
    assert all(checkpoint["step"] > saved for checkpoint in read_checkpoints(gold))
    for arm in ("base", "gold"):
        folder = root.child("evaluate", arm)
        assert not recorded_twice(folder, EPISODES)
        assert len(episodes(folder)) == sum(TASKS.values())
    assert {key: episodes(base)[key] for key in played} == played

    model = "bucket/runs/small/train/gold/model/model.safetensors"
    size = store.files().get_file_info(model).size
    assert store.read(model) == [model] * -(-size // (16 << 20))  # brought to this machine once
    assert len({arm["name"] for arm in root.read_json("report/results.json")["arms"]}) == 2
    shown = CliRunner().invoke(app, ["status", RUNS])
    assert shown.exit_code == 0
    assert "unfinished" not in shown.output
    bring(Report(f"{RUNS}/small/report", "small"), str(tmp_path / "report"))
    assert (tmp_path / "report" / "index.html").is_file()
