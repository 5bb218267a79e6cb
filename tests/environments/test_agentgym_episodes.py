"""Every environment's row against a server that behaves as AgentGym's does: whole episodes, and the doctor."""

from __future__ import annotations

from collections import Counter

import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.http.client_pool import ClientPool
from atlas_ray.environments.http.dialects import GENERIC
from atlas_ray.environments.http.probe import probe
from atlas_ray.environments.http.requests import Fault, Refusal, request_json
from atlas_ray.types import StopReason, Task
from tests.support.agentgym import TOOLS, AgentGym
from tests.support.episodes import episode, spoken, winning
from tests.support.serving import recorded, remote, running

ROWS = [name for name in registry.ENVIRONMENTS if name != "blocksworld"]


OPENINGS = {
    "wordle": "Words: c r a n e, s o l a r.",
    "sciworld": "Task Description: 7\ntask 7, step 0",
    "alfworld": "task 7, step 0\nAVAILABLE ACTIONS: go 1,look",
} | dict.fromkeys(
    TOOLS, "Now new trial starts.\nYou should perform actions to accomplish the goal: 7\nGive me one action."
)


@pytest.mark.parametrize("name", ROWS)
async def test_whole_episodes_are_played(name: str) -> None:
    server, spec = AgentGym(name), registry.get(name)
    async with running(server.app()) as url, remote(name, url) as session:
        won = await episode(session, winning(name))
        assert (won.stop_reason, won.error) == (StopReason.DONE, None)
        assert won.success
        assert won.reward == pytest.approx(0.82 if name == "babyai" else 1.0)
        assert won.raw_reward == pytest.approx({"sciworld": 100, "babyai": 0.82}.get(name, 1.0))
        assert won.rounds == len(winning(name))
        assert won.messages[2].content == OPENINGS.get(name, "task 7, step 0")
        assert won.messages[4].content.removeprefix("Observation: ").startswith("task 7, step 1")

        lost = await episode(session, spoken(name, "look"), index=8)
        assert (lost.stop_reason, lost.error) == (StopReason.MAX_ROUNDS, None)
        assert (lost.rounds, lost.reward, lost.success) == (spec.max_rounds, 0.0, False)

        asked = Counter(endpoint for endpoint, _ in server.log)
        assert (asked["create"], asked["reset"]) == (1, 2)
        assert asked["step"] == won.rounds + lost.rounds
        steps = [body["action"] for endpoint, body in server.log if endpoint == "step"]
        assert steps[0] == (winning(name)[0] if name in TOOLS else "go 1")
        assert next(body for endpoint, body in server.log if endpoint == "reset") == {
            server.key: next(iter(server.games)),
            server.index_key: 7,
            **({"world_type": "Text"} if name == "alfworld" else {}),
        }
        await session.close()
        assert Counter(endpoint for endpoint, _ in server.log)["close"] == server.closes


@pytest.mark.parametrize("name", ROWS)
async def test_episodes_survive_a_server_that_forgot_its_ids(name: str) -> None:
    server = AgentGym(name)
    async with running(server.app()) as url, remote(name, url) as session:
        first, second, *rest = winning(name)
        await session.reset(Task(name, f"{name}_7"))
        await session.step(first)
        server.games.clear()
        results = [await session.step(reply) for reply in (second, *rest)]
        assert results[-1].done
        assert session.spec.scale(results[-1].reward) >= session.spec.success_at
        assert Counter(endpoint for endpoint, _ in server.log)["create"] == 2


@pytest.mark.parametrize("name", ROWS)
async def test_the_doctor_knows_every_dialect(name: str) -> None:
    async with running(AgentGym(name).app()) as url:
        found = await probe(url, name)
    assert (found.ok, found.reachable, found.tasks, found.replay) == (True, "yes", "0 to 99", "exact")


