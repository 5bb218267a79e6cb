"""The client of environment servers over real HTTP on loopback: whole episodes, recorded exchanges, faults."""

from __future__ import annotations

import asyncio
import contextlib
import types
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import client, registry
from atlas_ray.environments.builtin.wordle import vocabulary_text
from atlas_ray.environments.client import HttpSession, open_session
from atlas_ray.environments.http import server
from atlas_ray.environments.http.probe import probe
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import StepResult
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import Task
from tests.support.absent import here
from tests.support.serving import BUILT_IN, expert_replies, play, recorded, remote, running


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)


@pytest.mark.parametrize("name", BUILT_IN)
async def test_remote_episodes_equal_local_ones(name):
    async with running(create_app(here(BUILT_IN))) as url, remote(name, url) as session:
        for index in range(6):
            replies = expert_replies(name, index, noise=0.0 if index % 2 else 0.3)
            assert await play(session, index, replies) == await play(LocalSession(session.spec), index, replies)


async def test_many_episodes_at_once_over_several_servers():
    async with running(create_app(["maze"])) as one, running(create_app(["maze"])) as other:

        async def episode(index: int) -> bool:
            async with remote("maze", one, other + "/maze") as session:
                replies = expert_replies("maze", index)
                return await play(session, index, replies) == await play(LocalSession(session.spec), index, replies)

        assert all(await asyncio.gather(*(episode(index) for index in range(40))))


