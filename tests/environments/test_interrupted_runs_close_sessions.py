"""Runs that are left early leave no session open on an environment's server, and lose nothing that was finished."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web

from atlas_ray.config import EngineConfig, EnvironmentsConfig, LimitsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.http import server
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import FixedSpec, RolloutPool
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import StopReason
from tests.support.agentgym import AgentGym
from tests.support.episodes import Recite, episode, winning
from tests.support.serving import remote, running, served
from tests.support.waiting import eventually

POLICY = Recite(winning("textcraft"))


class Stalling:
    """A stand-in of textcraft's server that stops answering steps after `answers` of them, and then calls `then`."""

    def __init__(self, answers: int, then: signal.Signals | None = None) -> None:
        self.gym, self.left, self.then = AgentGym("textcraft"), answers, then

    def app(self) -> web.Application:
        app = self.gym.app()

        @web.middleware
        async def stall(request: web.Request, handler: server.Handler) -> web.StreamResponse:
            if request.path != "/step":
                return await handler(request)
            self.left -= 1
            if self.left == 0 and self.then is not None:
                os.kill(os.getpid(), self.then)
            if self.left <= 0:
                await asyncio.Event().wait()
            return await handler(request)

        app.middlewares.append(stall)
        return app


def requests(n: int) -> list[EpisodeRequest]:
    return [EpisodeRequest(task, Sampling(), seed=3) for task in registry.get("textcraft").tasks("test", n)]


@pytest.mark.usefixtures("ray_cluster")
def test_a_closed_pool_closes_its_sessions() -> None:
    stalling = Stalling(30)  # eight episodes take 32 steps
    with served(stalling.app()) as url:
        servers = EnvironmentsConfig(servers={"textcraft": [url]})
        with RolloutPool(
            FixedSpec(POLICY), EngineConfig(replicas=2, episodes_in_flight=4), environments=servers
        ) as pool:
            episodes = pool.run(requests(100))
            next(episodes)
            assert eventually(lambda: stalling.left <= 0)  # and some wait for an answer that never comes
            assert stalling.gym.games
            episodes.close()
            assert eventually(lambda: not stalling.gym.games)


@pytest.mark.usefixtures("ray_cluster")
def test_an_interrupted_evaluation_closes_its_sessions_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(POLICY))
    # what runs in the background may have been started with interrupts ignored
    before_this = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before_this))
    stalling = Stalling(200, then=signal.SIGINT)

    def config(url: str) -> EvaluateConfig:
        (tmp_path / "items.json").write_text(json.dumps([{"item_id": f"textcraft_{i}"} for i in range(100)]))
        values = {"run": str(tmp_path), "models": {"arm": "m"}, "tasks": {"textcraft": 100}}
        values["items"] = {"path": str(tmp_path / "items.json")}
        settings = {"engine": {"episodes_in_flight": 16}, "environments": {"servers": {"textcraft": [url]}}}
        return validate(EvaluateConfig, values | settings)

    with served(stalling.app()) as url:
        with pytest.raises(KeyboardInterrupt):
            stage.evaluate(config(url))
        assert not stalling.gym.games
        before = {e.id: e for e in RunFolder(str(tmp_path)).child("arm").read(EPISODES)}
        assert 0 < len(before) < 100
        stalling.left = 10**6
        stage.evaluate(config(url))
        assert not stalling.gym.games
    after = {e.id: e for e in RunFolder(str(tmp_path)).child("arm").read(EPISODES)}
    assert len(after) == 100
    assert {key: after[key] for key in before} == before  # not played again: not even the seconds differ


async def test_a_cancelled_step_closes_its_id_with_the_session() -> None:
    stalling = Stalling(3)
    async with running(stalling.app()) as url:
        async with remote("textcraft", url) as session:
            found = await episode(session, winning("textcraft"), limits=LimitsConfig(turn_s=0.3))
            assert (found.stop_reason, found.error) == (StopReason.ENV_TIMEOUT, "no answer within 0.3 s")
        assert not stalling.gym.games


async def test_an_id_created_during_cancellation_is_closed() -> None:
    gym, asked, answer = AgentGym("textcraft"), asyncio.Event(), asyncio.Event()
    app = gym.app()

    @web.middleware
    async def late(request: web.Request, handler: server.Handler) -> web.StreamResponse:
        found = await handler(request)
        if request.path == "/create":
            asked.set()
            await answer.wait()
        return found

    app.middlewares.append(late)
    async with running(app) as url, remote("textcraft", url) as session:
        starting = asyncio.create_task(session.reset(registry.get("textcraft").tasks("test", 1)[0]))
        await asked.wait()
        assert len(gym.games) == 1
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        answer.set()
        await session.close()
        assert not gym.games
