"""A thousand episodes against a server that restarts and fails in many ways, on replicas of which one is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from aiohttp import web

from atlas_ray.config import validate
from atlas_ray.environments.http import server
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts import coordinator
from atlas_ray.rollouts.coordinator import LocalPlayer
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode
from tests.support.serving import served

TASKS, SAMPLES = {"textcraft": 50, "wordle": 50}, 10
REFUSED = {"textcraft": 7, "wordle": 9}  # tasks that the server never starts
FAULTS = ("500", "500 afterwards", "422", "truncated", "empty error")


class Faulty:
    """Our server, with one fault in a hundred requests; `restart` loses all its ids."""

    def __init__(self) -> None:
        self.rng, self.met, self.stack, self.port = random.Random(0), Counter[str](), ExitStack(), 0

    def start(self) -> str:
        app = server.create_app(list(TASKS))

        @web.middleware
        async def spoil(request: web.Request, handler: server.Handler) -> web.StreamResponse:
            return await self.answer(request, handler)

        app.middlewares.append(spoil)
        url = self.stack.enter_context(served(app, self.port))
        self.port = int(url.rsplit(":", 1)[1])
        return url

    def restart(self) -> None:
        self.stack.close()
        self.start()
        self.met["restart"] += 1

    async def answer(self, request: web.Request, handler: server.Handler) -> web.StreamResponse:
        *_, env, endpoint = request.path.split("/")  # the client looks for an environment at the root as well
        body = await request.json() if endpoint == "reset" else {}
        if endpoint == "reset" and REFUSED[env] == body.get("data_idx", body.get("seed")):
            self.met["refused"] += 1
            return web.json_response({"error": "no such task"})
        if endpoint not in ("reset", "step") or self.rng.random() > 0.01:
            return await handler(request)
        kind = self.rng.choice(FAULTS)
        self.met[kind] += 1
        match kind:
            case "500 afterwards":
                await handler(request)
                return web.Response(text="Internal Server Error", status=500)
            case "422":
                return web.json_response({"detail": []}, status=422)
            case "truncated":
                return web.Response(text='{"observation": "task', content_type="application/json")
            case "empty error":
                return web.json_response({"error": ""})
        return web.Response(text="Internal Server Error", status=500)


def plain(episode: Episode) -> Episode:
    return replace(episode, seconds=0.0)


async def calm() -> dict[str, Episode]:
    """The same episodes one after another in process, without server and replicas."""
    found = {}
    for env, n in TASKS.items():
        for task in get(env).tasks("test", n):
            for sample in range(SAMPLES):
                policy, session = ScriptedPolicy("novice"), LocalSession(get(env))
                one = await run_episode(policy, session, EpisodeRequest(task, Sampling(), seed=0, sample=sample))
                found[one.id] = plain(one)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_thousand_episodes_survive_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty, returned, pools = Faulty(), list[str](), list[LocalPlayer]()

    class Troubled(LocalPlayer):
        """Has the server restarted twice, and half-way one replica killed."""

        def run(
            self, requests: Iterable[EpisodeRequest | None]
        ) -> Generator[tuple[EpisodeRequest, Episode], None, None]:
            pools.append(self)
            for request, episode in super().run(requests):
                returned.append(episode.id)
                if len(returned) in (250, 750):
                    faulty.restart()
                if len(returned) == 500:
                    os.kill(self._handles[0].pid or 0, signal.SIGKILL)
                yield request, episode

    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", lambda *_, **__: FixedSpec(ScriptedPolicy("novice")))
    monkeypatch.setattr(coordinator, "LocalPlayer", Troubled)
    url = faulty.start()
    values = {
        "run": str(tmp_path),
        "models": {"arm": "m"},
        "tasks": TASKS,
        "samples": SAMPLES,
        "engine": {"replicas": 2, "episodes_in_flight": 64},
        "environments": {"servers": {env: [url] for env in TASKS}},
    }
    with faulty.stack:
        table = {result.env: result for result in stage.evaluate(validate(EvaluateConfig, values))["arm"]}

    assert pools[0].restarts == 1
    assert all(faulty.met[kind] >= 5 for kind in FAULTS), faulty.met
    assert faulty.met["restart"] == 2
    sound = asyncio.run(calm())
    assert len(returned) == len(set(returned)) == len(sound) == 1000
    assert Counter(_written(tmp_path)) == Counter(returned)
    played = {e.id: plain(e) for e in RunFolder(str(tmp_path)).child("arm").read(EPISODES)}
    assert played.keys() == sound.keys()
    failed = {key: e for key, e in played.items() if e.stop_reason.is_infrastructure}
    assert all(e == sound[key] for key, e in played.items() if key not in failed)
    for env, result in table.items():
        causes = Counter(str(e.stop_reason) for e in failed.values() if e.env == env)
        assert result.excluded == dict(causes)
        assert result.n + causes.total() == 500
        assert SAMPLES <= causes["env_error"] <= SAMPLES + 5
        assert result.flagged == (causes.total() > 10)
    refused = [e for e in failed.values() if e.item_id == f"{e.env}_{REFUSED[e.env]}"]
    assert len(refused) == 2 * SAMPLES
    assert all("no such task" in (e.error or "") for e in refused)


def _written(run: Path) -> Iterator[str]:
    for shard in (run / "arm" / "episodes").glob("*.parquet"):
        yield from pq.read_table(shard, columns=["id"])["id"].to_pylist()
