"""`make bench-selection`. 2,000 trajectories against an endpoint that takes 1 s a reply, 200 at once.

Ours is the wall time of the stage up to the finished run folder, with Ray started before, by one judging actor and by
two: `whole`, from reading the trajectories; `judging`, from the first request, which leaves out that actors start. The
rival is the time that the replies alone take.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from atlas_ray.config import RayConfig, validate
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Message, Trajectory
from bench.endpoint import endpoint
from bench.report import Entry, write_bench

_AT_ONCE, _SECONDS, _RUNS = 200, 1.0, 3


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


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=_RUNS)
    given = parser.parse_args()
    os.environ.pop("ATLAS_BENCH_KEY", None)

    from atlas_ray.cluster.connection import connect
    from atlas_ray.selection.pipeline import select_steps

    connect(RayConfig())
    ideal = -(-given.n // _AT_ONCE) * _SECONDS
    entries = []
    with tempfile.TemporaryDirectory() as folder, endpoint(seconds=_SECONDS) as server:
        data = write(Path(folder) / "data", given.n)
        for actors in (1, 2):
            whole, judging = [], []
            for i in range(given.runs):
                run = Path(folder) / f"run{actors}-{i}"
                config = config_of(run, data, server.base_url, _AT_ONCE, num_workers=actors)
                begun = time.time()
                figures = select_steps(config).finished or {}
                ended = time.time()
                whole.append(ended - begun)
                judging.append(ended - server.first_request())
                assert figures["trajectories"] == given.n, figures
                assert not figures["errors"], figures
            for name, ours in (("judging", judging), ("whole", whole)):
                entries.append(Entry(f"{name}, {actors} actor(s)", ours, [ideal] * len(ours), "s", "lower"))
        assert server.most_at_once() <= _AT_ONCE
    write_bench("selection", entries)


if __name__ == "__main__":
    _main()
