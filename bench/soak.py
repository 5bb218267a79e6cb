"""Evaluation for many minutes while engine actors and environment servers are killed at random.

    python -m bench.soak [--minutes 30] [--every 60]

A policy that thinks for a second plays text games over HTTP, on two replicas and two servers. Every 60 s one of the
four is killed (SIGKILL); a dead server starts again at its address. Memory is what each process alone holds (USS: other
Rays on the machine change what is shared), of this one, Ray's, the replicas and the servers, every 10 s. Ends with what
became of the episodes, and how memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from atlas_ray.config import validate
from atlas_ray.environments.protocol import LocalSession
from atlas_ray.environments.table import get
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.models.scripted import ScriptedPolicy, ScriptedSpeaker
from atlas_ray.rollouts.episode import run_episode
from atlas_ray.rollouts.pool import EpisodeRequest, FixedSpec, RolloutPool
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import EPISODES
from atlas_ray.types import Episode

TASKS = {"textcraft": 50, "wordle": 50}
REPLICAS, IN_FLIGHT, SERVERS, THINK_SECONDS = 2, 32, 2, 1.0
SAMPLE_SECONDS = 10.0
PACE = 0.9  # of the undisturbed rate of episodes, beside deaths


class Thoughtful(ScriptedPolicy):
    """The scripted novice, a second a turn."""

    def open(self, *given: Any) -> ScriptedSpeaker:
        return _Slow(given[0], self.role, self.seed)


class _Slow(ScriptedSpeaker):
    async def speak(self, seed: int) -> Reply:
        await asyncio.sleep(THINK_SECONDS)
        return await super().speak(seed)


class Server:
    """One environment server in a process of its own."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        """Starts it, at its old address if it had one."""
        code = f"from atlas_ray.environments.server import serve; serve({list(TASKS)}, port={self.port})"
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])

    def kill(self) -> None:
        """Ends it without a word."""
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Sample:
    """Seconds since the start, megabytes by kind of process, episodes so far."""

    seconds: float
    megabytes: dict[str, float]
    episodes: int

    @property
    def whole(self) -> float:
        """Megabytes of all."""
        return sum(self.megabytes.values())


class Trouble:
    """Kills and watches, in a thread, until the time is up."""

    def __init__(self, servers: list[Server], minutes: float, every: float, seed: int) -> None:
        self.servers, self.minutes, self.every, self.rng = servers, minutes, every, random.Random(seed)
        self.pool: RolloutPool | None = None
        self.kills, self.samples, self.returned = Counter[str](), list[Sample](), list[str]()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        begun, number = time.monotonic(), 0
        while not self.stop.wait(SAMPLE_SECONDS):
            seconds = time.monotonic() - begun
            self.samples.append(Sample(seconds, memory(), len(self.returned)))
            if seconds // self.every > number and seconds < 60 * self.minutes:
                number = int(seconds // self.every)
                self._kill(seconds)

    def _kill(self, seconds: float) -> None:
        victim = self.rng.randrange(REPLICAS + SERVERS)
        if victim < REPLICAS:
            pid = self.pool._seats[victim].pid if self.pool else None
            if pid is None:
                return
            os.kill(pid, signal.SIGKILL)
            self.kills["replicas"] += 1
        else:
            self.servers[victim - REPLICAS].kill()
            self.servers[victim - REPLICAS].start()
            self.kills["servers"] += 1
        last = self.samples[-1]
        shares = ", ".join(f"{kind} {size:.0f}" for kind, size in sorted(last.megabytes.items()))
        print(
            f"{seconds:6.0f} s: {last.episodes} episodes, {last.whole:.0f} MB ({shares}); {dict(self.kills)}",
            flush=True,
        )


def memory() -> dict[str, float]:
    """Megabytes of this process and all below it, by kind."""
    found = defaultdict[str, float](float)
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            words = " ".join(process.cmdline())
            share = process.memory_full_info().uss / 1e6
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        name = words.split(" ", 1)[0].rsplit("/", 1)[-1]
        kind = name if name in ("raylet", "gcs_server") else "ray's agents"
        if process == me:
            kind = "driver"
        elif "environments.server" in words:
            kind = "servers"
        elif "Replica" in words:
            kind = "replicas"
        found[kind] += share
    return dict(found)


async def count_turns() -> int:
    """The novice's turns in every task once, in process and without servers."""
    turns = 0
    for env, number in TASKS.items():
        for task in get(env).tasks("test", number):
            policy, session = ScriptedPolicy("novice"), LocalSession(get(env))
            turns += (await run_episode(policy, session, task, sampling=Sampling(), seed=0)).rounds
    return turns


