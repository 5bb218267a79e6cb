"""What verifiers (0.4.0) and inspect_ai (0.3) have saved, read: the files were written by these packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.trajectories.decoders import decode
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Trajectory

SAVED = Path(__file__).parents[1] / "support" / "saved_rollouts"


def read(path: Path) -> tuple[list[Trajectory], list[str]]:
    rejected: list[Any] = []
    found = read_trajectories(DataConfig(path=str(path)), rejected)
    return found, [row.reason for row in rejected]


def rejected(row: dict[str, Any], tmp_path: Path, beside: str) -> str:
    """Why a row is refused, in a file with the one that it was made of."""
    (tmp_path / "rows.jsonl").write_text(f"{beside}\n{json.dumps(row)}\n")
    found, [reason] = read(tmp_path / "rows.jsonl")
    assert len(found) == 1
    return reason


def test_a_trace_of_verifiers_is_a_trajectory_with_thoughts_calls_tools_and_its_reward() -> None:
    (first, second), refused = read(SAVED / "verifiers.jsonl")
    assert refused == []
    assert (first.id, first.env, len(first.steps)) == ("atlas_boxes/atlas_boxes_0", "atlas_boxes", 8)
    assert (first.reward, second.reward) == (pytest.approx(1 / 7), 0.5)
    asked, opened, told = first.messages[:3]
    assert (asked.role, asked.content) == ("user", "The coin lies in box 1 to 7.")
    assert (opened.thought, str(opened.calls[0])) == ("try 1", 'open_box({"number": 1})')
    assert (told.role, told.content, told.call_id) == ("tool", "Higher.", opened.calls[0].id)
    [tool] = json.loads(first.tools or "")
    assert (tool["type"], tool["function"]["name"]) == ("function", "open_box")
    assert tool["function"]["parameters"]["required"] == ["number"]


def test_replies_that_the_model_did_not_sample_are_context(tmp_path: Path) -> None:
    row = json.loads((SAVED / "verifiers.jsonl").read_text().splitlines()[1])
    row["traces"][0]["nodes"][1]["sampled"] = False
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    ([trajectory], _) = read(tmp_path / "rows.jsonl")
    assert [m.trainable for m in trajectory.messages if m.role == "assistant"] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row["traces"].append(row["traces"][0]), "the episode holds 2 traces"),
        (lambda row: row["traces"][0]["errors"].append({"type": "E", "message": "no disk"}), "failed: no disk"),
        (lambda row: row["traces"][0]["nodes"][3].update(parent=0), "the conversation has 2 ends"),
        (lambda row: row["traces"][0]["nodes"][0].update(parent=1), "parents run in a circle"),
        (lambda row: row["traces"][0]["nodes"][0].pop("message"), "does not fit its format"),
        (lambda row: row["traces"][0]["rewards"].update(more={"score": 1.0, "weight": 2.0}), "is not in [0, 1]"),
    ],
)
def test_what_is_no_one_conversation_is_refused_with_the_reason(change: Any, reason: str, tmp_path: Path) -> None:
    line = (SAVED / "verifiers.jsonl").read_text().splitlines()[1]
    change(row := json.loads(line))
    assert reason in rejected(row, tmp_path, line)


def test_a_log_of_inspect_ai_is_a_trajectory_a_sample() -> None:
    (first, second), refused = read(SAVED / "inspect_ai.eval")
    assert refused == []
    assert [(t.id, t.reward, len(t.steps)) for t in (first, second)] == [
        ("chat/chat_sum-1", 1.0, 2),
        ("chat/chat_2", 0.0, 2),
    ]
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "tool", "assistant"]
    called, told, last = first.messages[2:]
    assert (called.content, str(called.calls[0])) == ("I add.", 'add({"x": 1, "y": 2})')
    assert (told.content, told.call_id) == ("3", called.calls[0].id)
    assert (last.thought, last.content) == ("one and two", "It is 3.")
    assert [tool["function"]["name"] for tool in json.loads(first.tools or "")] == ["add"]


def test_a_log_that_is_one_json_object_holds_the_same_samples(tmp_path: Path) -> None:
    samples = [decoded.value for decoded in decode(SAVED / "inspect_ai.eval")]
    log = {"version": 2, "tags": [], "eval": {"task": "sums"}, "samples": samples, "reductions": [{"scorer": "x"}]}
    (tmp_path / "log.json").write_text(json.dumps(log))
    assert read(tmp_path / "log.json") == read(SAVED / "inspect_ai.eval")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(error={"message": "no network"}), "the sample failed: no network"),
        (lambda row: row["messages"][1].update(content=[{"type": "image", "image": "x"}]), "a part of type 'image'"),
    ],
)
def test_samples_that_failed_or_hold_images_are_refused(change: Any, reason: str, tmp_path: Path) -> None:
    sample = next(decode(SAVED / "inspect_ai.eval")).value
    line = json.dumps(sample)
    change(sample)
    assert reason in rejected(sample, tmp_path, line)


def test_of_several_scores_none_is_taken_for_the_reward(tmp_path: Path) -> None:
    sample = next(decode(SAVED / "inspect_ai.eval")).value
    sample["scores"]["other"] = {"value": 0.25}
    (tmp_path / "rows.jsonl").write_text(json.dumps(sample))
    assert read(tmp_path / "rows.jsonl")[0][0].reward is None
    del sample["scores"]["includes"]
    (tmp_path / "rows.jsonl").write_text(json.dumps(sample))
    assert read(tmp_path / "rows.jsonl")[0][0].reward == 0.25


def test_an_archive_that_is_broken_is_refused_by_name(tmp_path: Path) -> None:
    whole = (SAVED / "inspect_ai.eval").read_bytes()
    (tmp_path / "cut.eval").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*cut\.eval: File is not a zip file"):
        read(tmp_path / "cut.eval")