async def test_the_doctor_tells_order_from_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["a\nb", "x", "x", "x", "b\na", "x", "x", "x"] + ["z"] * 99)
    monkeypatch.setattr("tests.support.agentgym.Game.text", property(lambda self: next(texts)))
    async with running(AgentGym("jericho").app()) as url:
        assert (await probe(url, "jericho")).replay == "lines in another order"
    texts = iter(["a", "x", "x", "x", "a", "x", "y", "x"] + ["z"] * 99)
    async with running(AgentGym("jericho").app()) as url:
        assert (await probe(url, "jericho")).replay == "differs after 2 actions"


async def test_babyai_ends_where_it_pays_and_never_adds_up() -> None:
    """The real server leaves `done` false where the goal was reached late, and its score goes on from there."""
    server = AgentGym("babyai")
    app = server.app()
    async with running(app) as url, remote("babyai", url) as session:
        await session.reset(Task("babyai", "babyai_7"))
        for reply in spoken("babyai", "go 1", "go 2"):
            assert not (await session.step(reply)).done
        game = next(iter(server.games.values()))
        game.play = lambda action: (setattr(game, "score", game.score + 0.4), "late")[1]  # type: ignore[method-assign]
        last = await session.step(spoken("babyai", "go 3")[0])
        assert (last.reward, last.done) == (0.4, True)
        assert await session.step(spoken("babyai", "look")[0]) == last


# --- AgentGym's recorded exchanges, request by request ---


@pytest.mark.parametrize("name", ["maze", "wordle", "textcraft", "babyai", "weather"])
async def test_the_client_reads_every_recorded_answer(name: str) -> None:
    from aiohttp import web

    exchanges, position, met = recorded(name), iter(range(10**6)), Counter[str]()

    async def answer(request: web.Request) -> web.StreamResponse:
        exchange = exchanges[next(position)]
        asked, response = exchange["request"], exchange["response"]
        assert (request.method, request.path) == (asked["method"], asked["path"])
        assert {key: int(value) for key, value in request.query.items()} == asked.get("query", {})
        if "json" in asked:
            assert await request.json() == asked["json"]
        if "json" in response:
            return web.json_response(response["json"], status=response["status"])
        return web.Response(text=response["text"], status=response["status"])

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with running(app) as url:
        pool = ClientPool.join()
        try:
            for exchange in exchanges:
                asked, response = exchange["request"], exchange["response"]
                query = "&".join(f"{key}={value}" for key, value in asked.get("query", {}).items())
                address = url + asked["path"] + (f"?{query}" if query else "")
                sending = request_json(pool.http, asked["method"], address, asked.get("json"), 5.0)
                if 400 <= response["status"] < 500:
                    with pytest.raises(Refusal, match=f"HTTP {response['status']}"):
                        await sending
                    met["refusal"] += 1
                elif response["status"] == 500:
                    with pytest.raises(Fault, match="HTTP 500: Internal Server Error"):
                        await sending
                    met["crash"] += 1
                elif isinstance(response["json"], dict) and "error" in response["json"]:
                    with pytest.raises(Fault) as caught:
                        await sending
                    assert repr(response["json"]["error"]) in str(caught.value)
                    assert caught.value.answered
                    met["error"] += 1
                else:
                    assert await sending == response["json"]
                    met["answer"] += 1
        finally:
            await pool.leave()
    assert sum(met.values()) == len(exchanges)
    assert (
        met
        == {
            "maze": Counter(answer=57, error=7, refusal=2),
            "wordle": Counter(answer=14, error=2),
            "textcraft": Counter(answer=13, error=2, refusal=1),
            "babyai": Counter(answer=11, error=8),
            "weather": Counter(answer=13, crash=2, refusal=1),
        }[name]
    )


def test_every_environment_of_agentgyms_has_its_dialect() -> None:
    for name, spec in registry.ENVIRONMENTS.items():
        assert spec.name == name
        assert (spec.dialect is GENERIC) == (spec.agentgym is None), name
