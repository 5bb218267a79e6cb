"""The run folder: shards appear whole, nothing is counted twice, a changed configuration is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.runs.folder import COMPACT_FROM, RunFolder, latest_places
from atlas_ray.runs.manifest import config_digest
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES, TableSpec
from atlas_ray.types import (
    split_react,
)
from tests.support.records import Config, a_selection, a_trajectory, an_episode


@pytest.mark.parametrize(
    ("table", "record"),
    [(EPISODES, an_episode(1)), (TRAJECTORIES, a_trajectory()), (SELECTIONS, a_selection())],
    ids=lambda value: getattr(value, "name", ""),
)
def test_records_survive_the_way_to_disk_and_back(tmp_path: Path, table, record) -> None:  # type: ignore[no-untyped-def]
    folder = RunFolder(str(tmp_path))
    with folder.writer(table) as writer:
        writer.add(record)
    assert folder.read(table) == [record]


def test_the_columns_on_disk_stay_as_they_are() -> None:
    calls = "calls: list<item: struct<name: string, arguments: string, id: string>>"
    texts = "role: string, content: string, trainable: bool, thought: string"
    messages = f"list<item: struct<{texts}, {calls}, call_id: string>>"
    gold = "list<item: struct<step: int32, rank: int32, category: string>>"
    usage = "prompt_tokens: int64, cached_tokens: int64, completion_tokens: int64, calls: int64, cost: double"
    text = dict.fromkeys(["id", "env", "item_id"], "string")
    assert columns(TRAJECTORIES) == {**text, "messages": messages, "reward": "double", "gold": gold, "tools": "string"}
    assert columns(SELECTIONS) == {
        **text,
        **dict.fromkeys(["trajectory_id", "selector", "excluded", "replays", "categories", "plan"], "string"),
        **dict.fromkeys(["reason", "model", "prompt_hash", "error"], "string"),
        **{"ratio": "double", "n_steps": "int32", "shortened": "int64", "usage": f"struct<{usage}>"},
        **dict.fromkeys(["chosen", "probed", "rejoined"], "list<item: int32>"),
        **{"scores": "list<item: double>", "rewards": "list<item: list<item: double>>"},
        "rounds": "list<item: list<item: int32>>",
    }
    assert columns(EPISODES) == {
        **text,
        **dict.fromkeys(["policy", "stop_reason", "error", "trajectory", "replay", "tools"], "string"),
        **dict.fromkeys(["sample", "start_step", "rounds"], "int32"),
        **dict.fromkeys(["reward", "raw_reward", "progress", "seconds"], "double"),
        **{"seed": "int64", "success": "bool", "messages": messages, "gold": gold, "usage": f"struct<{usage}>"},
    }


def columns(table: TableSpec[Any]) -> dict[str, str]:
    return {field.name: str(field.type) for field in table.schema}


def test_episodes_of_a_folder_from_before_trajectories_were_recorded_are_read_and_gone_on_from(tmp_path: Path) -> None:
    folder, whole = RunFolder(str(tmp_path)), EPISODES.to_table([an_episode(1)])
    folder.write_table(EPISODES, whole.drop_columns(["trajectory"]))
    folder.write_shard(EPISODES, [replace(an_episode(2), trajectory="maze/maze_2#2")])
    assert [e.trajectory for e in folder.read(EPISODES)] == [None, "maze/maze_2#2"]
    assert folder.done(EPISODES) == {"maze/maze_1@0+0", "maze/maze_2@0+0"}


def test_an_episode_written_twice_is_counted_once_and_the_latest_wins(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write_shard(EPISODES, [an_episode(1, error="engine died", reward=0.0), an_episode(2)])
    folder.write_shard(EPISODES, [an_episode(1), an_episode(2)])
    assert folder.read(EPISODES) == [an_episode(1), an_episode(2)]


def test_ids_of_many_records_are_not_held_while_the_records_are_read(tmp_path: Path) -> None:
    folder, number = RunFolder(str(tmp_path)), 100_000
    ids = pa.array([f"maze/maze_{n}" for n in range(number)])
    rest = [pa.nulls(number, field.type) for field in SELECTIONS.schema if field.name != "id"]
    names = [name for name in SELECTIONS.schema.names if name != "id"]
    folder.write_table(SELECTIONS, pa.table([ids, *rest], ["id", *names]))
    before = pa.total_allocated_bytes()
    batches = folder.latest(SELECTIONS, ["n_steps"])
    read = next(batches).num_rows
    assert pa.total_allocated_bytes() - before < ids.nbytes
    assert read + sum(batch.num_rows for batch in batches) == number


@pytest.mark.parametrize(
    ("ids", "places"),
    [([], []), (["b"], [0]), (["b", "a", "c"], [1, 0, 2]), (["b", "a", "b", "b", "a"], [4, 3])],
)
def test_the_last_of_each_id_is_found_in_the_order_of_ids(ids: list[str], places: list[int]) -> None:
    assert latest_places(pa.chunked_array([ids[:2], ids[2:]], pa.string())).tolist() == places


def test_failed_units_are_not_done(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write_shard(EPISODES, [an_episode(1, error="engine died"), an_episode(2)])
    assert folder.done(EPISODES) == {"maze/maze_2@0+0"}


def test_after_a_sigkill_at_most_31_records_are_lost_and_no_shard_is_broken(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from atlas_ray.runs.folder import RunFolder\nfrom atlas_ray.runs.tables import EPISODES\n"
        "from tests.support.records import an_episode\n"
        f"writer = RunFolder({str(tmp_path)!r}).writer(EPISODES)\n"
        "for i in range(100): writer.add(an_episode(i))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env={**os.environ, "PYTHONPATH": "."}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(RunFolder(str(tmp_path)).read(EPISODES)) == 96


def test_a_half_written_file_is_not_a_shard(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write_shard(EPISODES, [an_episode(1)])
    (tmp_path / "episodes" / "0-x.parquet.abc.partial").write_bytes(b"PAR1 half")
    assert folder.read(EPISODES) == [an_episode(1)]


def test_compaction_keeps_every_record(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    for i in range(COMPACT_FROM):
        folder.write_shard(EPISODES, [an_episode(i)])
    before = folder.read(EPISODES)
    folder.compact(EPISODES)
    assert folder.read(EPISODES) == before
    assert len(list((tmp_path / "episodes").iterdir())) == 1


def test_a_run_of_another_configuration_is_refused_and_the_keys_named(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.begin(Config(), stage="test")
    with pytest.raises(UserError, match=r"ratio: 0\.3 -> 0\.2"):
        folder.begin(Config(ratio=0.2), stage="test")
    folder.begin(Config(workers=3, run="there"), stage="test")


def test_where_a_stage_runs_is_not_part_of_its_identity() -> None:
    assert config_digest(Config(workers=3)) == config_digest(Config())
    assert config_digest(Config(seed=1)) != config_digest(Config())


def evaluation(server: str = "http://a:1", key: str = "http://x/v1", **given: Any) -> EvaluateConfig:
    models = {name: {"path": f"{name}-model", "endpoint": {"base_url": key}} for name in ("cache", "run", "limits")}
    values = {"models": models, "tasks": {"maze": 3}, "environments": {"servers": {"maze": [server]}}}
    return validate(EvaluateConfig, values | given)


def test_arms_may_be_called_as_settings_of_placement_are(tmp_path: Path) -> None:
    folder, config = RunFolder(str(tmp_path)), evaluation()
    folder.begin(config, stage="evaluate")
    assert set(folder.read_json("manifest.json")["config"]["models"]) == {"cache", "run", "limits"}
    changed = config.model_copy(update={"models": config.models | {"cache": "another"}})
    with pytest.raises(UserError, match=r"models\.cache"):
        folder.begin(changed, stage="evaluate")


def test_a_run_goes_on_when_a_server_an_endpoint_or_the_retries_move(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.begin(evaluation(), stage="evaluate")
    folder.begin(evaluation("http://b:2", "http://y/v1", retries=9, limits={"turn_s": 5}), stage="evaluate")
    with pytest.raises(UserError, match=r"environments\.servers\.maze"):  # the built-in simulator has other tasks
        folder.begin(evaluation(environments={}), stage="evaluate")


def test_a_run_made_when_placement_was_told_by_name_goes_on(tmp_path: Path) -> None:
    folder, config = RunFolder(str(tmp_path)), evaluation()
    folder.begin(config, stage="evaluate")
    manifest = folder.read_json("manifest.json")
    held = manifest["config"] | {"retries": 2, "environments": {"servers": {"maze": ["http://a:1"]}}}
    for model in held["models"].values():
        model["endpoint"]["base_url"] = "http://x/v1"
    folder.write_json("manifest.json", manifest | {"config": held})
    folder.begin(config, stage="evaluate")


def test_no_secret_reaches_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    RunFolder(str(tmp_path)).begin(Config(), stage="test")
    assert "sk-very-secret" not in (tmp_path / "manifest.json").read_text()


def test_seeds_depend_on_their_parts_alone() -> None:
    assert derive_seed(0, "maze/maze_1", 2) == derive_seed(0, "maze/maze_1", 2)
    assert derive_seed(0, "a", "bc") != derive_seed(0, "ab", "c")
    assert 0 <= derive_seed("x") < 2**31


@pytest.mark.parametrize(
    ("reply", "parts"),
    [
        ("Thought: go on.\nAction: move up", ("go on.", "move up")),
        ("Action: move up", ("", "move up")),
        ("move up", ("", "move up")),
        ("Thought: only a thought", ("only a thought", "")),
        ("Thought: a\nb\nAction: get 1 log\nget 2", ("a\nb", "get 1 log\nget 2")),
    ],
)
def test_react_is_split_into_thought_and_action(reply: str, parts: tuple[str, str]) -> None:
    assert split_react(reply) == parts


def test_a_clean_start_never_lets_go_of_what_it_keeps(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.begin(Config(), stage="select")
    folder.write_shard(SELECTIONS, [a_selection()])
    folder.write_shard(TRAJECTORIES, [a_trajectory()])
    folder.write_json("part/file.json", {})
    folder.finish()
    folder.begin(Config(), stage="select", clean=True, keep=[TRAJECTORIES])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["manifest.json", "trajectories"]
    assert folder.read(TRAJECTORIES) == [a_trajectory()]
    folder.begin(Config(), stage="select", clean=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["manifest.json"]
