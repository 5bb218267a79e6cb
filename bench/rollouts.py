"""The rollout pool beside vLLM offline, beside one episode at a time, and beside a simulator without overhead.

    python -m bench rollouts [offline | ideal] [--model FOLDER]

`offline`: multi-turn maze episodes on one engine in one pool actor, against `LLM.generate` in this process with the
same prompts and lengths, all known beforehand and no environment, both decoding as many sequences at once as there
are episodes; `offline_wide`: the rival takes 256 at once, which turns that wait for each other cannot fill;
`sequential`: the same episodes one after another. The floor is the lesser of two: a multiplication and an addition for
each weight and token at the pace of a large matrix product, and all weights read once for each token of a full batch.
A run alternates between them, prefix caches emptied before each, while the engine of the other side is idle. On
CPU a reply follows from conversation and seed alone, so that all runs generate the same tokens.
`ideal`: a policy that sleeps 0.5 s and an environment that sleeps 20 ms, so what is left is orchestration; from the
first episode's submission to the last one's return. Starting Ray and actors is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import pickle
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_ray.cluster.connection import connect
from atlas_ray.config import EngineConfig, RayConfig
from atlas_ray.environments.builtin.maze import Maze
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import StepResult
from atlas_ray.environments.registry import get
from atlas_ray.models.engine import EngineSpec, VllmPolicy
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import RolloutPool
from atlas_ray.types import Message, Task, Trajectory
from bench.peaks import bandwidth, gemm_flops
from bench.table import Entry, named, parse, write_bench

TURNS, MAX_TOKENS = 10, 48
WIDE = 256  # sequences that the wide rival decodes at once
ALONE = 8  # episodes of the one-at-a-time schedule
THINK_SECONDS, STEP_SECONDS = 0.5, 0.02
SLEEPY_TURNS, WAVES = 20, 3  # turns of an episode; episodes that one place in flight plays in a row
LIMIT_MS = 0.3  # CPU a turn

Prompt = tuple[list[int], int]


@dataclass(frozen=True, slots=True)
class RecordingSpec(EngineSpec):
    """An engine that writes down its prompts and how many tokens followed each, into `log` when it loads weights."""

    log: str = ""

    async def build(self) -> VllmPolicy:
        policy = Recorder(self)
        await policy.start()
        return policy


class Recorder(VllmPolicy):
    """See `RecordingSpec`."""

    spec: RecordingSpec

    def __init__(self, spec: RecordingSpec) -> None:
        super().__init__(spec)
        self._seen: list[Prompt] = []

    async def generate(self, ids: Sequence[int], *args: Any, **options: Any) -> Any:
        made, usage = await super().generate(ids, *args, **options)
        self._seen.append((list(ids), usage.completion_tokens))
        return made, usage

    async def load(self, spec: EngineSpec) -> None:
        Path(self.spec.log).write_bytes(pickle.dumps(self._seen))
        self._seen = []
        await super().load(spec)


def maze_words() -> list[Trajectory]:
    """What the maze's expert sees and says in 60 tasks."""
    told = []
    for index in range(60):
        simulator, rng, done = Maze(), random.Random(index), False
        told += simulator.reset(index).messages()
        while not done:
            decision = simulator.expert(rng)
            result = simulator.step(decision.action)
            told += [Message("assistant", decision.reply), Message("user", result.observation)]
            done = result.done
    return [Trajectory("maze/maze_0", "maze", "maze_0", tuple(told))]


def write_model(folder: str) -> None:
    """The quickstart's architecture, untrained, with the maze's words: few words, so that replies end by chance."""
    from atlas_ray.models.tiny import write_untrained

    write_untrained(folder, maze_words(), hidden_size=96, layers=2, heads=3, context=1024, seed=0)


