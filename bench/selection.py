"""2,000 trajectories against an endpoint that takes 1 s a reply, 200 at once.

Ours is the wall time of the stage up to the finished run folder, with Ray started before, by one judging actor and by
two: `whole`, from reading the trajectories; `judging`, from the first request, which leaves out that actors start. The
rival is openai's client with its fastest transport, in one event loop, which asks the same prompts and keeps nothing.
The floor is the time that the replies alone take.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from atlas_ray.config import RayConfig, validate
from atlas_ray.models.request import ChatMessages
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Message, Trajectory
from bench.endpoint import endpoint
from bench.table import Entry, named, parse, write_bench

_SECONDS = 1.0


def trajectories(n: int) -> list[Trajectory]:
    """As long as AgentTraj-L's: 4 to 30 steps, observations of about 300 characters."""
    return [_trajectory(i, 4 + i * 7 % 27) for i in range(n)]


def write(folder: Path, n: int) -> str:
    """Writes them as a collected run, and says where."""
    run = RunFolder(str(folder))
    run.begin(CollectConfig(run=run.uri), stage="collect")
    run.write_shard(TRAJECTORIES, trajectories(n))
    run.finish()
    return run.uri


def config_of(run: Path, data: str, base_url: str, concurrency: int, **section: object) -> SelectConfig:
    """A selection at an endpoint that wants no key."""
    address = {"base_url": base_url, "api_key_env": "ATLAS_BENCH_KEY", "concurrency": concurrency}
    address |= section.pop("endpoint", {})  # type: ignore[call-overload]
    selector = {"name": "llm", "endpoint": address, **section}
    return validate(SelectConfig, {"run": str(run), "data": {"path": data}, "selector": selector})


def _trajectory(number: int, n_steps: int) -> Trajectory:
    seen = "You see a table 1, a drawer 2 and a cabinet 3. On the table 1 lie a key, a lamp and a red book. " * 3
    turns = [Message("user", f"You are in a house. This is task {number}."), Message("assistant", "OK")]
    turns.append(Message("user", seen))
    for t in range(1, n_steps + 1):
        reply = f"Thought: I have looked in {t} places and the lamp must be near.\nAction: open drawer {t}"
        turns += [Message("assistant", reply, True), Message("user", f"Step {t} done. {seen}")]
    return Trajectory(f"house/{number}", "house", str(number), tuple(turns), 1.0)


def ask_openai(asked: Sequence[ChatMessages], base_url: str, at_once: int) -> float:
    """Seconds that the rival takes."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    async def ask() -> float:
        free = asyncio.Semaphore(at_once)
        async with AsyncOpenAI(base_url=base_url, api_key="none", http_client=DefaultAioHttpClient()) as client:

            async def one(messages: ChatMessages) -> None:
                async with free:
                    await client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]

            begun = time.time()
            await asyncio.gather(*map(one, asked))
            return time.time() - begun

    return asyncio.run(ask())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    given = parse(parser, arguments, n=40, at_once=20, runs=1)
    os.environ.pop("ATLAS_BENCH_KEY", None)

    from atlas_ray.cluster.connection import connect
    from atlas_ray.selection.llm.prompt import load_prompt
    from atlas_ray.selection.pipeline import select_steps

    connect(RayConfig())
    ideal = -(-given.n // given.at_once) * _SECONDS
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, endpoint(seconds=_SECONDS) as server:
        data = write(Path(folder) / "data", given.n)
        asked = [load_prompt().messages(t, max(1, len(t.steps) * 3 // 10)) for t in trajectories(given.n)]
        for i in range(given.runs):
            for actors in (1, 2):
                run = Path(folder) / f"run{actors}-{i}"
                config = config_of(run, data, server.base_url, given.at_once, num_workers=actors)
                begun = time.time()
                figures = select_steps(config).finished or {}
                ended = time.time()
                found.setdefault(f"judging, {actors} actor(s)", []).append(ended - server.first_request())
                found.setdefault(f"whole, {actors} actor(s)", []).append(ended - begun)
                assert figures["trajectories"] == given.n, figures
                assert not figures["errors"], figures
            found.setdefault("rival", []).append(ask_openai(asked, server.base_url, given.at_once))
            server.first_request()
        assert server.most_at_once() <= given.at_once
    rival, client = (
        found.pop("rival"),
        named("openai", f"AsyncOpenAI on aiohttp, {given.at_once} at once, replies alone"),
    )
    write_bench(
        "selection",
        [
            Entry(name, ours, rival, against=client, unit="s", better="lower", floor=ideal)
            for name, ours in found.items()
        ],
        given.tiny,
    )


if __name__ == "__main__":
    main()
