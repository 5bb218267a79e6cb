"""What is written as AgentTraj-L reads back equal; statistics of a data set."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_ray.trajectories.formats.agenttraj import to_row
from atlas_ray.trajectories.formats.registry import FORMATS
from atlas_ray.trajectories.statistics import statistics_tables
from atlas_ray.types import Category, GoldStep, Message, Trajectory
from tests.support.rows import AGENTTRAJ, read, write_agenttraj

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
    assert to_row(FORMATS["agenttraj"].read(AGENTTRAJ)) == AGENTTRAJ


def test_the_statistics_of_each_environment():
    marked = AGENTTRAJ | {"gold": [{"step": 1, "rank": 1, "category": "Plan Creation"}]}
    rows = [AGENTTRAJ, marked, AGENTTRAJ | {"item_id": "todo_1"}]
    tables = statistics_tables([FORMATS["agenttraj"].read(row) for row in rows])
    found = [[*zip(*(column.cells for column in table.columns), strict=True)] for table in tables]
    words = ("0.5", "2.0", "2.5")  # "up", "move up" twice, "Goal at 1, 1." and "Nearer."
    assert found == [
        [("maze", "2", "4", "2.0 (2-2)", "1", "1"), ("todo", "1", "2", "2.0 (2-2)", "0", "0")],
        [("maze", *words), ("todo", *words)],
        [("maze", "50%", "1", "0", "0", "0"), ("todo", "-", "0", "0", "0", "0")],
    ]


def test_without_gold_steps_nothing_is_said_of_them():
    assert [table.title for table in statistics_tables([FORMATS["agenttraj"].read(AGENTTRAJ)])] == [
        "Trajectories",
        "Words a step",
    ]
