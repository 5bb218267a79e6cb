"""What users bring: containers, flags and rows of other tools are read in full, or refused with the reason."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlas_ray.config import DataConfig, RayConfig
from atlas_ray.errors import UserError
from atlas_ray.trajectories.index import index_data
from atlas_ray.trajectories.readers import warn_once
from atlas_ray.trajectories.rejected import rejected_figures, skipped_line
from atlas_ray.types import Message
from tests.support.rows import OPENAI, SHAREGPT, read, write

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
cases = pytest.mark.skipif(not CASES.exists(), reason="the case files are not beside this checkout")


@cases
@pytest.mark.parametrize(
    ("name", "steps", "reasons"),
    [
        ("rows.jsonl.gz", [3], []),
        ("rows.jsonl.zst", [3], []),
        ("single.json", [3], []),
        ("wrapped.json", [3], []),
        ("messages_as_json_text.parquet", [3], []),
        ("noid.jsonl", [3, 3], []),
        ("parts.jsonl", [3, 1], []),
        ("rows.csv", [], ["the conversation is empty"]),
        ("mixed_rows.jsonl", [3], ["the row has no messages; a file has one format"]),
        ("dupkeys.jsonl", [], ["the key 'messages' stands twice in one object; leave the one that is meant"]),
        ("consecutive_user.jsonl", [3, 2], []),
        ("consecutive_assistant.jsonl", [3, 3], []),
        *((f"flags_{name}.jsonl", [2] * 4, []) for name in ("openai_loss", "openai_train")),
        *((f"flags_{name}.jsonl", [2] * 4, []) for name in ("sharegpt_train", "sharegpt_weight")),
        ("folder_with_gz", [3, 3, 3, 3, 1], []),
        ("mixed_folder", [3, 3, 3, 3, 1], []),
        ("names/exports #1.json", [3], []),
    ],
)
def test_each_file_is_read_or_refused_in_a_sentence(name: str, steps: list[int], reasons: list[str]) -> None:
    found, left_out = read(CASES / name)
    assert [len(t.steps) for t in found] == steps
    unusable = [row.reason for row in left_out if row.is_unusable]
    assert len(unusable) == len(reasons)
    assert all(said.startswith(reason) for said, reason in zip(unusable, reasons, strict=True))


@cases
def test_what_is_skipped_of_a_folder_is_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    _, left_out = read(CASES / "mixed_folder")
    assert skipped_line(left_out) == "files without trajectories (2): c.csv, config.json"
    assert rejected_figures(left_out) == {
        "rejected": 0,
        "files_without_trajectories": {"c.csv": 1, "config.json": 1},
    }
    assert "files of other kinds that are not read (1): d.txt" in caplog.text
    assert index_data(DataConfig(path=str(CASES / "mixed_folder")), RayConfig()).rejected == left_out


def test_a_table_of_text_holds_conversations_and_numbers(tmp_path: Path) -> None:
    cells = [json.dumps(OPENAI["messages"]), '"maze_3"', "0.5"]
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    text = "messages,item_id,reward,note\n" + ",".join(quoted) + ",\n" + ",".join(quoted[:2]) + "\n"
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    [found], [short] = read(tmp_path / "a.csv.gz")
    assert (len(found.steps), found.item_id, found.reward) == (2, "maze_3", 0.5)
    assert short.reason == "the row has 2 cells for 4 columns"


def test_a_row_without_an_id_has_the_same_one_wherever_it_stands(tmp_path: Path) -> None:
    row = {"conversations": SHAREGPT["conversations"]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    [own], _ = read(write(tmp_path / "a.jsonl", [row]))
    [theirs], _ = read(tmp_path / "b.parquet")
    assert own == theirs
    assert own.env == "chat"
    [kitchen], _ = read(write(tmp_path / "c.jsonl", [row | {"env": "kitchen"}]))
    assert kitchen.id.startswith("kitchen/kitchen_")


def flagged(*turns: dict[str, Any], **row: Any) -> dict[str, Any]:
    """Two replies with the keys given."""
    replies = [{"role": "assistant", "content": f"Action: {n}"} | turn for n, turn in enumerate(turns)]
    return {"id": "maze_1", "messages": [{"role": "user", "content": "go"}, *replies], **row}


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        (flagged({"weight": 0}, {}), [False, True]),
        (flagged({"train": False}, {}), [False, True]),
        (flagged({"training": True, "weight": 1}, {"training": False}), [True, False]),
        (flagged({"loss": False}, {"loss": True}), [False, True]),
        (flagged({"loss": 0}, {"trainable": True}), [False, True]),
        (flagged({}, {}, train=True), [True, True]),
        (flagged({"loss": None}, {"mask": None}), [True, True]),
    ],
)
def test_flags_of_every_tool_are_honoured(tmp_path: Path, row: dict[str, Any], learnt: list[bool]) -> None:
    [found], left_out = read(write(tmp_path / "a.jsonl", [row]))
    assert [m.trainable for m in found.messages[1:]] == learnt
    assert left_out == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (flagged({"loss": True}, {}), "turn 3: an assistant turn has no loss flag"),
        (flagged({"loss": True, "train": 0}, {}), "turn 2: loss and train contradict each other"),
        (flagged({"weight": "1"}, {}), "turn 2: weight '1' is neither true nor false"),
        (flagged({"loss_mask": 1}, {}), "turn 2 has the key 'loss_mask', which shapes training and is not read"),
        (flagged({"train_detail": []}, {}), "turn 2 has the key 'train_detail'"),
        (flagged({}, {}, labels=[1]), "the row has the key 'labels'"),
        (flagged({}, {}, chosen={}), "the row has the key 'chosen'"),
        (flagged({}, {}, weight=0), "the row is marked as not to be trained on"),
        (flagged({}, {}, weight=0.5), "the row: weight 0.5 is neither true nor false"),
        (
            {"id": "maze_1", "messages": [{"role": "user", "content": "go", "weight": 1}, *flagged({})["messages"]]},
            "turn 1 (user) is marked for training",
        ),
    ],
)
def test_what_else_shapes_training_refuses_the_row(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found, [refused] = read(write(tmp_path / "a.jsonl", [row]))
    assert found == []
    assert refused.reason.startswith(reason)


def test_keys_that_are_not_used_are_counted_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [flagged({}, {"name": "me"}, source="web"), flagged({}, source="web", id="maze_2")]
    path = write(tmp_path / "a.jsonl", rows)
    for _ in range(2):
        _, left_out = read(path)
    assert rejected_figures(left_out) == {"rejected": 0, "unused_keys": {"source": 2, "messages.name": 1}}
    assert caplog.text.count("keys that are not used: source (2 rows), messages.name (1 rows)") == 1


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_key_that_stands_twice_costs_its_row_alone(tmp_path: Path, suffix: str) -> None:
    whole, twice = json.dumps(OPENAI), '{"item_id": "maze_9", "messages": [{"role": "user", "role": "assistant"}]}'
    texts = {".json": f"[{twice}, {whole}]", ".jsonl": f"{twice}\n{whole}\n"}
    cells = [cell.replace('"', '""') for cell in ('[{"role": 1, "role": 2}]', json.dumps(OPENAI["messages"]))]
    texts[".csv"] = "item_id,messages\n" + "".join(f'maze_3,"{cell}"\n' for cell in cells)
    (tmp_path / f"a{suffix}").write_text(texts[suffix])
    [found], [refused] = read(tmp_path / f"a{suffix}")
    assert (found.item_id, refused.row) == ("maze_3", 1)
    assert refused.reason == "the key 'role' stands twice in one object; leave the one that is meant"


def test_images_are_refused_and_text_parts_joined(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Look."}, {"type": "text", "text": "Go."}]
    rows = [flagged({"content": parts}), flagged({"content": [*parts, {"type": "image_url", "image_url": {}}]})]
    [found], [refused] = read(write(tmp_path / "a.jsonl", rows))
    assert found.messages[1] == Message("assistant", "Look.\nGo.", True)
    assert "'image_url'" in refused.reason


def test_an_observation_is_all_that_was_seen_since_the_last_reply(tmp_path: Path) -> None:
    turns = [("user", "a"), ("user", "b"), ("assistant", "c"), ("assistant", "d")]
    row = {"id": "maze_1", "messages": [{"role": role, "content": text} for role, text in turns]}
    [found], _ = read(write(tmp_path / "a.jsonl", [row]))
    assert [(step.position, step.observation) for step in found.steps] == [(2, "a\nb"), (3, "")]


def test_a_single_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics.jsonl holds no trajectories: its first row has the keys step, loss"):
        read(write(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2}]))
