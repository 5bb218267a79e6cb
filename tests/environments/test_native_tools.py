"""Other libraries' tools by native calls: what verifiers and OpenEnv are told, and what comes of an evaluation."""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.config import DataConfig, EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.foreign import openenv_servers
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.tool_session import NO_CALL, NOT_CALLED
from atlas_ray.errors import UserError
from atlas_ray.evaluation.openings import find_openings
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.protocol import Reply
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.trajectories.formats.agenttraj import to_row
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Episode, StopReason, Trajectory
from tests.support.docs_blocks import ROOT
from tests.support.episodes import calling, play_all
from tests.support.foreign import OURS, forget
from tests.support.serving import running
from tests.support.tool_formats import tool_tokenizer

SUPPORT = ROOT / "tests" / "support"
FOUND, OPEN = Reply("It is found."), "open_box"
CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
BOXES = [random.Random(index).randint(1, 7) for index in range(40)]
WANTED = [random.Random(index).randint(3, 9) for index in range(30)]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, OURS)


def registered(name: str, place: str) -> OpeningTemplate:
    """How episodes of an environment open that is played by its tools."""
    validate(EnvironmentsConfig, {"register": {name: place}})
    return OpeningTemplate.of_tools(registry.get(name))


def turns(episode: Episode) -> list[tuple[str, str]]:
    """What came back after each call, with the call's id."""
    return [(m.call_id, m.content) for m in episode.messages if m.role == "tool"]


@pytest.mark.slow
async def test_verifiers_is_told_calls_with_their_ids_and_an_answer_without_any(verifiers_python: str) -> None:
    by_calls = registered("boxes", f"verifiers:{verifiers_python}:atlas-boxes")
    replies = {
        i: [*(calling(OPEN, f"c{n}", number=n) for n in range(1, box + 1)), FOUND] for i, box in enumerate(BOXES)
    }
    once, again = await play_all("boxes", replies, opening=by_calls), await play_all("boxes", replies, opening=by_calls)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    assert [e.rounds for e in once] == [box + 1 for box in BOXES]
    assert [e.reward for e in once] == [pytest.approx(1 / box) for box in BOXES]
    for box, episode in zip(BOXES, once, strict=True):
        assert episode.messages[0].content == "The coin lies in box 1 to 7."  # the task has no system turn
        assert turns(episode) == [(f"c{n}", "Here it is." if n == box else "Higher.") for n in range(1, box + 1)]
        assert episode.messages[-1] == FOUND.message
        [tool] = json.loads(episode.tools or "")
        assert tool["function"]["parameters"]["required"] == ["number"]


@pytest.mark.slow
async def test_verifiers_plays_several_calls_of_a_reply_and_says_which_it_does_not_take(verifiers_python: str) -> None:
    by_calls = registered("boxes", f"verifiers:{verifiers_python}:atlas-boxes")
    calls = [calling(OPEN, "a", number=BOXES[0]), calling("close_box", "b"), calling(OPEN, "", number="high")]
    [found] = await play_all("boxes", {0: [Reply("All.", calls=tuple(r.calls[0] for r in calls)), FOUND]}, 1, by_calls)
    assert [id_ for id_, _ in turns(found)] == ["a", "b", ""]
    (_, right), (_, unknown), (_, invalid) = turns(found)
    assert (right, unknown) == ("Here it is.", "error: unknown tool 'close_box'")
    assert "number" in invalid
    assert (found.reward, found.rounds) == (1.0, 2)


@pytest.mark.slow
async def test_what_the_last_calls_gave_is_told_where_verifiers_ends_an_episode_by_itself(
    verifiers_python: str,
) -> None:
    by_calls = registered("boxes", f"verifiers:{verifiers_python}:atlas-boxes?until_found=true")
    opened = [[calling(OPEN, f"c{n}", number=n) for n in range(1, box + 1)] for box in BOXES[:8]]
    found = await play_all("boxes", {index: [*calls, FOUND] for index, calls in enumerate(opened)}, 8, by_calls)
    assert [(e.stop_reason, e.rounds) for e in found] == [(StopReason.DONE, box) for box in BOXES[:8]]
    assert [turns(e)[-1] for e in found] == [(f"c{box}", "Here it is.") for box in BOXES[:8]]


