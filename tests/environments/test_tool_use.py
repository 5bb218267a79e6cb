"""Tools by native calls beside actions as text, and thoughts, which no environment takes for an action."""

from __future__ import annotations

import json
import random

import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.builtin.tools.core import INVALID_INPUT, action_of, read_action, result_of
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import Opening, ToolUse
from atlas_ray.errors import UserError
from atlas_ray.text import split_thoughts
from atlas_ray.types import Task, ToolCall
from tests.support.simulators import ALL, BOXES, TOOLS, make_simulator


def use_of(env: str) -> ToolUse:
    found = registry.get(env).tools
    assert found is not None
    return found


@pytest.mark.parametrize("env", TOOLS)
def test_schemas_say_what_the_text_says(env: str) -> None:
    functions = {tool["function"]["name"]: tool["function"] for tool in json.loads(use_of(env).schemas)}
    assert functions.keys() == BOXES[env].tools.keys() - {"check_valid_actions"}
    for name, tool in BOXES[env].tools.items():
        if name in functions:
            assert functions[name]["description"] == tool.about
            assert functions[name]["parameters"]["properties"].keys() == tool.parameters.keys()
    arrays = [
        kind for f in functions.values() for kind in f["parameters"]["properties"].values() if "array" in kind["type"]
    ]
    assert all("items" in kind for kind in arrays)  # endpoints refuse an array without


@pytest.mark.parametrize("env", TOOLS)
def test_the_experts_calls_are_its_actions(env: str) -> None:
    simulator, use = make_simulator(env), use_of(env)
    simulator.reset(0)
    while True:
        decision = simulator.expert(random.Random(1))
        call = use.call(decision.action)
        assert json.loads(use.schemas)
        assert read_action(use.action(call)) == read_action(decision.reply) == (call.name, json.loads(call.arguments))
        if simulator.step(use.action(call)).done:
            break


@pytest.mark.parametrize(
    ("call", "read"),
    [
        (ToolCall("f", '{"x": "a\\nb",\n "y": 1}'), ("f", {"x": "a\nb", "y": 1})),
        (ToolCall("f", '{"x": '), ("f", None)),
        (ToolCall("f\nAction: g", "{}"), ("g", {})),
        (ToolCall('finish with Action Input: {"answer": 1}', "{}"), ("finish", None)),
    ],
)
def test_a_call_is_one_line_whatever_is_in_it(call: ToolCall, read: object) -> None:
    assert "\n" not in action_of(call)
    assert read_action(action_of(call)) == read


async def test_what_a_call_gets_wrong_is_told_without_the_frame_of_text() -> None:
    session, use = LocalSession(registry.get("weather")), use_of("weather")
    opening = await session.reset(Task("weather", "weather_0"))
    assert result_of(opening.observation).startswith("You should perform actions to accomplish the goal: ")
    assert "Give me one action" not in result_of(opening.observation)
    told = await session.step(use.action(ToolCall("finish", "[1]")))
    assert use.result(told.observation) == f"ERROR | {INVALID_INPUT}"


def test_an_episode_by_calls_opens_with_a_system_turn_and_the_task() -> None:
    spec = registry.get("weather")
    template = OpeningTemplate.of_tools(spec)
    shown = template.applied(spec, Opening(spec.instruction or "", "Now new trial starts.\nX\nGive me one action."))
    assert [(m.role, m.content) for m in shown.messages()] == [("system", use_of("weather").instruction), ("user", "X")]
    assert shown.tools == use_of("weather").schemas
    assert "Action Input" not in use_of("weather").instruction
    with pytest.raises(UserError, match="maze offers no tools to call"):
        OpeningTemplate.of_tools(registry.get("maze"))


THOUGHTS = {
    "before it": "<think>Action: {other}</think>\n{reply}",
    "in lines": "<think>\nMaybe.\nAction: {other}\n</think>\n\n{reply}",
    "begun by the prompt": "Maybe.\nAction: {other}\n</think>\n\n{reply}",
    "twice": "<think>Action: {other}</think>\n<thinking>Action: {other}</thinking>{reply}",
    "one in another": "<think>a<think>Action: {other}</think>Action: {other}</think>{reply}",
}


@pytest.mark.parametrize("env", ALL)
@pytest.mark.parametrize("form", THOUGHTS)
def test_no_environment_plays_what_is_thought(env: str, form: str) -> None:
    """The rule is all that stands between a reply and every simulator and server."""
    spec = registry.get(env)
    act, other = (
        ("go 1", "stop") if env not in TOOLS else (f"{name} with Action Input: {{}}" for name in ("one", "two"))
    )
    reply = f"Thought: so be it.\nAction: {act}"
    assert spec.take_action(THOUGHTS[form].format(other=other, reply=reply)) == spec.take_action(reply)
    for unfinished in (f"<think>Hm.\nAction: {other}", f"<think>Action: {other}\nObservation: you win"):
        assert spec.take_action(unfinished) == spec.take_action("")


@pytest.mark.parametrize("env", ["maze", "wordle", "textcraft", "blocksworld", *TOOLS])
async def test_a_thought_changes_nothing_in_the_world(env: str) -> None:
    session, simulator = LocalSession(registry.get(env)), make_simulator(env)
    task = registry.get(env).tasks("test", 1)[0]
    number = registry.get(env).number(task)
    simulator.reset(number)
    reply = simulator.expert(random.Random(0)).reply
    other = simulator.novice(random.Random(5)).action
    await session.reset(task)
    plain = await session.step(reply)
    await session.reset(task)
    assert await session.step(f"<think>\nPerhaps:\nAction: {other}\n</think>\n\n{reply}") == plain


def test_what_thinks_nothing_is_left_as_it_is() -> None:
    for text in ("  Action: go \n", "a < b and b > c", "I think so.", ""):
        assert split_thoughts(text) == ("", text)
    assert split_thoughts("<think>a</think>b<think>c") == ("a\nc", "b")
