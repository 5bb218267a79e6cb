"""Replies held to a schema, votes, and what is done about replies that break the rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray.errors import UserError
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm.answer import Judgement, Problem
from atlas_ray.selection.llm.self_consistency import tally
from atlas_ray.selection.llm.structured import parse_structured, reply_schema
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.types import Category
from tests.selection.llm.test_llm_answers import ACTION, GOOD, PLAN, SEEN, SELF
from tests.support.fake_endpoint import FakeEndpoint, ask, chosen


def entry(step: Any, category: Any = "Critical Action", reason: str = "it wins") -> dict[str, Any]:
    return {"step": step, "category": category, "reason": reason}


def reply(*entries: dict[str, Any], plan: str = "walk, then win") -> str:
    return json.dumps({"plan": plan, "steps": list(entries)})


def test_the_schema_holds_budget_steps_and_categories() -> None:
    schema = reply_schema(10, 2)
    allows = jsonschema.Draft202012Validator(schema).is_valid
    assert allows(json.loads(reply(entry(10), entry(1))))
    for bad in (
        reply(),
        reply(entry(1), entry(2), entry(3)),
        reply(entry(0)),
        reply(entry(11)),
        reply(entry("3")),
        reply(entry(3, "Important")),
        json.dumps({"steps": [entry(1)]}),
    ):
        assert not allows(json.loads(bad)), bad
    assert "maxLength" not in json.dumps(schema)


@given(st.integers(1, 12), st.integers(200, 4096))
def test_bounded_texts_end_before_the_reply_is_cut_off(k: int, max_tokens: int) -> None:
    longest = reply_schema(30, k, max_tokens)["properties"]["plan"]["maxLength"]
    text = "x" * longest
    whole = reply(*[entry(30, "Critical Observation", text)] * k, plan=text)
    assert longest == 20 or len(whole) <= 2 * max_tokens + 60 * (k + 1)


def test_a_structured_reply_reads_like_the_text_form() -> None:
    found = parse_structured(reply(entry(7), entry(2, "Plan Creation", "it splits the way")), 10, 3)
    assert isinstance(found, Judgement)
    assert (found.steps, found.plan, found.categories) == ((7, 2), "walk, then win", {2: PLAN, 7: ACTION})
    assert found.reason == "Step 7 (Critical Action): it wins Step 2 (Plan Creation): it splits the way"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (reply(entry(0)), "step 0 does not exist: the steps are 1 to 10"),
        (reply(entry(3), entry(11)), "step 11 does not exist"),
        (reply(entry(3), entry(3)), "step 3 is given more than once"),
        (reply(entry(1), entry(2), entry(3), entry(4)), "4 steps were chosen where at most 3 are allowed"),
        (reply(), "the list of critical steps is empty"),
        (reply(entry(True)), "steps.0.step is wrong"),
        (reply(entry(2.0)), "steps.0.step is wrong"),
        (reply(entry("2")), "steps.0.step is wrong"),
        ('{"plan": "walk"}', "steps is wrong"),
        ('{"plan": "walk", "steps": [{"step": 3', "no JSON of the form asked for"),
        ("I am a teapot.", "is missing"),
    ],
)
def test_structured_replies_that_break_the_rules(text: str, problem: str) -> None:
    found = parse_structured(text, 10, 3)
    assert isinstance(found, Problem)
    assert problem in found.what


def test_line_breaks_within_the_strings_of_a_structured_reply_are_read() -> None:
    found = parse_structured(reply(entry(2, reason="it splits\nthe way")).replace("\\n", "\n"), 10, 3)
    assert isinstance(found, Judgement)
    assert (found.steps, found.reason) == ((2,), "Step 2 (Critical Action): it splits the way")


def test_what_can_be_saved_of_a_structured_reply() -> None:
    many = parse_structured(reply(*(entry(t) for t in (9, 1, 4, 1))), 10, 2)
    assert isinstance(many, Problem)
    assert many.judgement is not None
    assert many.judgement.steps == (9, 1)
    twice = parse_structured(reply(entry(5, "recall"), entry(5), entry(6, "self_correction")), 10, 3)
    assert isinstance(twice, Problem)
    assert twice.judgement is not None
    assert (twice.judgement.steps, twice.judgement.categories) == ((5, 6), {6: SELF})


@pytest.mark.parametrize("wrapped", ["{}", "```json\n{}\n```", "<think>step 9?</think>\n{}", "  {}\n"])
def test_wrappings_of_json_are_taken_off(wrapped: str) -> None:
    found = parse_structured(wrapped.replace("{}", reply(entry(4))), 10, 3)
    assert isinstance(found, Judgement)
    assert found.steps == (4,)


def test_text_where_json_was_asked_for_is_read_as_text() -> None:
    found = parse_structured(GOOD, 10, 3)
    assert isinstance(found, Judgement)
    assert found.steps == (7, 2)


@given(st.one_of(st.text(), st.text().map(lambda t: "{" + t), st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["plan", "steps", "step", "category"]), inner),
).map(json.dumps)))  # fmt: skip
def test_any_reply_gives_steps_in_range_or_a_problem(text: str) -> None:
    found = parse_structured(text, 10, 3)
    judgement = found if isinstance(found, Judgement) else found.judgement
    if judgement is not None:
        assert 1 <= len(judgement.steps) == len(set(judgement.steps)) <= 3
        assert all(1 <= t <= 10 for t in judgement.steps)


def test_votes_keep_the_steps_that_most_replies_name() -> None:
    votes = [
        Judgement((2, 5), "a", "first", {2: PLAN, 5: SEEN}),
        Judgement((5, 7), "b", "second", {5: ACTION, 7: SELF}),
        Judgement((5, 2, 9), "c", "third", {5: ACTION, 2: PLAN}),
    ]
    found, scores = tally(votes, 9, 2)
    assert found == Judgement((5, 2), "a", "first", {2: PLAN, 5: ACTION})  # "a" shares both, and comes before "c"
    assert scores == (0, 2 / 3, 0, 0, 1, 0, 1 / 3, 0, 1 / 3)


def test_ties_of_votes_go_to_the_earlier_rank_then_to_the_earlier_step() -> None:
    ranked, _ = tally([Judgement((8, 3)), Judgement((1, 6))], 9, 2)
    assert ranked.steps == (1, 8)
    level, _ = tally([Judgement((8,)), Judgement((3,)), Judgement((5,))], 9, 2)
    assert level.steps == (3, 5)


def test_known_models_are_held_to_a_schema(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda body, call: reply(entry(7), entry(2, "Plan Creation"))
    one = chosen(ask(tmp_path, endpoint.port, trajectories=1))["maze_0"]
    assert (one.chosen, one.categories, one.plan) == ((2, 7), {2: PLAN, 7: ACTION}, "walk, then win")
    (body,) = endpoint.calls
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["schema"] == reply_schema(10, 3)
    assert "one JSON object" in body["messages"][0]["content"]


def test_unknown_models_are_asked_for_text(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    chosen(ask(tmp_path, endpoint.port, trajectories=1, model="my-model"))
    assert "response_format" not in endpoint.calls[0]
    assert "exactly these three lines" in endpoint.calls[0]["messages"][0]["content"]


def test_an_endpoint_that_takes_no_schema_is_asked_for_text_from_then_on(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    def answer(body: dict[str, Any], call: int) -> web.Response | str:
        if "response_format" in body:
            return web.json_response({"error": {"message": "Unknown parameter: response_format"}}, status=400)
        return GOOD

    endpoint.answer = answer
    found = chosen(ask(tmp_path, endpoint.port, trajectories=5, endpoint={"concurrency": 1}))
    assert [s.error for s in found.values()] == [None] * 5
    with_schema = [("response_format" in body) for body in endpoint.calls]
    assert sum(with_schema) <= 2  # one trajectory is prepared while the first is asked
    with pytest.raises(UserError, match="takes no JSON schema"):
        chosen(ask(tmp_path / "json", endpoint.port, trajectories=1, structured="json"))


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (reply(entry(3), entry(3)), "step 3 is given more than once"),
        (reply(entry(3), plan=" "), "the high-level plan is missing"),
        (reply(entry(3), entry(4, "Important")), "no category is given for step 4"),
        ("The critical steps are: conversation[3]", "the high-level plan is missing"),
    ],
)
def test_incomplete_replies_are_repaired_and_then_taken_as_they_are(
    tmp_path: Path, endpoint: FakeEndpoint, first: str, words: str
) -> None:
    endpoint.answer = lambda body, call: reply(entry(8)) if len(body["messages"]) == 4 else first
    assert chosen(ask(tmp_path, endpoint.port, trajectories=1))["maze_0"].chosen == (8,)
    assert words in endpoint.calls[1]["messages"][3]["content"]
    endpoint.answer = lambda body, call: first
    config = ask(tmp_path / "stubborn", endpoint.port, trajectories=1)
    assert chosen(config)["maze_0"].chosen[0] == 3
    figures = select_steps(config).finished or {}
    assert figures["incomplete"] == (0 if "more than once" in words else 1)
    assert len(endpoint.calls) == 4


def test_a_prompt_that_asks_for_steps_alone_gets_no_repair(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    file = tmp_path / "own.j2"
    file.write_text("Name at most {{ max_steps }} steps: {{ conversation }}")
    endpoint.answer = lambda body, call: "The critical steps are: conversation[3]"
    chosen(ask(tmp_path, endpoint.port, trajectories=2, prompt_file=str(file), model="my-model"))
    assert len(endpoint.calls) == 2


def test_a_reply_within_the_budget_goes_before_one_over_it(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    incomplete, over = reply(entry(3), plan=""), reply(*(entry(t) for t in (9, 8, 7, 6)))
    endpoint.answer = lambda body, call: over if len(body["messages"]) == 4 else incomplete
    assert chosen(ask(tmp_path, endpoint.port, trajectories=1))["maze_0"].chosen == (3,)


def test_each_vote_is_a_request_of_its_own(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    replies = [reply(entry(2)), reply(entry(5), entry(2)), reply(entry(9))]
    seeds = [derive_seed(0, "llm", "maze/maze_0", i) for i in range(3)]
    endpoint.answer = lambda body, call: replies[seeds.index(body["seed"])]
    one = chosen(ask(tmp_path, endpoint.port, trajectories=1, votes=3, ratio=0.2))["maze_0"]
    assert one.chosen == (2, 5)
    assert one.scores[1] == pytest.approx(2 / 3)
    assert one.usage.calls == 3
    assert {body["temperature"] for body in endpoint.calls} == {0.7}


def test_votes_that_cannot_be_read_abstain(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    seeds = [derive_seed(0, "llm", "maze/maze_0", i) for i in range(2)]
    endpoint.answer = lambda body, call: reply(entry(4)) if body["seed"] == seeds[1] else "I am a teapot."
    one = chosen(ask(tmp_path, endpoint.port, trajectories=1, votes=2))["maze_0"]
    assert (one.chosen, one.error) == ((4,), None)
    assert one.scores[3] == 1.0


def test_a_vote_that_never_came_fails_the_trajectory_and_is_asked_for_again(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    seeds = [derive_seed(0, "llm", "maze/maze_0", i) for i in range(2)]
    broken = web.json_response({"error": {"message": "too long"}}, status=400)
    endpoint.answer = lambda body, call: broken if body.get("seed") == seeds[0] else reply(entry(4))
    config = ask(tmp_path, endpoint.port, trajectories=1, votes=2)
    assert "no answer: HTTP 400" in (chosen(config)["maze_0"].error or "")
    endpoint.answer = lambda body, call: reply(entry(4))
    assert chosen(config)["maze_0"].chosen == (4,)
    assert len([body for body in endpoint.calls if "seed" in body]) == 3  # the vote that came is not asked for again


@pytest.mark.usefixtures("ray_cluster")
def test_a_new_parser_reads_paid_replies_anew_at_no_cost(
    tmp_path: Path, endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ask(tmp_path, endpoint.port)
    folder = select_steps(config)

    def read_otherwise() -> None:
        held = folder.read(SELECTIONS)
        folder.write_shard(SELECTIONS, [replace(s, chosen=(1,), categories={1: Category.PLAN_CREATION}) for s in held])

    def found() -> set[tuple[int, ...]]:
        return {s.chosen for s in select_steps(config).read(SELECTIONS)}

    assert found() == {(2, 7)}
    read_otherwise()
    assert found() == {(1,)}  # as if by the present parser: left alone
    monkeypatch.setattr("atlas_ray.selection.llm.stage.PARSER_VERSION", 99)
    assert found() == {(2, 7)}
    assert len(endpoint.calls) == 4
    read_otherwise()
    assert found() == {(1,)}
