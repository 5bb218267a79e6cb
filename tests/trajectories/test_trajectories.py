"""Readers, writers, checks and statistics of trajectories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.formats import environment_of, to_trajectory
from atlas_ray.trajectories.readers import Rejected, iter_trajectories, read_trajectories, write_rejected
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.trajectories.statistics import statistics, statistics_table
from atlas_ray.trajectories.writers import to_agenttraj, write_agenttraj
from atlas_ray.types import Category, GoldStep, Message, Trajectory

AGENTTRAJ: dict[str, Any] = {
    "conversations": [
        {"from": "human", "loss": None, "value": "You walk in a maze."},
        {"from": "gpt", "loss": False, "value": "OK"},
        {"from": "human", "loss": None, "value": "Goal at 1, 1."},
        {"from": "gpt", "loss": True, "value": "Thought: up\nAction: move up"},
        {"from": "human", "loss": None, "value": "Nearer."},
        {"from": "gpt", "loss": True, "value": "Action: move up"},
        {"from": "human", "loss": None, "value": "Success"},
    ],
    "item_id": "lmrlgym_maze_3",
}
MESSAGES = (
    Message("user", "You walk in a maze."),
    Message("assistant", "OK"),
    Message("user", "Goal at 1, 1."),
    Message("assistant", "Thought: up\nAction: move up", True),
    Message("user", "Nearer."),
    Message("assistant", "Action: move up", True),
    Message("user", "Success"),
)
SHAREGPT = {
    "id": "maze_3",
    "conversations": [{"from": t["from"], "value": t["value"]} for t in AGENTTRAJ["conversations"]],
}
OPENAI = {
    "item_id": "maze_3",
    "messages": [
        {"role": m.role, "content": m.content} | ({"weight": int(m.trainable)} if m.role == "assistant" else {})
        for m in MESSAGES
    ],
}


def write(path: Path, value: Any) -> str:
    """Writes JSON or JSONL, by the suffix."""
    lines = value if path.suffix == ".jsonl" else [value]
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read(path: str | Path, **options: Any) -> tuple[list[Trajectory], list[Rejected]]:
    rejected: list[Rejected] = []
    return read_trajectories(DataConfig(path=str(path), **options), rejected), rejected


def changed(position: int, **turn: Any) -> dict[str, Any]:
    """The AgentTraj-L row with one turn changed."""
    turns = [dict(t) for t in AGENTTRAJ["conversations"]]
    turns[position] |= turn
    return AGENTTRAJ | {"conversations": turns}


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
    found = to_trajectory({"item_id": "maze_1", "messages": messages}, "openai")
    assert [m.trainable for m in found.messages] == [False, is_step or flagged, False, True]


def test_a_system_turn_may_open(tmp_path):
    messages = [{"role": "system", "content": "You are an agent."}, *OPENAI["messages"]]
    [found], _ = read(write(tmp_path / "a.jsonl", [OPENAI | {"messages": messages}]))
    assert found.messages == (Message("system", "You are an agent."), *MESSAGES)
    assert len(found.steps) == 2


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
    # a file has one format
    assert [(Path(r.file).name, r.row, r.reason) for r in rejected] == [("c.jsonl", 2, "the row has no conversations")]


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
    (changed(1, **{"from": "human"}), "turn 2 is by 'user' where 'assistant' must speak"),
    (changed(4, **{"from": "robot"}), "turn 5: unknown from 'robot'"),
    (changed(4, **{"from": ["human"]}), "turn 5: unknown from ['human']"),
    (changed(4, value="  "), "turn 5 (user) is empty"),
    (changed(4, value=7), "turn 5: value is not a string but a number"),
    (changed(4, value=None), "turn 5: value is not a string but null"),
    (changed(4, value="\ud800"), "turn 5: value holds half a surrogate pair"),
    (changed(4, loss=True), "turn 5 (user) is marked for training"),
    (changed(3, loss="yes"), "turn 4: loss is neither true, false nor null but a string"),
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
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "turn 2 is a tool call"),
        ({"role": "tool", "content": "12"}, "turn 2 is a tool call"),
        ({"role": "assistant", "content": "hi", "weight": 0.5}, "turn 2: weight 0.5 is neither 0 nor 1"),
        ({"role": "assistant", "content": [{"type": "text"}]}, "turn 2: content is not a string but a list"),
    ],
)
def test_openai_rows_that_are_no_plain_text(tmp_path, turn, reason):
    row = {"item_id": "maze_1", "messages": [{"role": "user", "content": "Play."}, turn]}
    _, [entry] = read(write(tmp_path / "a.jsonl", [row]))
    assert entry.reason.startswith(reason)


def test_a_truncated_line_costs_one_row(tmp_path):
    lines = [json.dumps(AGENTTRAJ), "", json.dumps(AGENTTRAJ)[:80], "[" * 100_000, json.dumps(AGENTTRAJ)]
    path = Path(write(tmp_path / "a.jsonl", lines))
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    found, rejected = read(path)
    assert len(found) == 2
    assert [r.row for r in rejected] == [3, 4, 6]
    assert rejected[0].reason.startswith("not valid JSON: column")
    assert rejected[2].reason.startswith("unreadable: 'utf-8' codec")


def test_broken_rows_do_not_hide_the_format(tmp_path):
    empty = {"item_id": "maze_1", "conversations": []}
    found, rejected = read(write(tmp_path / "a.json", [3, empty, SHAREGPT, AGENTTRAJ]))
    assert [t.messages for t in found] == [MESSAGES]
    assert [r.reason for r in rejected][1:] == [
        "the conversation is empty",
        "turn 2: an assistant turn has no loss flag",
    ]
    _, [entry] = read(write(tmp_path / "a.json", [AGENTTRAJ]), format="sharegpt")
    assert entry.reason == "turn 2 has a loss flag, which ShareGPT has not; set `format: agenttraj`"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", json.dumps([AGENTTRAJ])[:-9], ["line 1, column", "a.json"]),
        ("a.json", '[{"a": 1},\n {]', ["line 2, column 3"]),
        ("a.json", "", ["line 1, column 1"]),
        ("a.json", '{"a": 1}', ["holds no list"]),
        ("a.json", "[" * 100_000, ["cannot read"]),
        ("a.parquet", "PAR1", ["not readable as Parquet"]),
        ("a.csv", "a,b", [".jsonl"]),
    ],
)
def test_an_unreadable_file_is_the_users_to_mend(tmp_path, name, content, words):
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


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    turns = draw(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=4))
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for n, (observation, reply, trainable) in enumerate(turns, 1):
        messages += [Message("user", observation), Message("assistant", reply, trainable or n == len(turns))]
    messages += [Message("user", draw(TEXT))] if draw(st.booleans()) else []
    n_steps = sum(m.trainable for m in messages)
    marks, ranks = st.lists(st.sampled_from(range(1, n_steps + 1)), unique=True), st.integers(1, 9)
    gold = draw(
        st.none() | marks.map(lambda m: tuple(GoldStep(s, draw(ranks), draw(st.sampled_from(Category))) for s in m))
    )
    env, item_id = draw(
        st.sampled_from(
            [("maze", "maze_1"), ("maze", "lmrlgym_maze_2"), ("alfworld", "pick_and_place-x"), ("own", "7")]
        )
    )
    reward = draw(st.none() | st.floats(0, 1))
    return Trajectory(f"{env}/{item_id}", env, item_id, tuple(messages), reward, gold)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_what_is_written_reads_back_equal(tmp_path, data):
    numbers = data.draw(st.permutations(range(1, 6)))
    found = data.draw(st.lists(trajectories(), max_size=5))
    found = [
        Trajectory(f"{t.id}#{n}" if n > 1 else t.id, t.env, t.item_id, t.messages, t.reward, t.gold)
        for t, n in zip(found, numbers, strict=False)
    ]
    write_agenttraj(tmp_path / "a.json", found)
    assert read(tmp_path / "a.json", format="agenttraj") == (found, [])


def test_the_written_form_is_agenttrajs():
    assert to_agenttraj([to_trajectory(AGENTTRAJ, "agenttraj")]) == [AGENTTRAJ]


def test_statistics():
    marked = AGENTTRAJ | {"gold": [{"step": 1, "rank": 1, "category": "Plan Creation"}]}
    trajectories = [to_trajectory(r, "agenttraj") for r in (AGENTTRAJ, marked, AGENTTRAJ | {"item_id": "todo_1"})]
    found = statistics(trajectories)
    assert list(found) == ["maze", "todo"]
    maze = found["maze"]
    assert (maze.trajectories, maze.steps, maze.mean_steps, maze.gold_fraction) == (2, 4, 2.0, 0.5)
    assert (maze.thought_words, maze.action_words, maze.observation_words) == (2, 8, 10)
    assert (maze.duplicates, maze.repeated_tasks, maze.categories[Category.PLAN_CREATION]) == (1, 1, 1)
    assert found["todo"].gold_fraction is None
    assert statistics_table(trajectories).row_count == 2
