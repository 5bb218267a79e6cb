"""128 episodes at once on servers with the manners of AgentGym's: none lost, none mixed up, no id made in vain."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.environments import client, registry
from atlas_ray.environments.http import client_pool, server
from atlas_ray.environments.http.probe import probe
from atlas_ray.environments.http.requests import Busy, Fault, Unreachable
from atlas_ray.errors import EnvironmentFailure
from atlas_ray.types import Episode, StopReason, Task
from tests.support.agentgym import TASKS, AgentGym
from tests.support.episodes import episode, winning
from tests.support.serving import remote, running

AT_ONCE = 128


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0.02)


async def play(name: str, url: str, episodes: int = AT_ONCE) -> list[Episode]:
    """Episodes of a winning policy, `AT_ONCE` at a time, each in a session of its own."""
    seats = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Episode:
        async with seats, remote(name, url, timeout_s=60.0) as session:
            return await episode(session, winning(name), number % TASKS, sample=number // TASKS)

    return await asyncio.gather(*map(one, range(episodes)))


def none_lost_or_mixed(name: str, played: list[Episode]) -> None:
    """Every episode was won, and every answer is about its own task."""
    assert {one.stop_reason: one.error for one in played} == {StopReason.DONE: None}
    assert all(one.success for one in played)
    assert len({one.id for one in played}) == len(played)
    for one in played:
        index = one.item_id.rsplit("_", 1)[1]
        told = [m.content for m in one.messages if m.role == "user"][3:]
        assert sum(f"task {index}," in text for text in told) >= 3, (one.item_id, told)


def asked(*gyms: AgentGym) -> Counter[str]:
    return Counter(endpoint for gym in gyms for endpoint, _ in gym.log)


def out_of_order(gym: AgentGym) -> web.Application:
    """Makes environments in threads: the later ones may be ready first."""
    app, rng = gym.app(), random.Random(1)

    @web.middleware
    async def slowly(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        answer = await handler(request)
        if request.path.endswith("/create"):
            await asyncio.sleep(rng.random() / 5)
        return answer

    app.middlewares.append(slowly)
    return app


@pytest.mark.parametrize("name", ["sciworld", "weather", "webshop"])
async def test_ids_out_of_order_are_not_taken_for_a_restart(name: str) -> None:
    gym = AgentGym(name)
    async with running(out_of_order(gym)) as url:
        none_lost_or_mixed(name, await play(name, url))
    counts = asked(gym)
    assert counts["create"] <= AT_ONCE * 1.01
    assert counts["reset"] == AT_ONCE


async def test_an_id_issued_twice_is_used_by_one_episode() -> None:
    """AgentGym's sciworld reads the next id before it starts a Java machine, and counts on after it."""
    gym = AgentGym("sciworld")
    app, ids = gym.app(), itertools.count()
    taken = [next(ids)]

    @web.middleware
    async def race(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        if request.path != "/create":
            return await handler(request)
        gym.ids = iter([taken[0]])
        answer = await handler(request)
        await asyncio.sleep(0.01)
        taken[0] = next(ids)
        return answer

    app.middlewares.append(race)
    async with running(app) as url:
        none_lost_or_mixed("sciworld", await play("sciworld", url))
    assert asked(gym)["create"] <= 2 * AT_ONCE


def closes_after_a_crash(gym: AgentGym) -> web.Application:
    """As uvicorn after an exception that nobody handled: it answers, writes the exception down, closes the socket."""
    app = gym.app()

    @web.middleware
    async def close(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        answer = await handler(request)
        if answer.status == 500:
            await answer.prepare(request)
            await answer.write_eof()
            assert isinstance(request.transport, asyncio.Transport)
            request.transport.pause_reading()
            asyncio.get_running_loop().call_later(0.01, request.transport.close)
        return answer

    app.middlewares.append(close)
    return app


async def test_the_doctor_accepts_a_server_that_closes_sockets_after_a_crash() -> None:
    async with running(closes_after_a_crash(AgentGym("weather"))) as url:
        for _ in range(4):
            found = await probe(url, "weather")
            assert (found.ok, found.reachable, found.tasks, found.replay) == (True, "yes", "0 to 99", "exact")


async def test_closed_sockets_cost_no_episode() -> None:
    """Between its steps others ask for tasks that are not there, on the socket that it uses."""
    gym = AgentGym("weather")
    async with (
        running(closes_after_a_crash(gym)) as url,
        remote("weather", url) as session,
        remote("weather", url) as bad,
    ):
        await session.reset(Task("weather", "weather_7"))
        for reply in winning("weather"):
            with pytest.raises(EnvironmentFailure, match="HTTP 500"):
                await bad.reset(Task("weather", f"weather_{TASKS}"))
            result = await session.step(reply)
    assert result.done
    counts = asked(gym)
    assert counts["step"] == len(winning("weather"))
    assert counts["create"] == counts["reset"]  # each that is refused is asked for under an id of its own


async def test_sockets_closed_after_crashes_lose_no_episode() -> None:
    gym = AgentGym("weather")
    async with running(closes_after_a_crash(gym)) as url:
        played, *found = await asyncio.gather(play("weather", url), *(probe(url, "weather") for _ in range(4)))
    none_lost_or_mixed("weather", played)
    assert all(one.ok for one in found)
    assert asked(gym)["create"] <= AT_ONCE * 1.01 + 2 * len(found)


@asynccontextmanager
async def restarting(name: str, steps: int) -> AsyncIterator[tuple[str, list[AgentGym]]]:
    """A server whose process ends when it has played so many steps; the next counts its ids from the first on."""
    gyms, enough = [AgentGym(name)], asyncio.Event()
    app = gyms[0].app()

    @web.middleware
    async def count(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        answer = await handler(request)
        if asked(gyms[0])["step"] >= steps:
            enough.set()
        return answer

    app.middlewares.append(count)

    async def restart() -> None:
        await enough.wait()
        await first.__aexit__(None, None, None)
        gyms.append(AgentGym(name))
        await stack.enter_async_context(running(gyms[1].app(), int(url.rsplit(":", 1)[1])))

    async with contextlib.AsyncExitStack() as stack:
        first = running(app)
        url = await first.__aenter__()
        restarted = asyncio.create_task(restart())
        yield url, gyms
        await asyncio.wait_for(restarted, 10)


@pytest.mark.parametrize("name", ["weather", "textcraft", "sciworld"])
async def test_a_server_that_restarts_loses_no_episode(name: str) -> None:
    async with restarting(name, 2 * AT_ONCE) as (url, gyms):
        none_lost_or_mixed(name, await play(name, url, 2 * AT_ONCE))
    before, after = asked(gyms[0])["create"], asked(gyms[1])["create"]
    assert before <= AT_ONCE * 1.01
    assert after <= AT_ONCE * 1.01


async def test_a_refused_request_is_not_played_in_a_later_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restarted server counts from the first id on, and a step that was turned away is asked again under it."""
    told: list[str] = []
    turned_away, down = asyncio.Event(), False

    async def answer(http: object, method: str, url: str, body: object, timeout_s: float) -> object:
        endpoint = url.rsplit("/", 1)[1]
        if down:
            raise Unreachable("refused", answered=False)
        if endpoint == "step" and not turned_away.is_set():
            turned_away.set()
            raise Busy("HTTP 503")
        told.append(endpoint)
        return 0

    monkeypatch.setattr(client_pool, "request_json", answer)
    shared = client_pool.ClientPool.join()
    connection = shared.connection("http://127.0.0.1:1", registry.get("weather"), 1.0)
    lease = await connection.acquire()
    step = asyncio.create_task(connection.request(lease, "step", {}))
    await turned_away.wait()
    down = True
    with pytest.raises(Unreachable):
        await connection.acquire()
    down = False
    again = await connection.acquire()
    told.append("begins")
    assert (lease.number, again.number, lease.lost, again.lost) == (0, 0, True, False)
    assert told == ["create", "create", "step", "begins"]
    with pytest.raises(Fault, match="lost the id"):
        await step
    await shared.leave()


async def test_sessions_wait_for_a_slow_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has answered is waited for; one that never did is given up soon."""
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)
    refused, request_json = 0, client_pool.request_json
    async with contextlib.AsyncExitStack() as stack:
        first = running(AgentGym("textcraft").app())
        url = await first.__aenter__()

        async def counting(*asked: Any) -> Any:
            nonlocal refused
            try:
                return await request_json(*asked)
            except Unreachable:
                refused += 1
                if refused == 20:
                    await stack.enter_async_context(running(AgentGym("textcraft").app(), int(url.rsplit(":", 1)[1])))
                raise

        monkeypatch.setattr(client_pool, "request_json", counting)
        async with remote("textcraft", url) as session:
            go, *rest = winning("textcraft")
            await session.reset(Task("textcraft", "textcraft_7"))
            await session.step(go)
            await first.__aexit__(None, None, None)
            results = [await session.step(reply) for reply in rest]
        assert results[-1].done
        assert refused == 20
    async with remote("textcraft", "http://127.0.0.1:1") as session:
        with pytest.raises(EnvironmentFailure, match=r"127\.0\.0\.1:1"):
            await session.reset(Task("textcraft", "textcraft_7"))
    assert refused == 20 + 1 + client.RECOVERIES