async def test_ids_are_reused_and_closed_and_after_done_nothing_is_sent():
    seen: list[str] = []

    @web.middleware
    async def watch(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        seen.append(request.path)
        return await handler(request)

    app = create_app(["textcraft"])
    app.middlewares.append(watch)
    replies = expert_replies("textcraft", 3)
    async with running(app) as url, remote("textcraft", url) as session:
        async with remote("textcraft", url) as earlier:
            await earlier.reset(Task("textcraft", "textcraft_1"))
        for _ in range(2):
            _, results = await play(session, 3, [*replies, replies[-1]])
            assert results[-1] == results[-2]
            assert results[-1].done
        await session.close()
        assert (seen.count("/create"), seen.count("/close"), seen.count("/step")) == (2, 2, 2 * len(replies))


# --- against AgentGym's recorded exchanges ---


class Recording:
    """A server that answers from the record, exchange by exchange; it may skip some, but not go back."""

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        self._exchanges, self._at = exchanges, 0
        self.unknown: list[str] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        asked = {"method": request.method, "path": request.path}
        if request.query:
            asked["query"] = {key: int(value) for key, value in request.query.items()}
        if request.can_read_body:
            asked["json"] = await request.json()
        rest = list(range(self._at, len(self._exchanges)))
        # a look at the state may come at another time than it was recorded
        again = range(self._at) if request.method == "GET" else []
        for position in [*rest, *again]:
            if self._exchanges[position]["request"] == asked:
                self._at = max(self._at, position + 1)
                response = self._exchanges[position]["response"]
                if "json" in response:
                    return web.json_response(response["json"], status=response["status"])
                return web.Response(text=response["text"], status=response["status"])
        self.unknown.append(f"{request.method} {request.path}")
        return web.json_response({"detail": "Not Found"}, status=404)


@pytest.mark.parametrize("name", ["maze", "wordle", "textcraft", "babyai", "weather"])
async def test_the_client_plays_agentgyms_recorded_episodes(name):
    exchanges, spec = recorded(name), registry.get(name)
    recording, played = Recording(exchanges), 0
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", recording.answer)
    async with running(app) as url, remote(name, url) as session:
        done = True
        for exchange in exchanges:
            request, response = exchange["request"], exchange["response"]
            sent, answer = request.get("json", {}), response.get("json")
            endpoint = request["path"].rsplit("/", 1)[-1]
            if response["status"] != 200 or (isinstance(answer, dict) and "error" in answer):
                continue
            if endpoint == "reset":
                opening = await session.reset(Task(name, f"{name}_{sent[spec.dialect.index_key]}"))
                if name == "wordle":
                    assert opening.observation == vocabulary_text(exchanges[1]["response"]["json"])
                else:
                    assert opening.observation == (answer if name == "weather" else answer["observation"])
                done = False
            elif endpoint == "step" and not done:
                reply = sent["action"] if spec.action_rule == "whole" else f"Thought: so\nAction: {sent['action']}"
                result = await session.step(reply)
                reward = answer[spec.dialect.reward_key]
                done = answer["done"]
                assert result == StepResult(answer["observation"], reward, done)
                played += 1
    assert played >= 4
    assert recording.unknown == []


# --- faults ---

Fault = Callable[[web.Request, server.Handler], Awaitable[web.StreamResponse]]


async def empty_error(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.json_response({"error": ""})


async def crash(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.Response(text="Internal Server Error", status=500)


async def lost_answer(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    await handler(request)
    return await crash(request, handler)


async def truncated(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.Response(text='{"observation": "Goal at', content_type="application/json")


async def cut_off(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    await handler(request)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def wrong_form(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.json_response({"observation": None, "reward": "1", "done": 0})


async def not_understood(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.json_response({"detail": [{"type": "missing", "loc": ["body", "x"], "msg": "m"}]}, status=422)


async def busy(request: web.Request, handler: server.Handler) -> web.StreamResponse:
    return web.Response(text="later", status=429)


RECOVERABLE = {
    "is no JSON": truncated,
    "error ''": empty_error,
    "HTTP 500: Internal Server Error": crash,
    "HTTP 500": lost_answer,
    "ServerDisconnectedError": cut_off,
    "no answer within 0.6 s": hang,
    "values of the wrong kind": wrong_form,
    "HTTP 429: later": busy,
}


def patience(fault: Fault) -> float:
    """Seconds to wait for an answer."""
    return 0.6 if fault is hang else 30.0


def faulty(fault: Fault, at: range, endpoint: str = "step") -> web.Application:
    """An app whose requests to an endpoint, counted from 0, fail at some numbers."""
    count = iter(range(10**6))

    @web.middleware
    async def interfere(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        if request.path.endswith(f"/{endpoint}") and next(count) in at:
            return await fault(request, handler)
        return await handler(request)

    app = create_app(["maze"])
    app.middlewares.append(interfere)
    return app


@pytest.mark.parametrize("fault", RECOVERABLE.values(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("endpoint", ["create", "reset", "step"])
async def test_an_episode_survives_a_fault(fault, endpoint):
    replies = expert_replies("maze", 4)
    at = range(2, 4) if endpoint == "step" else range(2)
    async with running(faulty(fault, at, endpoint)) as url, remote("maze", url, timeout_s=patience(fault)) as session:
        assert await play(session, 4, replies) == await play(LocalSession(session.spec), 4, replies)


@pytest.mark.parametrize(("cause", "fault"), RECOVERABLE.items(), ids=lambda f: getattr(f, "__name__", ""))
async def test_a_lasting_fault_fails_the_episode_with_its_cause(cause, fault):
    async with (
        running(faulty(fault, range(1, 10**6))) as url,
        remote("maze", url, timeout_s=patience(fault)) as session,
    ):
        first, second = expert_replies("maze", 4)[:2]
        await play(session, 4, [first])
        with pytest.raises(EnvironmentFailure) as caught:
            await session.step(second)
        assert cause in str(caught.value)
        assert url in str(caught.value)
        assert "atlas doctor" in caught.value.remedy


async def test_refused_requests_are_not_retried():
    app = faulty(not_understood, range(10**6))
    async with running(app) as url, remote("maze", url) as session:
        await session.reset(Task("maze", "maze_4"))
        with pytest.raises(EnvironmentFailure, match="HTTP 422"):
            await session.step("Action: move up")
    async with running(create_app(["wordle", "textcraft"])) as url, remote("maze", url) as session:
        with pytest.raises(EnvironmentFailure, match="serves no maze"):
            await session.reset(Task("maze", "maze_4"))


async def test_episodes_resume_after_a_server_restart():
    index, replies = next((i, found) for i in range(50) if len(found := expert_replies("blocksworld", i)) > 3)
    async with contextlib.AsyncExitStack() as stack:
        async with running(create_app(["blocksworld"])) as url:
            session = await stack.enter_async_context(remote("blocksworld", url))
            opening, results = await play(session, index, replies[:2])
        with pytest.raises(EnvironmentFailure, match="ClientConnectorError"):
            await session.step(replies[2])
        await stack.enter_async_context(running(create_app(["blocksworld"]), int(url.rsplit(":", 1)[1])))
        results += [await session.step(reply) for reply in replies[2:]]
        assert (opening, results) == await play(LocalSession(session.spec), index, replies)


async def test_reissued_ids_do_not_continue_other_episodes(monkeypatch):
    # AgentGym's servers count ids from 0
    from_zero = types.SimpleNamespace(randrange=lambda _: 0)
    monkeypatch.setattr(server, "random", types.SimpleNamespace(SystemRandom=lambda: from_zero))
    replies = [expert_replies("maze", index) for index in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        async with running(create_app(["maze"])) as url:
            old = [await stack.enter_async_context(remote("maze", url)) for _ in range(2)]
            begun = [await play(s, i, replies[i][:1]) for i, s in enumerate(old)]
        await stack.enter_async_context(running(create_app(["maze"]), int(url.rsplit(":", 1)[1])))
        new = [await stack.enter_async_context(remote("maze", url)) for _ in range(2)]
        for session in new:
            await session.reset(Task("maze", "maze_2"))  # gets an id of the old ones
        for index, (session, (opening, results)) in enumerate(zip(old, begun, strict=True)):
            results += [await session.step(reply) for reply in replies[index][1:]]
            assert (opening, results) == await play(LocalSession(session.spec), index, replies[index])
        finished = [await session.step(reply) for reply in replies[2] for session in new[:1]]
        assert finished[-1].done


async def test_a_replay_that_differs_is_an_environment_failure(monkeypatch):
    app = faulty(lost_answer, range(1, 2))
    async with running(app) as url, remote("maze", url) as session:
        first, second = expert_replies("maze", 4)[:2]
        await play(session, 4, [first])
        monkeypatch.setattr(registry.get("maze").simulator, "_observe", lambda self: "another text")
        with pytest.raises(EnvironmentFailure, match="its replay differs"):
            await session.step(second)


async def test_a_dead_server_is_skipped():
    async with running(create_app(["maze"])) as gone:
        pass
    async with running(create_app(["maze"])) as url:
        for index in range(4):
            async with remote("maze", gone, url) as session:
                replies = expert_replies("maze", index)
                assert await play(session, index, replies) == await play(LocalSession(session.spec), index, replies)


async def test_a_cancelled_step_leaves_the_session_usable():
    replies = expert_replies("maze", 4)
    async with running(faulty(hang, range(1, 2))) as url, remote("maze", url, timeout_s=60) as session:
        await play(session, 4, replies[:1])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.step(replies[1]), 0.1)
        assert await play(session, 4, replies) == await play(LocalSession(session.spec), 4, replies)


# --- choosing and probing ---


@pytest.mark.usefixtures("elsewhere")
async def test_open_session():
    spec = registry.get("maze")
    assert isinstance(open_session(spec, EnvironmentsConfig()), LocalSession)
    remote_session = open_session(spec, EnvironmentsConfig(servers={"maze": ["http://127.0.0.1:1"]}))
    assert isinstance(remote_session, HttpSession)
    with pytest.raises(UserError, match=r"environments\.servers\.sciworld"):
        open_session(registry.get("sciworld"), EnvironmentsConfig())
    with pytest.raises(UserError, match="did you mean maze"):
        open_session(spec, EnvironmentsConfig(servers={"mase": ["http://127.0.0.1:1"]}))
    with pytest.raises(UserError, match="no address"):
        open_session(spec, EnvironmentsConfig(servers={"maze": ["localhost:36001"]}))
    with pytest.raises(EnvironmentFailure, match="before any reset"):
        await remote_session.step("Action: move up")
    await remote_session.close()


async def test_instructions_are_the_environments_own():
    async with running(create_app(["maze"])) as url, remote("maze", url) as session:
        assert (await session.reset(Task("maze", "maze_1"))).instruction.startswith("You walk in a maze.")


async def test_probe():
    async with running(create_app(here(BUILT_IN))) as url:
        for name in here(BUILT_IN):
            found = await probe(url, name, timeout_s=60)
            tasks = {"maze": "0 to 215", "pddl": "0 to 359", "blocksworld": "0 to 383", "babyai": "0 to 4096 at least"}
            tasks |= {
                "alfworld": "0 to 2619",
                "sciworld": "0 to 4096 at least",
                "webshop": "0 to 4096 at least",
                "jericho": "0 to 199",
            }
            tasks |= {"weather": "0 to 499"} | dict.fromkeys(("movie", "todo", "academia", "sheet"), "0 to 399")
            assert (found.ok, found.reachable, found.replay) == (True, "yes", "exact")
            assert found.tasks == tasks.get(name, "0 to 599")
    async with running(create_app(["maze", "wordle"])) as url:
        found = await probe(url, "textcraft")
        assert (found.ok, found.tasks) == (False, "no: it serves no textcraft")
    found = await probe(url, "maze")
    assert not found.ok
    assert found.reachable.startswith("no: ClientConnectorError")
    with pytest.raises(UserError):
        await probe("127.0.0.1:1", "maze")
    # an answer that differs the second time
    async with running(faulty(wrong_form, range(1))) as url:
        assert (await probe(url, "maze")).replay == "no: /step answers values of the wrong kind"