def growth(samples: list[Sample], end: float) -> tuple[float, float]:
    """Percent by which memory grew over the last two thirds, along a straight line, and megabytes at its beginning."""
    late = [s for s in samples if end / 3 <= s.seconds <= end]
    slope, start = statistics.linear_regression([s.seconds for s in late], [s.whole for s in late])
    first = start + slope * late[0].seconds
    return 100 * slope * (late[-1].seconds - late[0].seconds) / first, first


def main() -> None:
    """Plays, kills, counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    turns = asyncio.run(count_turns())
    samples = max(1, round(PACE * 60 * args.minutes * REPLICAS * IN_FLIGHT / (turns * THINK_SECONDS)))
    servers = [Server() for _ in range(SERVERS)]
    trouble = Trouble(servers, args.minutes, args.every, args.seed)

    class Watched(RolloutPool):
        """Tells of itself and of what returns."""

        def run(
            self, requests: Iterable[EpisodeRequest | None]
        ) -> Generator[tuple[EpisodeRequest, Episode], None, None]:
            trouble.pool = self
            trouble.thread.start()
            for request, episode in super().run(requests):
                trouble.returned.append(episode.id)
                yield request, episode

    stage.EngineSpec = lambda *_: FixedSpec(Thoughtful("novice"))  # type: ignore[assignment, misc]
    stage.RolloutPool = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "run": folder,
            "models": {"arm": "m"},
            "tasks": TASKS,
            "samples": samples,
            "engine": {"replicas": REPLICAS, "episodes_in_flight": IN_FLIGHT},
            "environments": {"servers": {env: [server.url for server in servers] for env in TASKS}},
        }
        print(f"{samples * sum(TASKS.values())} episodes, about {args.minutes:g} minutes", flush=True)
        try:
            begun = time.monotonic()
            stage.evaluate(validate(EvaluateConfig, values))
            seconds = time.monotonic() - begun
        finally:
            trouble.stop.set()
            for server in servers:
                server.kill()
        episodes = list(RunFolder(folder).child("arm").read(EPISODES))
    report(trouble, episodes, samples, seconds)


def report(trouble: Trouble, episodes: list[Episode], samples: int, seconds: float) -> None:
    """Prints what became of the episodes, and memory; writes `bench/soak.json`."""
    wanted = samples * sum(TASKS.values())
    ids, causes = {e.id for e in episodes}, Counter(str(e.stop_reason) for e in episodes)
    excluded = sum(e.stop_reason.is_infrastructure for e in episodes)
    twice = len(trouble.returned) - len(set(trouble.returned)) + len(episodes) - len(ids)
    percent, first = growth(trouble.samples, min(seconds, 60 * trouble.minutes))
    print(f"{wanted} episodes wanted, {len(ids)} recorded, {twice} twice, {excluded} excluded: {dict(causes)}")
    print(f"{seconds:.0f} s; killed: {dict(trouble.kills)}; replicas replaced: {getattr(trouble.pool, 'restarts', 0)}")
    print(f"memory grew by {percent:+.1f} % over the last two thirds, from {first:.0f} MB")
    rows = [{"seconds": s.seconds, "megabytes": s.megabytes, "episodes": s.episodes} for s in trouble.samples]
    found = {"wanted": wanted, "recorded": len(ids), "twice": twice, "excluded": excluded, "causes": causes}
    found |= {"seconds": seconds, "kills": trouble.kills, "growth_percent": percent, "samples": rows}
    Path(__file__).with_name("soak.json").write_text(json.dumps(found, indent=1) + "\n")
    if len(ids) != wanted or twice:
        raise SystemExit("episodes were lost, or played twice")


if __name__ == "__main__":
    main()
