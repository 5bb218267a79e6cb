"""Simulated engines side by side, and the simulator of `docs/scaling.md` beside real runs.

    python -m bench scaling [--runs 3] [--only sleeping | vllm]

`engines_2`, `engines_4`: turns a second of 2 and 4 sleeping engines in the real pool, against 2 and 4 times one's;
`coordinators_2`: of 4 engines under two coordinators. The floor: without any overhead. An engine decodes a token every
10 ms for each of its 64 sequences, an environment takes 20 ms; replies and episodes differ in length. `predicted_*`:
what the simulator says of a run's turns a second, against the run: sleeping engines with room for all, sleeping engines
that a queue waits for, those of two coordinators, and a tiny model on vLLM. Its costs are measured on other shapes: CPU
on one sleeping engine and under two coordinators, decoding on vLLM with 16 and 96 episodes, the prediction for 48.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from atlas_ray.cluster.connection import connect
from atlas_ray.config import EngineConfig, EnvironmentsConfig, LimitsConfig, RayConfig
from atlas_ray.environments.registry import get
from atlas_ray.models.engine import EngineSpec
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.coordinator import EpisodePlayer, player_of
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import PolicySpec
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import Task, Usage
from bench.rollouts import STEP_SECONDS, SleepySession, write_model
from bench.simulation import Cluster, Costs, Load, rollouts
from bench.table import Entry, parse, write_bench

TOKEN_SECONDS = 0.01
REPLY, TURNS, SPREAD = 40, 10, 0.5
IN_FLIGHT = 64
VLLM_TOKENS, VLLM_FEW, VLLM_RUN, VLLM_MANY = 24, 16, 48, 96
IDEAL = IN_FLIGHT / (REPLY * TOKEN_SECONDS + STEP_SECONDS)  # turns a second of one engine


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

    def append(self, message: Any) -> None:
        pass


@dataclass(frozen=True)
class Run:
    """What a real run gave.

    Attributes:
        driver, coordinator: CPU seconds of an episode; the driver's are the coordinator's where it is alone.
        actor: CPU seconds of a turn.
    """

    episodes: int
    turns: int
    tokens: int
    read: int
    seconds: float
    driver: float
    coordinator: float
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


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def play(player: EpisodePlayer, number: int, spread: float, max_tokens: int = 48) -> Run:
    """Plays so many episodes and writes them down; starting the engines is left out."""
    below = psutil.Process().children(recursive=True)
    coordinators, actors = (
        [process for process in below if process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{kind}")]
        for kind in ("Coordinator", "EpisodeReplica")
    )
    kinds = [[psutil.Process()], coordinators, actors]
    turns, usage = 0, Usage()
    before, begun = [_cpu(kind) for kind in kinds], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for _, episode in player.play(requests(number, spread, max_tokens), RunFolder(folder)):
            if episode.error:
                raise SystemExit(f"{episode.id} failed: {episode.error}")
            turns, usage = turns + episode.rounds, usage + episode.usage
    seconds = time.perf_counter() - begun
    driver, coordinator, actor = (_cpu(kind) - b for b, kind in zip(before, kinds, strict=True))
    read = usage.prompt_tokens - usage.cached_tokens
    if not coordinators:
        driver, coordinator = 0.0, driver
    each = (driver / number, coordinator / number, actor / turns)
    return Run(number, turns, usage.completion_tokens, read, seconds, *each)


def player(spec: PolicySpec, engines: int, in_flight: int, coordinators: int = 1) -> EpisodePlayer:
    """Engines, as an evaluation has them."""
    engine = EngineConfig(replicas=engines, episodes_in_flight=in_flight, coordinators=coordinators)
    return player_of(spec, engine, EnvironmentsConfig(), limits=LimitsConfig(), retries=0)


def sleep(engines: int, sequences: int, in_flight: int, coordinators: int, waves: int) -> Run:
    """A run of sleeping engines."""
    with player(Sleeper(sequences), engines, in_flight, coordinators) as playing:
        play(playing, 8 * engines, SPREAD)
        run = play(playing, waves * engines * in_flight, SPREAD)
    print(f"{engines} engines, {sequences} sequences, {in_flight} in flight, {coordinators} coordinating:", end=" ")
    print(f"{run.rate:.1f} turns/s; CPU {1000 * run.driver:.2f} ms an episode in the driver,", end=" ")
    print(f"{1000 * run.coordinator:.2f} in a coordinator, {1000 * run.actor:.2f} ms a turn in an actor", flush=True)
    return run


def scaling(runs: int, waves: int) -> tuple[list[Entry], Run, Run]:
    """1, 2 and 4 engines, and 4 under two coordinators; runs of one and of the last come back for their CPU costs."""
    shapes = ((1, 1), (2, 1), (4, 1), (4, 2))
    found = [[sleep(n, IN_FLIGHT, IN_FLIGHT, coordinators, waves) for n, coordinators in shapes] for _ in range(runs)]
    entries = [
        Entry(
            name,
            [row[i].rate for row in found],
            [n * row[0].rate for row in found],
            against=f"{n} times ours with one engine",
            unit="turns/s",
            floor=n * IDEAL,
        )
        for i, n, name in ((1, 2, "engines_2"), (2, 4, "engines_4"), (3, 4, "coordinators_2"))
    ]
    for entry in entries:
        print(f"{entry.name}: {entry.ratio:.1%} scaling efficiency")
    return entries, found[0][0], found[0][3]


def predicted(name: str, costs: Costs, load: Load, cluster: Cluster, real: Run) -> Entry:
    """The simulator's turns a second beside a run's."""
    guess = rollouts(costs, load, cluster)
    error = guess.turns_per_second / real.rate - 1
    print(f"{name}: {guess.turns_per_second:.1f} turns/s predicted, {real.rate:.1f} measured, {error:+.1%};", end=" ")
    print(f"limit: {guess.limit}", flush=True)
    rates = [guess.turns_per_second], [real.rate]
    return Entry(f"predicted_{name}", *rates, against="the run that was predicted", unit="turns/s")


def sleeping_predictions(one: Run, two: Run, waves: int) -> list[Entry]:
    """Shapes of sleeping engines, from the CPU costs of one engine, and of four under two coordinators."""
    costs = Costs(TOKEN_SECONDS, 0.0, 0.0, one.actor, one.coordinator, STEP_SECONDS, 0.0, 0.0, 0.0, two.driver)
    shapes = (("roomy", 2, 128, 128, 1), ("queued", 4, 16, 48, 1), ("coordinated", 4, 128, 128, 2))
    entries = []
    for name, engines, sequences, in_flight, coordinators in shapes:
        real = sleep(engines, sequences, in_flight, coordinators, waves)
        load = Load(real.episodes, TURNS, REPLY, 0.0, 0.0, SPREAD)
        cluster = Cluster(engines, 0, in_flight, sequences, coordinators=coordinators)
        entries.append(predicted(name, costs, load, cluster, real))
    return entries


def vllm_prediction(folder: str, runs: int) -> Entry:
    """A tiny model: decoding as measured with few and with many episodes in flight, the prediction for others."""
    config = EngineConfig(max_num_seqs=VLLM_MANY)
    shapes = {VLLM_FEW: list[Run](), VLLM_RUN: list[Run](), VLLM_MANY: list[Run]()}
    with player(EngineSpec("tiny", folder, config), 1, VLLM_MANY) as pool:
        play(pool, VLLM_MANY, 0.0, VLLM_TOKENS)
        for _ in range(runs):
            for number, found in shapes.items():
                pool.load(EngineSpec("tiny", folder, config))  # empties the prefix cache
                found.append(play(pool, number, 0.0, VLLM_TOKENS))
    few, real, many = (sorted(found, key=lambda run: run.rate)[runs // 2] for found in shapes.values())
    # Seconds a step: step + step_each * sequences; reading and orchestration are within them.
    slow, fast = (run.seconds * run.episodes / run.tokens for run in (many, few))
    each = (slow - fast) / (VLLM_MANY - VLLM_FEW)
    costs = Costs(fast - VLLM_FEW * each, each, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, start=0.0, driver=0.0)
    load = Load(VLLM_RUN, TURNS, real.tokens / real.turns, 0.0, 0.0, 0.0)
    print(f"vLLM: a step takes {1000 * costs.step:.2f} ms and {1000 * each:.3f} ms a sequence")
    return predicted("vllm", costs, load, Cluster(1, 0, VLLM_RUN, VLLM_RUN), real)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", choices=["sleeping", "vllm"], help="one part; both where left out")
    parser.add_argument("--waves", type=int, default=4, help="episodes that a place in flight plays in a row")
    args = parse(parser, arguments, runs=1, waves=1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our engine has it in its actor
    connect(RayConfig())
    entries: list[Entry] = []
    if args.only != "vllm":
        entries, one, two = scaling(args.runs, args.waves)
        entries += sleeping_predictions(one, two, args.waves)
    if args.only != "sleeping":
        with tempfile.TemporaryDirectory() as folder:
            write_model(folder)
            entries.append(vllm_prediction(folder, args.runs))
    write_bench("scaling", entries, args.tiny)


if __name__ == "__main__":
    main()