@pytest.mark.slow
async def test_openenvs_tools_are_called_by_native_calls(openenv_python: str) -> None:
    by_calls = registered("counting", f"openenv:{openenv_python}:counting_env")
    last = [calling("add", "b", number=n - 1 + index % 2) for index, n in enumerate(WANTED)]
    replies = {
        i: [Reply("Let me see."), calling("add", "a", number=1), Reply("", calls=(*reply.calls, *reply.calls))]
        for i, reply in enumerate(last)
    }
    once, again = await play_all("counting", replies, 4, by_calls), await play_all("counting", replies, 4, by_calls)
    assert [(e.messages, e.reward) for e in once] == [(e.messages, e.reward) for e in again]
    assert {e.stop_reason for e in once} == {StopReason.DONE}
    assert [(e.reward, e.rounds) for e in once] == [(float(index % 2 == 0), 3) for index in range(30)]
    for index, (wanted, episode) in enumerate(zip(WANTED, once, strict=True)):
        told = [f"The total is {total} of {wanted}." for total in (1, wanted + index % 2)]
        assert turns(episode) == [("a", told[0]), ("b", told[1]), ("b", NOT_CALLED)]
        assert (episode.messages[0].role, episode.messages[3].content) == ("system", NO_CALL)
    openenv_servers.end_all()


async def test_a_server_without_tools_is_refused_before_anything_is_played() -> None:
    async with running(create_app(["maze"], protocol="openenv")) as url:
        given = {"run": "nowhere", "models": {"m": "none"}, "tasks": {"labyrinth": 2}, "protocol": "tools"}
        config = EvaluateConfig.model_validate(given | {"environments": {"register": {"labyrinth": f"openenv:{url}"}}})
        with pytest.raises(UserError, match=f"labyrinth at {url} offers no tools to call"):
            await asyncio.to_thread(find_openings, config)


@pytest.mark.slow
async def test_conversations_by_calls_are_read_as_data_and_train_on_the_calls_alone(
    tmp_path: Path, verifiers_python: str, openenv_python: str
) -> None:
    boxes = registered("boxes", f"verifiers:{verifiers_python}:atlas-boxes")
    counting = registered("counting", f"openenv:{openenv_python}:counting_env")
    opened = [[thinking(calling(OPEN, f"c{n}", number=n)) for n in range(1, box + 1)] for box in BOXES[:6]]
    added = [[thinking(calling("add", number=n)) for n in (1, wanted - 1)] for wanted in WANTED[:3]]
    made = await play_all("boxes", {index: [*calls, thinking(FOUND)] for index, calls in enumerate(opened)}, 4, boxes)
    made += await play_all("counting", dict(enumerate(added)), 1, counting)
    openenv_servers.end_all()
    conversations = [to_trajectory(e) for e in made]
    (tmp_path / "calls.json").write_text(json.dumps([to_row(t) for t in conversations]))
    data = read_trajectories(DataConfig(path=str(tmp_path / "calls.json")))
    assert [(t.messages, t.tools) for t in data] == [(t.messages, t.tools) for t in conversations]
    chat = ChatFormat(tool_tokenizer("qwen3"))
    for trajectory in data:
        assert learnt(chat, trajectory) == [
            "<think>\nNext.\n</think>\n\n"
            + (m.content or CALL % (m.calls[0].name, m.calls[0].arguments))
            + "<|im_end|>"
            for m in trajectory.messages
            if m.role == "assistant"
        ]


def thinking(reply: Reply) -> Reply:
    return replace(reply, thought="Next.")


def learnt(chat: ChatFormat, trajectory: Trajectory) -> list[str]:
    """The texts that carry loss where all steps are chosen."""
    rendered = chat.render(trajectory.messages, trajectory.tools)
    return [chat.tokenizer.decode(r.ids[start:end]) for r in rendered for start, end in filter(None, r.spans)]