def requests(number: int, turns: int) -> Iterator[EpisodeRequest]:
    """Episodes over all maze tasks."""
    n = len(get("maze").tasks("test"))
    for i in range(number):
        task = Task("maze", f"maze_{i % n}")
        sampling = Sampling(temperature=1.0, max_tokens=MAX_TOKENS)
        yield EpisodeRequest(task, sampling, seed=0, sample=i // n, max_rounds=turns)


def play(pool: RolloutPool, number: int, at_once: int) -> tuple[float, int]:
    """Seconds and generated tokens of the first episodes, so many at once."""
    todo, tokens = list(requests(number, TURNS)), 0
    begun = time.perf_counter()
    for start in range(0, number, at_once):
        for _, episode in pool.run(todo[start : start + at_once]):
            if episode.error:
                raise SystemExit(f"{episode.id} failed: {episode.error}")
            tokens += episode.usage.completion_tokens
    return time.perf_counter() - begun, tokens


class Offline:
    """The rival: vLLM in this process, with the options of our engine."""

    def __init__(self, model: str, config: EngineConfig) -> None:
        from vllm import LLM

        from atlas_ray.models.engine import _CPU_ENVIRONMENT, _ENVIRONMENT, _options

        os.environ.update(_ENVIRONMENT | _CPU_ENVIRONMENT)
        self._llm = LLM(**_options(model, config, cpu=True), disable_log_stats=True)

    def generate(self, prompts: Sequence[Prompt]) -> tuple[float, int]:
        """Seconds and tokens."""
        from vllm import SamplingParams

        self._llm.reset_prefix_cache()
        inputs: Any = [{"prompt_token_ids": ids} for ids, _ in prompts]
        params = [
            SamplingParams(temperature=1.0, max_tokens=n, min_tokens=n, ignore_eos=True, seed=i)
            for i, (_, n) in enumerate(prompts)
        ]
        begun = time.perf_counter()
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return time.perf_counter() - begun, sum(len(output.outputs[0].token_ids) for output in outputs)

    def close(self) -> None:
        """Ends the engine."""
        self._llm.llm_engine.engine_core.shutdown()


def engine_entries(model: str, runs: int, episodes: int) -> list[Entry]:
    """`offline`, `offline_wide` and `sequential`."""
    rates: dict[str, list[float]] = {name: [] for name in ("ours", "offline", "offline_wide", "together", "alone")}
    wide, config = EngineConfig(max_num_seqs=WIDE), EngineConfig(max_num_seqs=episodes)
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        spec = RecordingSpec("tiny", model, config, log=str(log))
        pool = stack.enter_context(RolloutPool(spec, EngineConfig(episodes_in_flight=episodes)))
        play(pool, episodes, episodes)
        pool.load(spec)
        prompts: list[Prompt] = pickle.loads(log.read_bytes())  # noqa: S301 (its own)
        rivals = {
            name: stack.enter_context(closing(Offline(model, one)))
            for name, one in (("offline", config), ("offline_wide", wide))
        }
        for rival in rivals.values():
            rival.generate(prompts)
        lengths = [n for _, n in prompts]
        print(f"{len(prompts)} prompts of {sum(len(ids) for ids, _ in prompts) / len(prompts):.0f} tokens,", end=" ")
        print(f"{min(lengths)} to {max(lengths)} generated, {sum(lengths)} in all")
        for run in range(runs):
            for side in ("ours", "rival") if run % 2 else ("rival", "ours"):
                if side == "rival":
                    for name, rival in rivals.items():
                        seconds, tokens = rival.generate(prompts)
                        rates[name].append(tokens / seconds)
                else:
                    pool.load(spec)
                    seconds, tokens = play(pool, episodes, episodes)
                    rates["ours"].append(tokens / seconds)
                    rates["together"].append(60 * episodes / seconds)
                assert tokens == sum(lengths)
            pool.load(spec)
            alone = min(ALONE, episodes)
            seconds, _ = play(pool, alone, 1)
            rates["alone"].append(60 * alone / seconds)
            print(
                f"run {run + 1}: " + ", ".join(f"{name} {found[-1]:,.1f}" for name, found in rates.items()), flush=True
            )
    floor = floor_of(model, episodes)
    return [
        *(
            Entry(
                name,
                rates["ours"],
                rates[name],
                against=named("vllm", f"LLM.generate of all turns at once, max_num_seqs={one.max_num_seqs}"),
                unit="generated tokens/s",
                floor=floor,
            )
            for name, one in (("offline", config), ("offline_wide", wide))
        ),
        Entry(
            "sequential",
            rates["together"],
            rates["alone"],
            against="ours, one episode at a time",
            unit="episodes/min",
        ),
    ]


def floor_of(model: str, batch: int) -> float:
    """Generated tokens a second that multiplying and reading the weights alone would allow."""
    from atlas_ray.config import DataConfig
    from atlas_ray.training.estimate import ModelShape, meta_model
    from atlas_ray.training.settings import TrainConfig

    shape = ModelShape.of(meta_model(TrainConfig(data=DataConfig(path=""), model=model)))
    weights = shape.parameters - (shape.embeddings - shape.head)  # embeddings are looked up
    return min(gemm_flops("float32") / (2 * weights), batch * bandwidth() / (4 * weights))


class Sleeper:
    """A policy that thinks for 0.5 s; its moves never lead anywhere."""

    name, gpus = "sleeper", 0

    async def build(self) -> Sleeper:
        """Itself, and sleepy environments in this process."""
        from atlas_ray.rollouts import pool

        pool.open_session = lambda spec, config: SleepySession(spec)
        return self

    def open(self, *_: Any) -> Sleeper:
        return self

    async def generate(self, seed: int) -> Reply:
        await asyncio.sleep(THINK_SECONDS)
        return Reply(f"Thought: I have seen the number {seed}.\nAction: wait")

    def append(self, message: Any) -> None:
        pass


class SleepySession(LocalSession):
    """A built-in simulator that takes 20 ms a step."""

    async def step(self, reply: str) -> StepResult:
        await asyncio.sleep(STEP_SECONDS)
        return await super().step(reply)


@dataclass(frozen=True, slots=True)
class Load:
    """One run without a model: turns a second, CPU milliseconds a turn, resident kB an episode in flight."""

    rate: float
    cpu_ms: float
    kilobytes: float


def orchestrate(in_flight: int, waves: int = WAVES) -> Load:
    """Plays `waves * in_flight` episodes, `in_flight` at once, on one actor."""
    import psutil

    with RolloutPool(Sleeper(), EngineConfig(episodes_in_flight=in_flight)) as pool:
        processes = [psutil.Process(), psutil.Process(pool._handles[0].pid)]

        def cpu() -> list[float]:
            return [sum(p.cpu_times()[:2]) for p in processes]

        def memory() -> int:
            return sum(p.memory_info().rss for p in processes)

        list(pool.run(requests(50, 2)))
        gc.collect()
        taken = turns = landed = most = 0

        def counted() -> Iterator[EpisodeRequest]:
            nonlocal taken
            for request in requests(waves * in_flight, SLEEPY_TURNS):
                taken += 1
                yield request

        empty = peak = memory()
        before, begun = cpu(), time.perf_counter()
        for _, episode in pool.run(counted()):
            if episode.error:
                raise SystemExit(f"{episode.id} failed: {episode.error}")
            most = max(most, taken - landed)
            landed, turns = landed + 1, turns + episode.rounds
            if landed % 100 == 1:
                peak = max(peak, memory())
        seconds = time.perf_counter() - begun
        spent = [1000 * (b - a) / turns for a, b in zip(before, cpu(), strict=True)]
    assert (most, turns) == (in_flight, waves * in_flight * SLEEPY_TURNS)
    load = Load(turns / seconds, sum(spent), (peak - empty) / 1024 / in_flight)
    ideal = in_flight / (THINK_SECONDS + STEP_SECONDS)
    print(f"{in_flight:,} in flight: {load.rate:,.0f} turns/s, {load.rate / ideal:.1%} of the ideal;", end=" ")
    print(f"CPU a turn {spent[0]:.3f} ms driver + {spent[1]:.3f} ms actor;", end=" ")
    print(f"{load.kilobytes:.0f} kB an episode in flight", flush=True)
    return load


def ideal_entries(runs: int, few: int, many: int) -> list[Entry]:
    """`ideal`, and what a turn and an episode cost with few and many in flight."""
    pairs = [(orchestrate(few), orchestrate(many)) for _ in range(runs)]
    ideal = few / (THINK_SECONDS + STEP_SECONDS)
    fewer = f"ours with {few:,} episodes in flight"
    return [
        Entry(
            "ideal",
            [a.rate for a, _ in pairs],
            [ideal],
            against="a simulator without any overhead",
            unit="turns/s",
            floor=ideal,
        ),
        Entry(
            f"cpu, {few:,} in flight",
            [a.cpu_ms for a, _ in pairs],
            [LIMIT_MS],
            against="limit",
            unit="CPU ms/turn",
            better="lower",
        ),
        Entry(
            f"cpu, {many:,} in flight",
            [b.cpu_ms for _, b in pairs],
            [a.cpu_ms for a, _ in pairs],
            against=fewer,
            unit="CPU ms/turn",
            better="lower",
        ),
        Entry(
            f"memory, {many:,} in flight",
            [b.kilobytes for _, b in pairs],
            [a.kilobytes for a, _ in pairs],
            against=fewer,
            unit="kB/episode",
            better="lower",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("entry", nargs="?", choices=["offline", "ideal"], help="both where left out")
    parser.add_argument("--model", help="a tiny model's folder; where left out an untrained one is made")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=64, help="of the engine, at once")
    parser.add_argument("--few", type=int, default=1000, help="episodes in flight without an engine")
    parser.add_argument("--many", type=int, default=10_000, help="episodes in flight without an engine")
    args = parse(parser, arguments, runs=1, episodes=4, few=20, many=60)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our engine has it in its actor
    connect(RayConfig())
    found: list[Entry] = []
    if args.entry != "ideal":
        with tempfile.TemporaryDirectory() as folder:
            if not args.model:
                write_model(folder)
            found += engine_entries(args.model or folder, args.runs, args.episodes)
    if args.entry != "offline":
        found += ideal_entries(args.runs, args.few, args.many)
    write_bench("rollouts", found, args.tiny)


if __name__ == "__main__":
    main()
