"""Data sets are read from files, folders, run folders and the hub; unusable rows and files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.readers import iter_trajectories, read_trajectories
from atlas_ray.trajectories.rejected import Rejected, write_rejected
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Category, GoldStep, Trajectory
from tests.support.rows import AGENTTRAJ, MESSAGES, OPENAI, SHAREGPT, read, write


@pytest.mark.parametrize("row", [AGENTTRAJ | {"reward": 0.5}, SHAREGPT, OPENAI])
def test_parquet_of_the_json_shapes(tmp_path, row):
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    found, rejected = read(tmp_path / "a.parquet")
    assert [t.messages for t in found] == [MESSAGES, MESSAGES]
    assert [t.id for t in found] == [found[0].task.id, found[0].task.id + "#2"]
    assert rejected == []


def test_our_own_table_and_run_folder(tmp_path):
    trajectories = [
        Trajectory("maze/maze_3", "maze", "maze_3", MESSAGES, 1.0, (GoldStep(1, 1, Category.PLAN_CREATION),)),
        Trajectory("maze/maze_3#3", "maze", "maze_3", MESSAGES),
    ]
    pq.write_table(TRAJECTORIES.to_table(trajectories), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == (trajectories, [])
    run = RunFolder(str(tmp_path / "run"))
    run.begin(CollectConfig(), stage="collect")
    with pytest.raises(UserError, match="no trajectories"):
        read(run.uri)
    run.write_shard(TRAJECTORIES, trajectories)
    assert read(run.uri) == (trajectories, [])


def test_a_folder_is_read_in_order_of_names_and_ids_stay_unique(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.json", [AGENTTRAJ, AGENTTRAJ])
    write(tmp_path / "sub" / "c.jsonl", [AGENTTRAJ, OPENAI])
    write(tmp_path / "dataset_info.json", {"features": {}})
    write(tmp_path / ".hidden.json", "not data")
    (tmp_path / "README.md").write_text("about")
    found, rejected = read(tmp_path)
    task = "maze/lmrlgym_maze_3"
    assert [t.id for t in found] == [task, f"{task}#2", f"{task}#3"]
    [other] = rejected
    assert (Path(other.file).name, other.row) == ("c.jsonl", 2)
    remedy = "a file has one format: write rows of another one into another file"
    assert other.reason == f"the row has no conversations; {remedy}"


def test_a_truncated_line_rejects_one_row(tmp_path):
    lines = [json.dumps(AGENTTRAJ), "", json.dumps(AGENTTRAJ)[:80], "[" * 100_000, json.dumps(AGENTTRAJ)]
    path = Path(write(tmp_path / "a.jsonl", lines))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    found, rejected = read(path)
    assert len(found) == 2
    assert [r.row for r in rejected] == [3, 4, 6]
    assert rejected[0].reason.startswith("not valid JSON: column")
    assert rejected[2].reason.startswith("unreadable: 'utf-8' codec")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", json.dumps([AGENTTRAJ])[:-9], ["line 1, column", "a.json"]),
        ("a.json", '[{"a": 1},\n {]', ["line 2, column 3"]),
        ("a.json", "", ["line 1, column 1"]),
        ("a.json", '{"a": 1}', ["holds no trajectories", "keys a"]),
        ("a.json", "[" * 100_000, ["cannot read"]),
        ("a.parquet", "PAR1", ["not readable as Parquet"]),
        ("a.json", '{"a": [], "b": [1]}', ["several lists: a, b"]),
        ("a.csv", "a,b\n1,2", ["holds no trajectories", "keys a, b"]),
        ("a.csv", "a,a\n1,2", ["two columns"]),
        ("a.csv", 'a,b\n"1,2', ["not valid CSV"]),
        ("a.jsonl.gz", "no archive", ["cannot read"]),
        ("a.jsonl.zst", "no archive", ["cannot read"]),
        ("a.txt", "a,b", [".jsonl"]),
    ],
)
def test_unreadable_files_are_named_with_a_remedy(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert all(word in str(caught.value) for word in words)
    assert caught.value.remedy


def test_a_missing_path_names_the_closest(tmp_path, monkeypatch):
    write(tmp_path / "trajectories.json", [AGENTTRAJ])
    with pytest.raises(UserError, match=r"did you mean .*trajectories\.json"):
        read(tmp_path / "trajectory.json")
    (tmp_path / "runs" / "collect").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean runs/collect"):
        read("runs/colect")
    with pytest.raises(UserError, match=r"holds no \.json"):
        read("runs/collect")
    with pytest.raises(UserError, match=r"holds no \.json"):
        read((tmp_path / "runs").as_uri())


def test_a_link_that_leads_nowhere_is_not_answered_with_its_own_name(tmp_path):
    (tmp_path / "data.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"data\.json is a link to .*gone\.json, where nothing is"):
        read_trajectories(DataConfig(path=str(tmp_path / "data.json")))


def test_a_hub_id_is_fetched_at_its_revision(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    write(tmp_path / "a.json", [AGENTTRAJ])
    asked = []

    def fetch(name: str, **options: Any) -> str:
        asked.append((name, options["repo_type"], options["revision"]))
        if name == "org/gone":
            raise ConnectionError("no network\nmore")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert len(read("org/name", revision="abc")[0]) == 1
    assert asked == [("org/name", "dataset", "abc")]
    with pytest.raises(UserError, match="hub: no network\n"):
        read("org/gone")


def test_environments_and_limit(tmp_path):
    rows = [
        AGENTTRAJ | {"item_id": item} for item in ("maze_1", "wordle_1", "maze_2", "maze_3", "babyai_1", "sqlgym_1")
    ]
    path = write(tmp_path / "a.json", rows)
    found, rejected = read(path, envs=["wordle", "maze"], limit=2)
    assert [t.item_id for t in found] == ["maze_1", "wordle_1", "maze_2"]
    assert rejected == []  # what `envs` leaves out is not read, whatever it is
    with pytest.raises(UserError, match="no usable trajectory of textcraft"):
        read(path, envs=["maze", "textcraft"])


def test_rejected_rows_are_written_or_logged(tmp_path, caplog):
    path, rejected = write(tmp_path / "a.jsonl", [AGENTTRAJ, "{", "\x00"]), list[Rejected]()
    rows = iter_trajectories(DataConfig(path=path), rejected)
    assert (next(rows).item_id, next(rows, None), len(rejected)) == ("lmrlgym_maze_3", None, 2)
    write_rejected(RunFolder(str(tmp_path / "run")), rejected)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [(path, 2), (path, 3)]
    assert read_trajectories(DataConfig(path=path))
    assert f"2 rows of {path} are unusable; the first: {path}, row 2: not valid JSON" in caplog.text
