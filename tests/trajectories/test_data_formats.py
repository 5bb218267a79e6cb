"""Rows of each data format: which turns are steps, and what makes a row unusable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.trajectories.formats.registry import FORMATS
from atlas_ray.trajectories.item_ids import environment_of
from atlas_ray.types import Category, GoldStep, Message, Trajectory
from tests.support.rows import AGENTTRAJ, MESSAGES, OPENAI, SHAREGPT, changed, read, write


def test_agenttraj_keeps_the_opening_out_of_the_steps(tmp_path):
    [found], rejected = read(write(tmp_path / "a.json", [AGENTTRAJ]))
    assert found == Trajectory("maze/lmrlgym_maze_3", "maze", "lmrlgym_maze_3", MESSAGES)
    assert [(s.index, s.position, s.thought, s.action, s.observation) for s in found.steps] == [
        (1, 3, "up", "move up", "Goal at 1, 1."),
        (2, 5, "", "move up", "Nearer."),
    ]
    assert rejected == []


def test_agenttraj_takes_our_reward_and_gold(tmp_path):
    row = AGENTTRAJ | {"reward": 1, "gold": [{"step": 2, "rank": 1, "category": "Critical Action"}]}
    [found], _ = read(write(tmp_path / "a.json", [row]))
    assert found.reward == 1.0
    assert found.gold == (GoldStep(2, 1, Category.CRITICAL_ACTION),)


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI, {**OPENAI, "id": "maze/maze_3"}])
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_other_formats_give_the_same_conversation(tmp_path, row, suffix):
    [found], _ = read(write(tmp_path / f"a{suffix}", [row]))
    assert found == Trajectory("maze/maze_3", "maze", "maze_3", MESSAGES)


@pytest.mark.parametrize(
    ("opening", "is_step"),
    [
        ("OK", False),
        ("Ok.", False),
        ("OK. I'll follow your instructions and try my best to solve the task.", False),
        ("Okay, Action: move up", True),
        ("Thought: OK\nAction: move up", True),
        ("look around", True),
    ],
)
@pytest.mark.parametrize("flagged", [False, True])
def test_an_opening_acknowledgement_is_no_step(opening, is_step, flagged):
    turns = [("user", "Play."), ("assistant", opening), ("user", "Begin."), ("assistant", "OK")]
    messages = [{"role": role, "content": text} for role, text in turns]
    if flagged:
        messages[3]["weight"] = 1
    found = FORMATS["openai"].read({"item_id": "maze_1", "messages": messages})
    assert [m.trainable for m in found.messages] == [False, is_step or flagged, False, True]


def test_a_system_turn_may_open(tmp_path):
    messages = [{"role": "system", "content": "You are an agent."}, *OPENAI["messages"]]
    [found], _ = read(write(tmp_path / "a.jsonl", [OPENAI | {"messages": messages}]))
    assert found.messages == (Message("system", "You are an agent."), *MESSAGES)
    assert len(found.steps) == 2


@pytest.mark.parametrize(
    ("item_id", "env"),
    [
        ("maze_3", "maze"),
        ("lmrlgym_wordle_12", "wordle"),
        ("alfworld_7", "alfworld"),
        ("pick_and_place_simple-Mug-None-Shelf-1/trial_T2019", "alfworld"),
        ("look_at_obj_in_light-Book-None-DeskLamp-3", "alfworld"),
        ("pick_two_obj_and_place-A-B", "alfworld"),
        ("pick_heat_then_place_in_recep-Egg-None-Fridge-4_trial_T20190908_033721_967359", "alfworld"),
        ("alfworld_look_at_obj_in_light-Book-None-DeskLamp-3/trial_T20190908_033721_967359", "alfworld"),
        ("train/look_at_obj_in_light-Book-None-DeskLamp-3/trial_T20190908_033721_967359/game.tw-pddl", "alfworld"),
        ("tool_movie_0", "movie"),
        ("tool_sheet_19", "sheet"),
        ("BabyAI-GoToObj-v0_3", "babyai"),
        *((f"{name}_5238", name) for name in ("webshop", "textcraft", "sciworld", "babyai", "weather", "blocksworld")),
        *((f"{name}_0", name) for name in ("movie", "todo", "academia", "sheet")),
    ],
)
def test_the_environment_follows_from_the_item_id(item_id, env):
    assert environment_of(item_id) == env


BROKEN: list[tuple[Any, str]] = [
    (3, "the row is not an object but a number"),
    (None, "the row is not an object but null"),
    ({"conversations": []}, "no item_id"),
    (AGENTTRAJ | {"item_id": 3}, "the item_id is a bare number, 3; name the task with its environment"),
    (AGENTTRAJ | {"item_id": "sqlgym_3"}, "names no known environment"),
    (AGENTTRAJ | {"item_id": "mazes_3"}, "names no known environment"),
    (AGENTTRAJ | {"env": "../x"}, "not a lower-case name"),
    (
        AGENTTRAJ | {"conversations": None},
        "names a task without a trajectory (conversations is null), as those of AgentEval do",
    ),
    (AGENTTRAJ | {"conversations": []}, "the conversation is empty"),
    (AGENTTRAJ | {"conversations": ["hello"]}, "turn 1 is not an object but a string"),
    (AGENTTRAJ | {"conversations": AGENTTRAJ["conversations"][:2]}, "no assistant turn is trainable"),
    (AGENTTRAJ | {"conversations": AGENTTRAJ["conversations"][1:]}, "turn 1 is by 'assistant' where 'user' must speak"),
    (changed(2, **{"from": "system"}), "turn 3 is by 'system', which may only open a conversation"),
    (changed(4, **{"from": "robot"}), "turn 5: unknown from 'robot'"),
    (changed(4, **{"from": ["human"]}), "turn 5: unknown from ['human']"),
    (changed(4, value="  "), "turn 5 (user) is empty"),
    (changed(4, value=7), "turn 5: value is not a string but a number"),
    (changed(4, value=None), "turn 5: value is not a string but null"),
    (changed(4, value="\ud800"), "turn 5: value holds half a surrogate pair"),
    (changed(4, loss=True), "turn 5 (user) is marked for training"),
    (changed(3, loss="yes"), "turn 4: loss 'yes' is neither true nor false"),
    (changed(3, loss=None), "turn 4: an assistant turn has no loss flag"),
    (AGENTTRAJ | {"reward": float("nan")}, "the reward nan is not in [0, 1]"),
    (AGENTTRAJ | {"reward": 2}, "the reward 2 is not in [0, 1]"),
    (AGENTTRAJ | {"reward": "1"}, "the reward is not a number but a string"),
    (AGENTTRAJ | {"reward": True}, "the reward is not a number but a boolean"),
    (AGENTTRAJ | {"gold": {}}, "gold is not a list but an object"),
    (AGENTTRAJ | {"gold": [{"step": 1}]}, "exactly step, rank and category"),
    (AGENTTRAJ | {"gold": [{"step": 0, "rank": 1, "category": "Self Correction"}]}, "gold step 0"),
    (AGENTTRAJ | {"gold": [{"step": 3, "rank": 1, "category": "Self Correction"}]}, "gold step 3 does not exist"),
    (AGENTTRAJ | {"gold": [{"step": 1, "rank": 1.5, "category": "Self Correction"}]}, "gold rank 1.5"),
    (AGENTTRAJ | {"gold": [{"step": 1, "rank": 1, "category": "Pivotal"}]}, "gold category 'Pivotal' is none of"),
    (AGENTTRAJ | {"gold": [{"step": 1, "rank": 1, "category": []}]}, "gold category [] is none of"),
    (AGENTTRAJ | {"gold": [{"step": 1, "rank": 1, "category": "Self Correction"}] * 2}, "gold annotates a step twice"),
]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_broken_row_is_rejected_with_its_reason(tmp_path, suffix):
    rows = [AGENTTRAJ, *(row for row, _ in BROKEN), AGENTTRAJ]
    path = write(tmp_path / f"a{suffix}", rows)
    found, rejected = read(path)
    assert [t.id for t in found] == ["maze/lmrlgym_maze_3", "maze/lmrlgym_maze_3#2"]
    assert len(rejected) == len(BROKEN)
    for number, (entry, (_, reason)) in enumerate(zip(rejected, BROKEN, strict=True), 2):
        assert (entry.file, entry.row) == (path, number)
        assert reason in entry.reason


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "turn 2: the name of a tool call is not"),
        (
            {"role": "tool", "tool_call_id": "c", "content": "12"},
            "turn 2 answers the call 'c', which the assistant",
        ),
        ({"role": "user", "content": "12", "tool_calls": [{"name": "f"}]}, "turn 2 (user) has calls or thoughts"),
        ({"role": "assistant", "content": "hi", "weight": 0.5}, "turn 2: weight 0.5 is neither true nor false"),
        ({"role": "assistant", "content": [{"type": "text"}]}, "turn 2: content: text is not a string but null"),
        (
            {"role": "assistant", "content": [{"type": "image_url"}]},
            "turn 2: content holds a part of type 'image_url', and only text is read",
        ),
    ],
)
def test_openai_rows_that_cannot_be_used(tmp_path, turn, reason):
    row = {"item_id": "maze_1", "messages": [{"role": "user", "content": "Play."}, turn]}
    _, [entry] = read(write(tmp_path / "a.jsonl", [row]))
    assert entry.reason.startswith(reason)


def test_broken_rows_do_not_hide_the_format(tmp_path):
    empty = {"item_id": "maze_1", "conversations": []}
    found, rejected = read(write(tmp_path / "a.json", [3, empty, SHAREGPT, AGENTTRAJ]))
    assert [t.messages for t in found] == [MESSAGES]
    assert [r.reason for r in rejected][1:] == [
        "the conversation is empty",
        "turn 2: an assistant turn has no loss flag; mark all or none",
    ]


OWN = """
from atlas_ray.trajectories.formats.protocol import DataFormat
from atlas_ray.types import Message

