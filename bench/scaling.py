"""Simulated engines side by side, and the simulator of `docs/scaling.md` beside real runs.

    python -m bench.scaling [--runs 3]

`engines_2`, `engines_4`: turns a second of 2 and 4 sleeping engines in the real pool, against 2 and 4 times one's. An
engine decodes a token every 10 ms for each of its 64 sequences, an environment takes 20 ms; replies and episodes differ
in length. `predicted_*`: what the simulator says of a run's turns a second, against the run: sleeping engines with room
for all, sleeping engines that a queue waits for, and a tiny model on vLLM. Its costs are measured on other shapes:
CPU on one sleeping engine, decoding on vLLM with 16 and 96 episodes, the prediction for 48.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from atlas_ray.cluster.connection import connect
from atlas_ray.config import EngineConfig, RayConfig
from atlas_ray.environments.registry import get
from atlas_ray.models.engine import EngineSpec
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.recipes.simulation import Cluster, Costs, Load, rollouts
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import PolicySpec, RolloutPool
from atlas_ray.types import Task, Usage
from bench.report import Entry, write_bench
from bench.rollouts import STEP_SECONDS, SleepySession, write_model

TOKEN_SECONDS = 0.01
REPLY, TURNS, SPREAD = 40, 10, 0.5
IN_FLIGHT, WAVES = 64, 4
VLLM_TOKENS, VLLM_FEW, VLLM_RUN, VLLM_MANY = 24, 16, 48, 96


@dataclass(frozen=True)
class Sleeper:
    """An engine that only sleeps, and sleepy environments beside it."""

    sequences: int
    name: str = "sleeper"
    gpus: int = 0

    async def build(self) -> SleepingEngine:
        """In the replica."""
        from atlas_ray.rollouts import pool

        pool.open_session = lambda spec, config: SleepySession(spec)
        return SleepingEngine(self.name, self.sequences)


class SleepingEngine:
    """Decodes at a fixed rate, so many sequences at once."""

    def __init__(self, name: str, sequences: int) -> None:
        self.name, self._room = name, asyncio.Semaphore(sequences)

    def open(self, *_: Any) -> SleepingEngine:
        return self

    async def generate(self, seed: int) -> Reply:
        tokens = round(REPLY * random.Random(seed).uniform(1 - SPREAD, 1 + SPREAD))
        async with self._room:
            await asyncio.sleep(tokens * TOKEN_SECONDS)
        return Reply("Thought: so be it.\nAction: wait", Usage(completion_tokens=tokens))

    def append_reply(self, reply: str) -> None:
        pass

    def append_observation(self, observation: str) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """What a real run gave.

    Attributes:
        driver, actor: CPU seconds, of an episode and of a turn.
    """

    episodes: int
    turns: int
    tokens: int
    read: int
    seconds: float
    driver: float
    actor: float

    @property
    def rate(self) -> float:
        """Turns a second."""
        return self.turns / self.seconds


def requests(number: int, spread: float, max_tokens: int = 48) -> Iterator[EpisodeRequest]:
    """Maze episodes that differ in their length."""
    rng, n = random.Random(0), len(get("maze").tasks("test"))
    for i in range(number):
        turns = round(TURNS * rng.uniform(1 - spread, 1 + spread))
        sampling = Sampling(temperature=1.0, max_tokens=max_tokens)
        yield EpisodeRequest(Task("maze", f"maze_{i % n}"), sampling, seed=0, sample=i // n, max_rounds=turns)


def play(pool: RolloutPool, number: int, spread: float, max_tokens: int = 48) -> Run:
    """Plays so many episodes; starting the pool is left out."""
    mine, actors = psutil.Process(), [psutil.Process(seat.pid) for seat in pool._handles]

    def cpu() -> tuple[float, float]:
        return sum(mine.cpu_times()[:2]), sum(sum(actor.cpu_times()[:2]) for actor in actors)

    turns, usage = 0, Usage()
    before, begun = cpu(), time.perf_counter()
    for _, episode in pool.run(requests(number, spread, max_tokens)):
        if episode.error:
            raise SystemExit(f"{episode.id} failed: {episode.error}")
        turns, usage = turns + episode.rounds, usage + episode.usage
    seconds = time.perf_counter() - begun
    driver, actor = (b - a for a, b in zip(before, cpu(), strict=True))
    read = usage.prompt_tokens - usage.cached_tokens
    return Run(number, turns, usage.completion_tokens, read, seconds, driver / number, actor / turns)


def sleep(engines: int, sequences: int, in_flight: int) -> Run:
    """A run of sleeping engines."""
    spec: PolicySpec = Sleeper(sequences)
    with RolloutPool(spec, replicas=engines, in_flight=in_flight) as pool:
        play(pool, 8 * engines, SPREAD)
        run = play(pool, WAVES * engines * in_flight, SPREAD)
    print(f"{engines} engines, {sequences} sequences, {in_flight} in flight: {run.rate:.1f} turns/s;", end=" ")
    print(f"CPU {1000 * run.driver:.2f} ms an episode in the driver, {1000 * run.actor:.2f} ms a turn in an actor")
    return run


def scaling(runs: int) -> tuple[list[Entry], Run]:
    """1, 2 and 4 engines; a run of one comes back for its CPU costs."""
    found = [[sleep(n, IN_FLIGHT, IN_FLIGHT) for n in (1, 2, 4)] for _ in range(runs)]
    alone = [one.rate for one, _, _ in found]
    entries = [
        Entry(f"engines_{n}", [row[i].rate for row in found], [n * rate for rate in alone], "turns/s", "higher")
        for i, n in ((1, 2), (2, 4))
    ]
    for entry in entries:
        print(f"{entry.name}: {entry.ratio:.1%} scaling efficiency")
    return entries, found[0][0]


def predicted(name: str, costs: Costs, load: Load, cluster: Cluster, real: Run) -> Entry:
    """The simulator's turns a second beside a run's."""
    guess = rollouts(costs, load, cluster)
    error = guess.turns_per_second / real.rate - 1
    print(f"{name}: {guess.turns_per_second:.1f} turns/s predicted, {real.rate:.1f} measured, {error:+.1%};", end=" ")
    print(f"limit: {guess.limit}", flush=True)
    return Entry(f"predicted_{name}", [guess.turns_per_second], [real.rate], "turns/s", "higher")


def sleeping_predictions(one: Run) -> list[Entry]:
    """Two shapes of sleeping engines, from the CPU costs of one engine."""
    costs = Costs(TOKEN_SECONDS, 0.0, 0.0, one.actor, one.driver, STEP_SECONDS, 0.0, 0.0, start=0.0)
    entries = []
    for name, engines, sequences, in_flight in (("roomy", 2, 128, 128), ("queued", 4, 16, 48)):
        real = sleep(engines, sequences, in_flight)
        load = Load(real.episodes, TURNS, REPLY, 0.0, 0.0, SPREAD)
        entries.append(predicted(name, costs, load, Cluster(engines, 0, in_flight, sequences), real))
    return entries


def vllm_prediction(folder: str, runs: int) -> Entry:
    """A tiny model: decoding as measured with few and with many episodes in flight, the prediction for others."""
    config = EngineConfig(max_num_seqs=VLLM_MANY)
    shapes = {VLLM_FEW: list[Run](), VLLM_RUN: list[Run](), VLLM_MANY: list[Run]()}
    with RolloutPool(EngineSpec("tiny", folder, config), in_flight=VLLM_MANY) as pool:
        play(pool, VLLM_MANY, 0.0, VLLM_TOKENS)
        for _ in range(runs):
            for number, found in shapes.items():
                pool.load(EngineSpec("tiny", folder, config))  # empties the prefix cache
                found.append(play(pool, number, 0.0, VLLM_TOKENS))
    few, real, many = (sorted(found, key=lambda run: run.rate)[runs // 2] for found in shapes.values())
    # Seconds a step: step + step_each * sequences; reading and orchestration are within them.
    slow, fast = (run.seconds * run.episodes / run.tokens for run in (many, few))
    each = (slow - fast) / (VLLM_MANY - VLLM_FEW)
    costs = Costs(fast - VLLM_FEW * each, each, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, start=0.0)
    load = Load(VLLM_RUN, TURNS, real.tokens / real.turns, 0.0, 0.0, 0.0)
    print(f"vLLM: a step takes {1000 * costs.step:.2f} ms and {1000 * each:.3f} ms a sequence")
    return predicted("vllm", costs, load, Cluster(1, 0, VLLM_RUN, VLLM_RUN), real)


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our engine has it in its actor
    connect(RayConfig())
    entries, one = scaling(args.runs)
    entries += sleeping_predictions(one)
    with tempfile.TemporaryDirectory() as folder:
        write_model(folder)
        entries.append(vllm_prediction(folder, args.runs))
    write_bench("scaling", entries)


if __name__ == "__main__":
    main()
