"""What a malicious model endpoint may not do: end a run, spoil its records, or have the key elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode, StopReason, Task, Usage
from tests.selection.llm.test_llm_answers import GOOD
from tests.support.endpoints import KEY, policy
from tests.support.fake_endpoint import FakeEndpoint, ask, chosen
from tests.support.serving import running


def reply(content: Any = "Action: move up", tokens: Any = 1, **more: Any) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": tokens}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(body | more)


NO_REPLIES = {
    "a list": reply(["a"]),
    "a number": reply(7),
    "an object": reply({"a": 1}),
    "deep": "[" * 10**6,
    "digits": "9" * 10**5,
    "no choices": reply(choices=None),
    "choices by name": reply(choices={"a": 1}),
    "a list for all": "[]",
    "a text for all": '"x"',
}
REPLIES = {
    "half a surrogate pair": reply("Action: \ud800"),
    "controls": reply("\x1b[2J\x00\x07\u202e"),
    "nothing": reply(None),
    "long": reply("Action: " + "x" * 10**5),
    "a wild finish": reply(choices=[{"index": 0, "message": {"content": "x"}, "finish_reason": {"x": 1}}]),
    "no tokens told": reply(tokens=None),
    "words for tokens": reply(tokens="many"),
    "too many tokens": reply(tokens=10**30),
    "infinite tokens": reply(tokens=float("inf")),
    "tokens owed": reply(tokens=-5),
}


async def episode(body: str) -> Episode:
    async with policy(lambda _: web.Response(text=body, content_type="application/json")) as model:
        session = LocalSession(registry.get("maze"))
        task = Task("maze", "maze_1")
        return await run_episode(model, session, EpisodeRequest(task, Sampling(), seed=0, max_rounds=2))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_TEST_KEY", KEY)


@pytest.mark.parametrize("name", [*NO_REPLIES, *REPLIES])
async def test_any_answer_makes_an_episode_that_can_be_kept(name: str, tmp_path: Path) -> None:
    played = await episode({**NO_REPLIES, **REPLIES}[name])
    assert played.stop_reason is (StopReason.MODEL_ERROR if name in NO_REPLIES else StopReason.MAX_ROUNDS)
    folder = RunFolder(str(tmp_path))
    folder.write_shard(EPISODES, [played])
    assert folder.read(EPISODES) == [played]


async def test_the_key_does_not_follow_a_redirect_to_another_host() -> None:
    met: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        met.append(request.headers.get("Authorization"))
        return web.Response(text=reply(), content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", elsewhere)
    async with running(app) as other:
        away = {"Location": f"{other.replace('127.0.0.1', 'localhost')}/v1/chat/completions"}
        async with policy(lambda _: web.Response(status=307, headers=away)) as model:
            session = LocalSession(registry.get("maze"))
            asked = EpisodeRequest(Task("maze", "maze_1"), Sampling(), seed=0, max_rounds=1)
            await run_episode(model, session, asked)
    assert not any(met)


@pytest.mark.parametrize("name", [*NO_REPLIES, "half a surrogate pair", "controls", "long"])
def test_a_judge_may_answer_anything(name: str, tmp_path: Path, endpoint: FakeEndpoint) -> None:
    """Each trajectory gets an error or steps within its budget, and all can be read and gone on from."""
    body = {**NO_REPLIES, **REPLIES}[name]
    endpoint.answer = lambda *_: web.Response(text=body, content_type="application/json")
    config = ask(tmp_path, endpoint.port, trajectories=3, retries=0)
    found = chosen(config)
    assert len(found) == 3
    assert all(one.error or 1 <= len(one.chosen) <= 3 for one in found.values())
    endpoint.answer = lambda *_: GOOD
    assert all(one.error is None or name not in NO_REPLIES for one in chosen(config).values())


@pytest.mark.parametrize("count", [-1, 2**40, 1.5, "1", [1], float("inf")])
def test_what_is_no_number_of_tokens_is_none_told(count: Any) -> None:
    assert Usage.reported(count, count, 7) == Usage(0, 0, 7, 1)
    assert Usage.reported(3, None, 2) == Usage(3, 0, 2, 1)
