"""Selection at a million trajectories of 2 kB: the driver's memory, the rate, and what a kill costs.

Such data (2 GB, as Parquet and as JSONL) is written, and selected in by
`atlas select` (random; a rule in Python; an LLM behind a local endpoint that answers at once), and reads, maps and
writes the same rows by Ray Data alone. Each is a process of its own, whose private memory is watched. Then a run of the
rule is killed at half and resumed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.types import Message, Trajectory
from bench.endpoint import endpoint
from bench.table import Entry, named, parse, write_bench

_SHARD = 8192
_ATLAS = "from atlas_ray.cli.main import main; main()"
_RULE = """
def longest(trajectory):
    \"\"\"The steps with the most words.\"\"\"
    by_length = sorted(trajectory.steps, key=lambda step: (-len(step.reply.split()), step.index))
    return [step.index for step in by_length[: max(1, len(by_length) * 3 // 10)]]
"""
_SETTINGS = {
    "random": ["selector.name=random"],
    "python": ["selector={{name: python, call: 'bench_rule:longest'}}"],
    "llm": ["selector.name=llm", "selector.model=judge", "selector.endpoint.base_url={url}"],
}
_BARE = """
import random, sys
import ray
ray.init("local", num_cpus=int(sys.argv[3]), include_dashboard=False, logging_level="ERROR", log_to_driver=False)
from ray.data import DataContext, read_json, read_parquet
DataContext.get_current().enable_progress_bars = False

def select(row):
    if "messages" in row:
        n_steps = sum(turn["role"] == "assistant" and turn["trainable"] for turn in row["messages"])
    else:
        n_steps = sum(turn["from"] == "gpt" and bool(turn["loss"]) for turn in row["conversations"])
    draw = random.Random(row["item_id"])
    chosen = sorted(draw.sample(range(1, n_steps + 1), max(1, n_steps * 3 // 10)))
    return {"id": row["item_id"], "n_steps": n_steps, "chosen": chosen}

place = sys.argv[1]
rows = read_json(place, lines=True) if place.endswith(".jsonl") else read_parquet(place + "/trajectories")
rows.map(select).write_parquet(sys.argv[2])
"""


@dataclass(frozen=True)
class Run:
    """What a process took: seconds of wall, and the most private memory, in MB."""

    seconds: float
    memory: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--asked", type=int, default=100_000, help="rows of the LLM: its endpoint is slow")
    parser.add_argument("--folder", help="where data and runs are written, and stay; a temporary one else")
    parser.add_argument("--forms", nargs="*", default=["parquet", "jsonl"])
    parser.add_argument("--only", nargs="*", default=["bare", "random", "python", "llm", "kill"])
    args = parse(parser, arguments, rows=2000, few=500, asked=500, forms=["parquet"])
    with ExitStack() as stack:
        place = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        write_bench("selection_stream", list(_measured(Path(place), args)), args.tiny)


def _measured(place: Path, args: argparse.Namespace) -> Iterator[Entry]:
    (place / "bench_rule.py").write_text(_RULE)
    (place / "bare.py").write_text(_BARE)
    for form in args.forms:
        bare = 0.0
        if "bare" in args.only:
            data, out = write_rows(place, args.rows, form), place / f"bare-{form}"
            command = [sys.executable, str(place / "bare.py"), str(data), str(out), str(args.cores)]
            bare = args.rows / watched(command, place).seconds
            print(f"bare, {form}: {bare:,.0f} rows/s", flush=True)
        for name in (name for name in _SETTINGS if name in args.only):
            rows = args.asked if name == "llm" else args.rows
            few, many = (write_rows(place, count, form) for count in (args.few, rows))
            with endpoint(seconds=0) as server:
                settings = [setting.format(url=server.base_url) for setting in _SETTINGS[name]]
                small = watched(_select(few, place / f"{name}-few-{form}", args.cores, settings), place)
                run = watched(_select(many, place / f"{name}-{form}", args.cores, settings), place)
            _check_whole(place / f"{name}-{form}", rows)
            memory = f"{small.memory:.0f} then {run.memory:.0f} MB"
            print(f"{name}, {form}: {rows / run.seconds:,.0f} rows/s, {memory}", flush=True)
            if bare:
                rate, alone = rows / run.seconds, named("ray", "Ray Data alone")
                yield Entry(f"{name}, {form}", [rate], [bare], against=alone, unit="rows/s")
            fewer, driver = f"ours with {args.few:,} rows", f"{name}, {form}: driver"
            yield Entry(driver, [run.memory], [small.memory], against=fewer, unit="MB", better="lower")
        if "kill" in args.only:
            data, folder = write_rows(place, args.rows, form), place / f"killed-{form}"
            command = _select(data, folder, args.cores, [setting.format() for setting in _SETTINGS["python"]])
            half = _killed(command, place, folder, args.rows // 2)
            watched(command, place)
            _check_whole(folder, args.rows)
            print(f"killed at {half:,} rows and resumed: {args.rows:,}, none twice, none lost", flush=True)
            yield Entry(f"killed and resumed, {form}", [args.rows], [args.rows], against="all rows, once", unit="rows")


def trajectories(count: int) -> Iterator[Trajectory]:
    """Of 2 kB each, in words that no compression makes much smaller."""
    for number in range(count):
        noise = b64encode(random.Random(number).randbytes(1200)).decode()
        words = " ".join(noise[at : at + 8] for at in range(0, len(noise), 8))
        messages = [Message("user", f"You are in maze {number}. {words[:300]}"), Message("assistant", "OK. I follow.")]
        for step in range(5):
            own = words[300 + 300 * step :]
            messages.append(Message("user", f"Observation {step}: {own[:140]}"))
            thought = own[140 : 180 + (number * 7 + step * 13) % 60]
            messages.append(Message("assistant", f"Thought: {thought}\nAction: move up", trainable=True))
        yield Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(messages))


def write_rows(place: Path, count: int, form: str) -> Path:
    """A data set: JSONL in AgentTraj-L's form, or the Parquet of a run folder."""
    made = place / (f"{count}.jsonl" if form == "jsonl" else f"{count}-run")
    if made.exists():
        return made
    if form == "jsonl":
        with made.open("w") as out:
            for row in map(_row, trajectories(count)):
                out.write(json.dumps(row) + "\n")
        return made
    folder, rows = RunFolder(str(made)), trajectories(count)
    while shard := list(islice(rows, _SHARD)):
        folder.write_shard(TRAJECTORIES, shard)
    folder.write_json("manifest.json", {"stage": "collect", "config": {}})
    return made


def _row(trajectory: Trajectory) -> dict[str, Any]:
    turns = [
        {"from": "human", "loss": None, "value": m.content}
        if m.role == "user"
        else {"from": "gpt", "loss": m.trainable, "value": m.content}
        for m in trajectory.messages
    ]
    return {"item_id": trajectory.item_id, "conversations": turns}


def _select(data: Path, run: Path, cores: int, settings: list[str]) -> list[str]:
    given = [f"ray.num_cpus={cores}", *settings]
    options = [part for setting in given for part in ("--set", setting)]
    return [sys.executable, "-c", _ATLAS, "select", "--data", str(data), "--run", str(run), *options]


def watched(command: list[str], place: Path) -> Run:
    """Runs a command to its end; its memory is looked at ten times a second."""
    begun, most = time.monotonic(), 0.0
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL)
    seen = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):
            held: Any = seen.memory_info()
            most = max(most, (held.rss - held.shared) / 1e6)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Run(time.monotonic() - begun, most)


def _killed(command: list[str], place: Path, run: Path, rows: int) -> int:
    """Kills a command, and all that it started, once it has written so many rows; says how many there are."""
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, start_new_session=True)
    folder = RunFolder(str(run))
    while process.poll() is None and len(folder.done_ids(SELECTIONS)) < rows:
        time.sleep(0.5)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        with suppress(psutil.Error):
            child.send_signal(signal.SIGKILL)
    process.wait()
    return len(folder.done_ids(SELECTIONS))


def _check_whole(run: Path, rows: int) -> None:
    """Every row is there once."""
    folder = RunFolder(str(run))
    finished, done = folder.finished or {}, folder.done_ids(SELECTIONS)
    if not len(done) == len(done.unique()) == rows == finished.get("trajectories"):
        raise SystemExit(f"{run} holds {len(done)} selections of {rows}: {finished}")


if __name__ == "__main__":
    main()