def messages(row):
    turns = [(Message("user", seen), Message("assistant", done, True)) for seen, done in row["log"]]
    return [message for pair in turns for message in pair]

FORMAT = DataFormat(
    recognises=lambda row: "log" in row,
    messages=messages,
    task=lambda row: ("maze", f"maze_{row['task']}"),
    reward=lambda row: row["score"] / 10,
)
NOT_ONE = 3
"""
LOG = {"task": 7, "score": 5, "log": [["Goal at 1, 1.", "Action: up"]]}


def test_a_format_of_another_module_reads_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "row_logs.py").write_text(OWN)
    (tmp_path / "broken_logs.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "row_logs", raising=False)
    path = write(tmp_path / "a.jsonl", [LOG, LOG | {"score": 11}, LOG | {"score": None}, {"log": []}, 3])
    [found], rejected = read(path, format="row_logs:FORMAT")
    messages = (Message("user", "Goal at 1, 1."), Message("assistant", "Action: up", True))
    assert found == Trajectory("maze/maze_7", "maze", "maze_7", messages, 0.5)
    assert [r.reason.partition(":")[0] for r in rejected] == [
        "the reward 1.1 is not in [0, 1]",
        "the row does not fit its format",
        "the row does not fit its format",
        "the row is not an object but a number",
    ]
    for name, words in {
        "row_logs:NOT_ONE": "row_logs has no data format NOT_ONE",
        "row_log:FORMAT": "cannot import row_log",
        "broken_logs:FORMAT": "cannot import broken_logs .* division by zero",
        ":FORMAT": "cannot import",
        "opnai": "no data format is called 'opnai'",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            read(path, format=name)
        assert caught.value.remedy
    assert "openai" in caught.value.remedy


def test_a_format_of_an_installed_package_is_known_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_logs.py").write_text(OWN)
    (tmp_path / "theirs-1.dist-info").mkdir()
    (tmp_path / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    (tmp_path / "theirs-1.dist-info" / "entry_points.txt").write_text("[atlas_ray.formats]\nlogs = their_logs:FORMAT\n")
    path = write(tmp_path / "data.jsonl", [LOG])
    with pytest.raises(UserError, match="holds no trajectories: its first row has the keys task, score, log"):
        read(path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(vars(FORMATS), "_installed")  # looked up once
    monkeypatch.setattr(FORMATS, "_found", {})
    assert [t.reward for t in read(path)[0]] == [t.reward for t in read(path, format="logs")[0]] == [0.5]
