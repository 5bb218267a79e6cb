"""The five tool environments: actions as JSON, answers, data and scripted agents."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from datetime import date

import pytest

from atlas_ray.environments.builtin.tools import academia, movie, sheet, weather
from atlas_ray.environments.builtin.tools.core import FORMAT_ERROR, INVALID_INPUT, ToolError, agrees, read_action
from atlas_ray.environments.builtin.tools.grid import Sheet, State, label, position
from atlas_ray.environments.protocol import StepResult
from atlas_ray.environments.registry import get
from tests.support.simulators import BOXES, make_simulator, play


def say(name: str, **given: object) -> str:
    return f"Thought: so\nAction: {name} with Action Input: {json.dumps(given)}"


def told(result: StepResult) -> str:
    """What an action answered, without the frame."""
    return result.observation.removeprefix("Observation: ").removesuffix("\nGive me one action.")


# --- actions ---


@pytest.mark.parametrize(
    ("env", "count"), [("weather", 18), ("movie", 16), ("todo", 11), ("sheet", 20), ("academia", 7)]
)
def test_the_actions_are_as_many_as_the_papers(env: str, count: int) -> None:
    own = [name for name in BOXES[env].tools if name not in ("finish", "check_valid_actions")]
    with_common = {"movie": 2, "todo": 1, "sheet": 1}.get(env, 0)  # which of the two common ones the paper counts
    assert BOXES[env].actions == len(own) + with_common == count
    instruction = get(env).instruction or ""
    for tool in BOXES[env].tools.values():
        assert tool.line in instruction.split("\n")
        assert set(tool.schema["required"]) <= set(tool.schema["properties"]) == set(tool.parameters)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Thought: I need the date.\n\nAction: get_date with Action Input: {}", ("get_date", {})),
        ('get_tasks with Action Input: {"id": "5"}', ("get_tasks", {"id": "5"})),
        ('Thought: a. Action: f with Action Input: {"x": [1, {"y": null}]}  \n', ("f", {"x": [1, {"y": None}]})),
        ("Action: a with Action Input: {}\nAction: b with Action Input: {}", ("b", {})),
        ("Action: a with Action Input: {}\nand so on", None),
        ("Action: a", None),
        ("", None),
        ("Action: a with Action Input: [1]", ("a", None)),
        ("Action: a with Action Input: {'x': 1}", ("a", None)),
        ("Action: a with Action Input: __import__('os').getcwd()", ("a", None)),
        ('Action: a with Action Input: {"x": NaN}', ("a", None)),
        ('Action: a with Action Input: {"x": 1e999}', ("a", None)),
        ('Action: a with Action Input: {"x": ' + "9" * 5000 + "}", ("a", None)),
        ('Action: a with Action Input: {"x": ' + "[" * 9 + "]" * 9 + "}", ("a", None)),
        ('Action: a with Action Input: {"x": ' + "[" * 4000 + "]" * 4000 + "}", ("a", None)),
        ('Action: a with Action Input: {"x": "' + "y" * 10_001 + '"}', ("a", None)),
    ],
)
def test_actions_are_read_as_json_within_bounds(reply: str, read: object) -> None:
    assert read_action(reply) == read


def test_errors_are_told_in_agentgyms_form() -> None:
    simulator = make_simulator("weather")
    simulator.reset(0)
    assert simulator.step("no action here").observation == FORMAT_ERROR
    assert simulator.step(say("fly")).observation == "Observation: ERROR | Invalid action: fly.\nGive me one action."
    assert told(simulator.step("Action: finish with Action Input: {")) == f"ERROR | {INVALID_INPUT}"
    assert told(simulator.step(say("get_elevation", latitude=1))) == "ERROR | Missing parameter: longitude."
    assert "must be of type number" in told(simulator.step(say("get_elevation", latitude="x", longitude=2)))
    assert told(simulator.step(say("check_valid_actions"))).startswith(
        "You can use following valid actions: ['get_user"
    )
    ended = simulator.step(say("finish", answer="nonsense"))
    assert (told(ended), ended.reward, ended.done) == ("nonsense", 0.0, True)
    again = simulator.step(say("check_valid_actions"))
    assert (told(again), again.done) == ("ERROR | The task has finished.", True)


@pytest.mark.parametrize(
    ("given", "expected", "same"),
    [
        (18.5, 18.5, True),
        ("18.5", 18.5, True),
        (18.54, 18.5, True),
        (18.6, 18.5, False),
        ("18.5 degrees", 18.5, False),
        (True, 1, False),
        (10**400, 1, False),
        ("  the  silent Harbor ", "The Silent Harbor", True),
        ("Yes.", "yes", True),
        (["b", "A"], ["a", "b"], True),
        (["a", "a"], ["a", "b"], False),
        ("a", ["a"], True),
        (["Oslo"], "Oslo", True),
        ({"a": 1}, "Oslo", False),
        (None, "Oslo", False),
    ],
)
def test_answers(given: object, expected: object, same: bool) -> None:
    assert agrees(given, expected) is same


# --- data ---


def test_weather_follows_seasons_and_places() -> None:
    def mean(latitude: float, longitude: float, month: int) -> float:
        days = [date(2019, month, day) for day in range(1, 29)]
        return sum(weather.temperature(latitude, longitude, day)[2] for day in days) / len(days)

    oslo, sydney, singapore = (59.91, 10.75), (-33.87, 151.21), (1.35, 103.82)
    assert mean(*oslo, 7) > mean(*oslo, 1) + 10
    assert mean(*sydney, 1) > mean(*sydney, 7) + 5
    assert abs(mean(*singapore, 1) - mean(*singapore, 7)) < 4
    assert mean(*singapore, 7) > mean(*oslo, 7)
    high, low, middle = weather.temperature(*oslo, date(2020, 2, 29))
    assert low < middle < high
    assert weather.distance_km((48.86, 2.35), (51.51, -0.13)) == pytest.approx(343.9, abs=1)  # Paris to London
    assert [weather.level(index) for index in (20, 21, 60, 80.5, 101)] == [
        *("good", "fair", "moderate", "very poor", "extremely poor")
    ]


def test_weather_refuses_days_that_have_no_data() -> None:
    state = weather.State(date(2020, 5, 5), weather.cities()[0])
    at = {"latitude": 59.91, "longitude": 10.75}

    def ask(tool: str, start: str, end: str) -> object:
        return weather.TOOLBOX.call(state, tool, at | {"start_date": start, "end_date": end})

    assert ask("get_historical_temp", "2020-05-04", "2020-05-04")
    assert ask("get_rain_forecast", "2020-05-05", "2020-05-21")
    for tool, start, end in [
        ("get_historical_temp", "2020-05-04", "2020-05-05"),
        ("get_historical_temp", "2014-12-31", "2015-01-02"),
        ("get_historical_temp", "2020-05-04", "2020-05-03"),
        ("get_historical_rain", "2019-01-01", "2020-01-01"),
        ("get_rain_forecast", "2020-05-04", "2020-05-06"),
        ("get_snow_forecast", "2020-05-06", "2020-05-22"),
        ("get_historical_temp", "2020-02-30", "2020-03-01"),
        ("get_historical_temp", "٢٠٢٠-05-01", "2020-05-01"),
    ]:
        with pytest.raises(ToolError):
            ask(tool, start, end)


def test_films_and_papers_are_consistent() -> None:
    for film in movie.films():
        assert len(set(film.cast)) == len(film.cast) >= 4
        assert {job for job, _ in film.crew} == {"Director", "Producer", "Writer"}
    assert len({film.title for film in movie.films()}) == movie.N_FILMS
    known = academia.papers()
    for paper in known.values():
        assert all(known[title].year < paper.year for title in paper.cites)
        assert set(paper.authors) <= set(academia.authors())
    for name in academia.authors():
        assert all(name in academia.collaborators(other) for other in academia.collaborators(name))


@pytest.mark.parametrize(("text", "at"), [("A1", (0, 0)), ("c12", (11, 2)), ("AA3", (2, 26)), ("AD200", (199, 29))])
def test_positions(text: str, at: tuple[int, int]) -> None:
    assert position(text) == at
    assert label(*at) == text.upper()


def test_sheet_actions() -> None:
    state = State({"S": Sheet.of([["Name", "X", "Y"], ["a", 3, 10], ["b", 20, 5.5], ["c", "n/a", 7]])})

    def do(tool: str, **given: object) -> object:
        return sheet.TOOLBOX.call(state, tool, given)

    with pytest.raises(ToolError, match="open a sheet"):
        do("get_all_values")
    do("open_sheet", name="S")
    assert do("get_value_by_formula", operator="SUM", start_position="B2", end_position="B4") == "23"
    assert do("get_value_by_formula", operator="MINUS", position_list=["C2", "C3", "C4"]) == "-2.5"
    assert do("get_value_by_formula", operator="AVERAGE", start_position="C2", end_position="C4") == "7.5"
    do("sort_sheet_by_col", col_num=2, order="des")
    assert [row[0] for row in state.open.values] == ["Name", "c", "b", "a"]  # text above numbers, as the reverse of asc
    do("insert_cols", values_list=[["Z", 1]], col_idx=2)
    assert do("get_range_values", start_position="A1", end_position="C2") == [["Name", "Z", "X"], ["c", "1", "n/a"]]
    do("delete_batch_data", dimension="row", index_list=[2, 4])
    assert state.open.values == [["Name", "Z", "X", "Y"], ["b", "", "20", "5.5"]]
    do("update_range", start_position="A3", end_position="B3", values_list=[["d", "=1+1"]])
    assert do("filter_cells", query="=1+1") == ["B3"]
    do("update_note", position="A3", content="new")
    assert (do("get_note", position="A3"), do("get_note", position="A1")) == ("new", "There is no note.")
    do("merge_cells", start_position="A1", end_position="B1")
    assert do("get_cell_value", position="B1") == ""
    for tool, refused in [
        ("update_cell", {"position": "ZZ900", "value": 1}),
        ("update_cell", {"position": "A1", "value": "x" * 201}),
        ("update_cell", {"position": "A1", "value": [1]}),
        ("update_range", {"start_position": "A1", "end_position": "B2", "values_list": [[1]]}),
        ("insert_rows", {"values_list": [1], "row_idx": 1}),
        ("insert_rows", {"values_list": [["x"]] * 300, "row_idx": 1}),
        ("filter_cells", {"query": "(a+)+$", "in_row": "x"}),
        ("get_value_by_formula", {"operator": "__import__", "position_list": ["A1"]}),
        ("open_sheet", {"name": "../../etc/passwd"}),
    ]:
        with pytest.raises(ToolError):
            do(tool, **refused)


def test_a_sheet_pays_for_the_share_that_is_done() -> None:
    simulator = make_simulator("sheet")
    for index in range(100):
        simulator.reset(index)
        rewards = [simulator.step("wait").reward]
        while not (result := simulator.step(simulator.expert(random.Random("steady")).reply)).done:
            rewards.append(result.reward)
        assert rewards[0] == 0.0
        assert all(0 <= reward <= 1 for reward in rewards)
        assert result.reward == 1.0


def test_changes_are_judged_by_the_final_state() -> None:
    simulator, indices = make_simulator("todo"), itertools.count()
    while "mark" not in simulator.reset(index := next(indices)).observation:
        pass
    assert simulator.step(say("finish", answer="done")).reward == 0.0  # nothing was done
    simulator.reset(index)
    while (decision := simulator.expert(random.Random(1))).action.startswith("get_"):
        simulator.step(decision.reply)
    assert simulator.step(decision.reply).reward == 0.0  # done, but not reported
    assert simulator.step(say("finish", answer="done")).reward == 1.0


# --- agents ---


def test_two_episodes_of_one_seed_are_the_same() -> None:
    task = get("sheet").tasks("train", 1)[0]
    assert asyncio.run(play(task, "expert")) == asyncio.run(play(task, "expert"))
