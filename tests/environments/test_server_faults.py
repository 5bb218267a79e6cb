"""Many episodes against servers that fail in every known way: none lost, none counted twice, every cause counted."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter

import pytest
from aiohttp import web

from atlas_ray.environments import client, registry
from atlas_ray.environments.http import server
from atlas_ray.evaluation.metrics import summarise
from atlas_ray.types import Episode, StopReason
from tests.support.agentgym import AgentGym
from tests.support.episodes import episode, spoken, winning
from tests.support.serving import remote, running

EPISODES = 48


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_SECONDS", 0)


class Faulty:
    """Spoils a share of the requests to a stand-in, one kind of fault after another; `met` counts them."""

    def __init__(self, gym: AgentGym, share: float, kinds: tuple[str, ...]) -> None:
        self.gym, self.share, self.rng = gym, share, random.Random(gym.env)
        self.kinds, self.met = itertools.cycle(kinds), Counter[str]()

    def app(self) -> web.Application:
        app = self.gym.app()

        @web.middleware
        async def spoil(request: web.Request, handler: server.Handler) -> web.StreamResponse:
            for _ in range(self.rng.randrange(20)):  # requests overtake each other
                await asyncio.sleep(0)
            if request.path.endswith("/close") or self.rng.random() >= self.share:
                return await handler(request)
            kind = next(self.kinds)
            self.met[kind] += 1
            return await self.answer(kind, request, handler)

        app.middlewares.append(spoil)
        return app

    async def answer(self, kind: str, request: web.Request, handler: server.Handler) -> web.StreamResponse:
        match kind:
            case "restart":  # ids are lost, and count anew
                self.gym.games.clear()
                if self.gym.env != "webshop":
                    self.gym.ids = itertools.count(int(self.gym.tool))
                return await handler(request)
            case "empty error":
                return web.json_response({"error": ""})
            case "500":
                return web.Response(text="Internal Server Error", status=500)
            case "500 afterwards":
                await handler(request)
                return web.Response(text="Internal Server Error", status=500)
            case "422":
                return web.json_response({"detail": []}, status=422)
            case "truncated":
                return web.Response(text='{"observation": "task', content_type="application/json")
            case "no number":
                return web.Response(text='{"observation": "x", "state": "x", "reward": NaN, "done": false}')
            case "cut off":
                await handler(request)
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
        assert kind == "hang"
        await asyncio.Event().wait()
        raise AssertionError


async def play_many(name: str, *urls: str, timeout_s: float = 30.0) -> list[Episode]:
    """Episodes on a few sessions at once, each used again and again."""
    left = iter(range(EPISODES))

    async def work() -> list[Episode]:
        async with remote(name, *urls, timeout_s=timeout_s) as session:
            return [await episode(session, winning(name), index) for index in left]

    return [played for done in await asyncio.gather(*(work() for _ in range(8))) for played in done]


RECOVERABLE = ("restart", "empty error", "500", "500 afterwards", "truncated", "no number", "cut off")


@pytest.mark.parametrize("name", ["jericho", "sciworld", "textcraft", "movie", "webshop"])
async def test_recoverable_faults_do_not_change_episodes(name: str) -> None:
    async with running(AgentGym(name).app()) as url:
        sound = {one.id: one for one in await play_many(name, url)}
    hangs = name == "jericho"
    faulty = Faulty(AgentGym(name), 0.05, (*RECOVERABLE, "hang") if hangs else RECOVERABLE)
    async with running(faulty.app()) as url:
        played = await play_many(name, url, timeout_s=0.6 if hangs else 30.0)
    assert sum(faulty.met.values()) >= 5
    assert faulty.met["restart"] >= 1
    assert sorted(one.id for one in played) == sorted(sound)
    for one in played:
        if one.stop_reason is StopReason.DONE:
            expected = sound[one.id]
            assert (one.messages, one.raw_reward, one.rounds) == (
                expected.messages,
                expected.raw_reward,
                expected.rounds,
            )
        else:
            assert one.stop_reason.is_infrastructure
            assert one.error
    figures = summarise(played, registry.get(name), EPISODES)
    assert figures.n + sum(figures.excluded.values()) == EPISODES
    assert figures.n >= 0.9 * EPISODES


@pytest.mark.parametrize("name", ["textcraft", "babyai"])
async def test_a_server_that_restarts_again_and_again_mixes_no_episodes(name: str) -> None:
    """Its ids count anew each time, while requests about the old ones are on their way."""
    async with running(AgentGym(name).app()) as url:
        sound = {one.id: one.messages for one in await play_many(name, url)}
    faulty = Faulty(AgentGym(name), 0.02, ("restart", "500"))
    async with running(faulty.app()) as url:
        played = await play_many(name, url)
    assert faulty.met["restart"] >= 1
    assert all(one.stop_reason.is_infrastructure or one.messages == sound[one.id] for one in played)


async def test_lasting_faults_are_counted_by_cause() -> None:
    """A server that refuses some requests for good: those episodes, no others, are excluded."""
    faulty = Faulty(AgentGym("jericho"), 0.05, ("422",))
    async with running(faulty.app()) as url:
        played = await play_many("jericho", url)
    failed = [one for one in played if one.stop_reason is StopReason.ENV_ERROR]
    assert len(failed) == faulty.met["422"] > 3
    assert all("HTTP 422" in (one.error or "") for one in failed)
    assert len({one.id for one in played}) == len(played) == EPISODES
    figures = summarise(played, registry.get("jericho"), EPISODES)
    assert (figures.n, dict(figures.excluded)) == (EPISODES - len(failed), {"env_error": len(failed)})


async def test_a_replay_that_differs_is_a_mismatch_of_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    gym = AgentGym("jericho")
    async with running(gym.app()) as url, remote("jericho", url) as session:

        class Restarts:
            """Forgets everything after the first answer, and tells the task otherwise from then on."""

            spec = registry.get("jericho")

            async def reset(self, task):  # type: ignore[no-untyped-def]
                return await session.reset(task)

            async def step(self, reply):  # type: ignore[no-untyped-def]
                result = await session.step(reply)
                if gym.games:
                    gym.games.clear()
                    monkeypatch.setattr("tests.support.agentgym.Game.text", property(lambda self: "elsewhere"))
                return result

        played = await episode(Restarts(), winning("jericho"))
    assert played.stop_reason is StopReason.REPLAY_MISMATCH
    assert played.stop_reason.is_infrastructure
    assert "its replay differs" in (played.error or "")


@pytest.mark.parametrize(
    ("name", "raw", "scaled"), [("jericho", 7.0, 1.0), ("jericho", -3.0, 0.0), ("sciworld", -100.0, 0.0)]
)
async def test_a_reward_out_of_range_is_kept_and_scaled(name: str, raw: float, scaled: float) -> None:
    gym = AgentGym(name)
    async with running(gym.app()) as url, remote(name, url) as session:

        def play(game, action):  # type: ignore[no-untyped-def]
            game.reward = game.score = raw
            game.done = True
            return "over"

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.support.agentgym.Game.play", play)
            played = await episode(session, spoken(name, "go 1"))
    assert (played.stop_reason, played.raw_reward, played.reward) == (StopReason.DONE, raw, scaled)
    assert played.success == (scaled == 1.0)


async def test_no_request_is_sent_after_done() -> None:
    """textcraft carries on after the goal with `done` false and reward 0; the tools repeat the reward."""
    for name in ("textcraft", "weather"):
        gym = AgentGym(name)
        async with running(gym.app()) as url, remote(name, url) as session:
            await episode(session, winning(name))
            asked = len(gym.log)
            again = [await session.step(spoken(name, "look")[0]) for _ in range(2)]
            assert len(gym.log) == asked
            assert [(result.reward, result.done) for result in again] == [(1.0, True)] * 2


@pytest.mark.parametrize("reward", ["1" + "0" * 400, "1e999", "NaN", "true", "null", '"1"'])
async def test_a_malformed_reward_is_a_fault(reward: str) -> None:
    gym = AgentGym("jericho")
    app = gym.app()

    @web.middleware
    async def answer(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        if request.path != "/step":
            return await handler(request)
        return web.Response(text=f'{{"observation": "x", "reward": {reward}, "done": false}}')

    app.middlewares.append(answer)
    async with running(app) as url, remote("jericho", url) as session:
        played = await episode(session, spoken("jericho", "go 1"))
    assert (played.stop_reason, played.reward) == (StopReason.ENV_ERROR, 0.0)
    assert "values of the wrong kind" in (played.error or "")
