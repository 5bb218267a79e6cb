"""Steps and resets a second of every built-in environment, in process and over HTTP.

The novice plays some test tasks once; its replies are then played again and again, by one session in this process, by
one session over HTTP, and by 32 at once, each for some seconds in turn. The server is `atlas serve` in a process of its
own. An entry's rival is play in process, so its ratio is what is left of that over HTTP: one request after another
pays for the way there and back, many at once share one server process (run several for more). The floor is what
requests over loopback allow. Turns are those of whole
rollouts in process, with a policy that costs nothing: the fastest episode counts, which a busy machine hardly moves.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table

from atlas_ray.environments import registry
from atlas_ray.environments.client import HttpSession
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import EnvironmentSpec, Session
from atlas_ray.errors import UserError
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.types import Message, Task
from bench.peaks import loopback
from bench.table import Entry, parse, write_bench

TASKS, AT_ONCE = 10, 32

Replies = list[tuple[Task, list[str]]]


@dataclass
class Pace:
    """How fast one way of playing is, a figure a run."""

    resets: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)


async def recorded(spec: EnvironmentSpec) -> Replies:
    """What the novice says in some test tasks."""
    session, found = LocalSession(spec), []
    for task in spec.tasks("test", TASKS):
        opening = await session.reset(task)
        conversation, replies = ScriptedPolicy("novice").open(task, opening.messages(), Sampling()), []
        for _ in range(spec.max_rounds):
            replies.append((await conversation.generate(0)).text)
            if (await session.step(replies[-1])).done:
                break
        found.append((task, replies))
    await session.close()
    return found


async def measure(open_session: Callable[[], Session], at_once: int, episodes: Replies, seconds: float) -> Pace:
    """Plays the episodes over and over; resets and steps are timed apart, at-once sessions' seconds shared."""
    sessions = [open_session() for _ in range(at_once)]
    spent, done = {"reset": 0.0, "step": 0.0}, {"reset": 0, "step": 0}

    async def play(session: Session, first: int) -> None:
        end, number = time.perf_counter() + seconds, first
        while time.perf_counter() < end:
            task, replies = episodes[number % len(episodes)]
            number += 1
            begun = time.perf_counter()
            await session.reset(task)
            between = time.perf_counter()
            spent["reset"] += between - begun
            done["reset"] += 1
            for reply in replies:
                await session.step(reply)
                done["step"] += 1
            spent["step"] += time.perf_counter() - between

    try:
        await asyncio.gather(*(play(session, first) for first, session in enumerate(sessions)))
    finally:
        await asyncio.gather(*(session.close() for session in sessions))
    return Pace(*([at_once * done[what] / spent[what]] for what in ("reset", "step")))


class Recited:
    """A policy that says given replies, and its one conversation."""

    name = "recited"

    def __init__(self, replies: Sequence[str]) -> None:
        self._replies = list(replies)

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Recited:
        self._left = iter(self._replies)
        return self

    async def generate(self, seed: int) -> Reply:
        return Reply(next(self._left, ""))

    def append(self, message: Message) -> None: ...


async def turns_per_second(spec: EnvironmentSpec, episodes: Replies, seconds: float) -> float:
    """Turns a second of the fastest whole rollout in process."""
    session, best, end = LocalSession(spec), 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for task, replies in episodes:
            begun = time.perf_counter()
            played = await run_episode(Recited(replies), session, EpisodeRequest(task, Sampling(), seed=0))
            best = max(best, played.rounds / (time.perf_counter() - begun))
    await session.close()
    return best


@contextlib.contextmanager
def serving(name: str) -> Iterator[str]:
    """`atlas serve NAME` in a process of its own; gives its address."""
    code = "import sys; from atlas_ray.cli.main import main; main(sys.argv[1:])"
    server = subprocess.Popen([sys.executable, "-c", code, "serve", name], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
    finally:
        server.terminate()
        server.wait(30)


def bench(name: str, runs: int, seconds: float) -> dict[str, Pace]:
    """One environment, its three ways in turn."""
    spec = registry.get(name)
    episodes = asyncio.run(recorded(spec))
    found: dict[str, Pace] = {}
    with serving(name) as url:

        def remote() -> Session:
            return HttpSession(spec, [url], 120.0)

        ways: list[tuple[str, Callable[[], Session], int]] = [
            ("in process", lambda: LocalSession(registry.get(name)), 1),
            ("http", remote, 1),
            (f"http{AT_ONCE}", remote, AT_ONCE),
        ]
        for _ in range(runs):
            found.setdefault("rollout", Pace()).steps.append(asyncio.run(turns_per_second(spec, episodes, seconds)))
            for way, open_session, at_once in ways:
                pace = asyncio.run(measure(open_session, at_once, episodes, seconds))
                found.setdefault(way, Pace()).resets.extend(pace.resets)
                found[way].steps.extend(pace.steps)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="environments; all that are built in and installed by default")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each way in each run")
    given = parse(parser, arguments, names=["maze"], runs=1, seconds=0.2)
    built_in = [name for name, spec in registry.ENVIRONMENTS.items() if spec.simulator is not None]
    heads = [f"{what}/s {how}" for what in ("resets", "steps") for how in ("in process", "HTTP", f"HTTP, {AT_ONCE}")]
    shown, entries = Table("environment", *heads, "turns/s, whole rollouts", title="medians"), list[Entry]()
    floors = {"http": loopback(1), f"http{AT_ONCE}": loopback(AT_ONCE)}
    for name in given.names or built_in:
        try:
            found = bench(name, given.runs, given.seconds)
        except UserError as error:
            print(f"{name}: left out: {error} ({error.remedy})", flush=True)
            continue
        turns = max(found.pop("rollout").steps)
        figures = [[median(getattr(pace, what)) for pace in found.values()] for what in ("resets", "steps")]
        told = [*figures[0], *figures[1], turns]
        shown.add_row(name, *(f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}" for figure in told))
        inside = found.pop("in process")
        entries += [
            Entry(
                f"{name} {what}, {way}",
                getattr(pace, what),
                getattr(inside, what),
                against="ours, in process",
                unit=f"{what}/s",
                floor=floors[way],
            )
            for way, pace in found.items()
            for what in ("resets", "steps")
        ]
        print(f"{name}: done", flush=True)
    write_bench("environments", entries, given.tiny)
    Console().print(shown)


if __name__ == "__main__":
    main()
