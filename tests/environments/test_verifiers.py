"""verifiers both ways: its tasksets played here, our worlds played by its agents.

The library lives in a virtual environment of its own, made from PyPI: its dependencies shut out ours.
"""

from __future__ import annotations

import json
import os
import random

import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.foreign.tool_text import read_call, schema, tool_instruction
from atlas_ray.environments.foreign.verifiers import Place, VerifiersSession
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import StopReason, Task
from tests.support.docs_blocks import ROOT
from tests.support.episodes import Recite, play_all
from tests.support.serving import expert_replies

TASKSETS = ROOT / "tests" / "support" / "verifiers_tasksets"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_PLUGINS", "{}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TASKSETS), str(ROOT)]))
    monkeypatch.setattr(registry.ENVIRONMENTS, "_found", dict(registry.ENVIRONMENTS._found))


def registered(name: str, place: str) -> None:
    validate(EnvironmentsConfig, {"register": {name: f"verifiers:{place}"}})


def answer(index: int) -> int:
    return sum(random.Random(f"{index} {which}").randint(1, 9) for which in "ab")


@pytest.mark.slow
async def test_questions_are_asked_and_answers_rewarded_as_the_tasksets_rubric_does(verifiers_python: str) -> None:
    registered("sums", f"{verifiers_python}:atlas-sums")
    spec = registry.get("sums")
    assert (spec.n_test, spec.n_train) == (30, 30)
    replies = {index: [str(answer(index) + (index % 3 == 0))] for index in range(60)}
    once, again = await play_all("sums", replies), await play_all("sums", replies)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    assert [e.success for e in once] == [index % 3 != 0 for index in range(60)]
    assert once[0].messages[0].content == "Add."
    assert once[0].messages[2].content.endswith("?")


@pytest.mark.slow
async def test_tools_are_called_many_turns_long_and_alike_twice(verifiers_python: str) -> None:
    registered("boxes", f"{verifiers_python}:atlas-boxes")
    boxes = [random.Random(index).randint(1, 7) for index in range(40)]
    calls = [f'Thought: next\n\nAction: open_box with Action Input: {{"number": {n}}}' for n in range(1, 8)]
    replies = {index: [*calls[: boxes[index]], "It is found."] for index in range(40)}
    once, again = await play_all("boxes", replies), await play_all("boxes", replies)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    assert [e.rounds for e in once] == [box + 1 for box in boxes]
    assert [e.reward for e in once] == [pytest.approx(1 / box) for box in boxes]
    assert '"number": {"title": "Number", "type": "integer"}' in once[0].messages[0].content
    assert once[0].messages[-3].content == "Here it is."


@pytest.mark.slow
async def test_the_sessions_tools_are_schemas(verifiers_python: str) -> None:
    registered("boxes", f"{verifiers_python}:atlas-boxes")
    session = open_session(registry.get("boxes"), EnvironmentsConfig())
    assert isinstance(session, VerifiersSession)
    await session.reset(Task("boxes", "boxes_0"))
    [tool] = session.tools
    assert (tool["type"], tool["function"]["name"]) == ("function", "open_box")
    assert tool["function"]["parameters"]["required"] == ["number"]
    await session.close()


@pytest.mark.slow
async def test_a_failing_rubric_a_missing_task_and_an_episode_given_up_spoil_no_other(verifiers_python: str) -> None:
    registered("sums", f"{verifiers_python}:atlas-sums")
    session = open_session(registry.get("sums"), EnvironmentsConfig())
    await session.reset(Task("sums", "sums_1"))  # given up by the next reset
    broken, missing, fine = await play_all("sums", {2: ["break"], 999: ["1"], 3: [str(answer(3))]})
    assert (broken.stop_reason, missing.stop_reason) == (StopReason.ENV_ERROR, StopReason.ENV_ERROR)
    assert "it broke" in str(broken.error)
    assert "number 999 was asked for" in str(missing.error)
    assert fine.success
    await session.close()


@pytest.mark.slow
def test_a_judge_without_a_key_and_what_does_not_load_are_refused_by_name(verifiers_python: str) -> None:
    registered("judged", f"{verifiers_python}:atlas-sums?judged=true")
    with pytest.raises(UserError, match=r"asks a judge: .* whose key is in NO_SUCH_KEY"):
        registry.get("judged")
    registered("nowhere", f"{verifiers_python}:no-such-taskset")
    with pytest.raises(UserError, match=r"no-such-taskset does not load: .*not found"):
        registry.get("nowhere")


@pytest.mark.slow
async def test_our_textcraft_as_a_taskset_of_verifiers_gives_our_rewards(verifiers_python: str) -> None:
    registered("crafting", f"{verifiers_python}:atlas-ray?world=textcraft&split=test")
    tasks = registry.get("textcraft").tasks("test", 50)
    numbers = [registry.get("textcraft").number(task) for task in tasks]
    replies = {place: expert_replies("textcraft", number, noise=0.2) for place, number in enumerate(numbers)}
    theirs = await play_all("crafting", replies)
    ours = []
    for place, task in enumerate(tasks):
        request = EpisodeRequest(task, Sampling(), seed=0)
        ours.append(await run_episode(Recite(replies[place]), LocalSession(registry.get("textcraft")), request))
    assert [e.reward for e in theirs] == [e.reward for e in ours]
    assert 0 < sum(e.success for e in ours) <= 50
    assert [e.rounds for e in theirs] == [e.rounds for e in ours]
    assert [e.messages[4].content for e in theirs] == [e.messages[4].content.strip() for e in ours]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("gsm8k-v1", Place("gsm8k-v1")),
        ("/opt/vf/bin/python:owner/name", Place("owner/name", python="/opt/vf/bin/python")),
        ("game?game=Hangman-v0&seed=3", Place("game", (("game", "Hangman-v0"), ("seed", "3")))),
    ],
)
def test_a_place_names_a_python_an_id_and_settings(text: str, place: Place) -> None:
    assert Place.of(text) == place
    assert validate(EnvironmentsConfig, {"register": {"one": f"verifiers:{text}"}})


def test_settings_that_are_lists_or_objects_are_given_as_json() -> None:
    given = Place.of('openenv?base_url=http://a&resets=[{"seed": 1}]&n=3&odd=[x').command("play")[-1]
    assert json.loads(given) == {"base_url": "http://a", "resets": [{"seed": 1}], "n": "3", "odd": "[x"}


def test_a_python_that_lacks_verifiers_is_told_what_to_install() -> None:
    registered("one", "no-such-taskset")
    with pytest.raises(UserError, match=r"does not load: .*verifiers") as refused:
        registry.get("one")
    assert "verifiers:/path/to/python:ID" in refused.value.remedy


def test_tools_in_text_are_told_with_their_schemas_and_read_from_a_reply() -> None:
    told = tool_instruction("Find it.", [schema("open_box", "Opens\n a box.", {"type": "object"})])
    assert 'open_box {"type": "object"}: Opens a box.' in told.splitlines()
    assert read_call('Thought: so\n\nAction: open_box with Action Input: {"number": 3}') == ("open_box", {"number": 3})
    assert read_call("It is found.") is None
    assert read_call("Action: open_box with Action Input: 3") is None
