"""Selection at a million trajectories of 2 kB: the driver's memory, the rate, and what a kill costs.

`python -m bench.selection_stream` writes such data (2 GB of JSONL in a temporary folder), selects in it by
`atlas select` (random; a rule in Python; an LLM behind a local endpoint that answers at once), and reads, maps and
writes the same rows by Ray Data alone. Each is a process of its own, whose private memory is watched. Then a run of the
rule is killed at half and resumed. Writes `bench/selection_stream.json`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from bench.endpoint import endpoint
from bench.report import Entry, write_bench

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
import ray.data
from ray.data import DataContext
DataContext.get_current().enable_progress_bars = False

def select(row):
    steps = [n for n, turn in enumerate(row["conversations"]) if turn["from"] == "gpt" and turn["loss"]]
    draw = random.Random(row["item_id"])
    chosen = sorted(draw.sample(range(1, len(steps) + 1), max(1, len(steps) * 3 // 10)))
    return {"id": row["item_id"], "n_steps": len(steps), "chosen": chosen}

ray.data.read_json(sys.argv[1], lines=True).map(select).write_parquet(sys.argv[2])
"""


@dataclass(frozen=True)
class Run:
    """What a process took: seconds of wall, and the most private memory, in MB."""

    seconds: float
    memory: float


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--asked", type=int, default=100_000, help="rows of the LLM: its endpoint is slow")
    parser.add_argument("--folder", help="where the data is written")
    parser.add_argument("--only", nargs="*", default=["bare", "random", "python", "llm", "kill"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        write_bench("selection_stream", list(_measured(Path(place), args)))


def _measured(place: Path, args: argparse.Namespace) -> Iterator[Entry]:
    (place / "bench_rule.py").write_text(_RULE)
    (place / "bare.py").write_text(_BARE)
    bare = 0.0
    if "bare" in args.only:
        data = write_rows(place / "many.jsonl", args.rows)
        command = [sys.executable, str(place / "bare.py"), str(data), str(place / "bare"), str(args.cores)]
        bare = args.rows / watched(command, place).seconds
        print(f"bare: {bare:,.0f} rows/s", flush=True)
    for name in (name for name in _SETTINGS if name in args.only):
        rows = args.asked if name == "llm" else args.rows
        few, many = (write_rows(place / f"{count}.jsonl", count) for count in (args.few, rows))
        with endpoint(seconds=0) as server:
            settings = [setting.format(url=server.base_url) for setting in _SETTINGS[name]]
            small = watched(_select(few, place / f"{name}-few", args.cores, settings), place)
            run = watched(_select(many, place / name, args.cores, settings), place)
        _check_whole(place / name, rows)
        print(f"{name}: {rows / run.seconds:,.0f} rows/s, {small.memory:.0f} then {run.memory:.0f} MB", flush=True)
        if bare:
            yield Entry(f"{name}, beside Ray Data alone", [rows / run.seconds], [bare], "rows/s", "higher")
        yield Entry(f"{name}, {rows:,} beside {args.few:,}", [run.memory], [small.memory], "MB", "lower")
    if "kill" in args.only:
        data = write_rows(place / "many.jsonl", args.rows)
        settings = [setting.format() for setting in _SETTINGS["python"]]
        command = _select(data, place / "killed", args.cores, settings)
        half = _killed(command, place, place / "killed", args.rows // 2)
        watched(command, place)
        _check_whole(place / "killed", args.rows)
        print(f"killed at {half:,} rows and resumed: {args.rows:,}, none twice, none lost", flush=True)
        yield Entry("selections of a killed and resumed run", [args.rows], [args.rows], "rows", "higher")


def write_rows(file: Path, count: int) -> Path:
    """JSONL in AgentTraj-L's form, 2 kB a row."""
    if file.exists():
        return file
    words = "because the wall is to the left and the goal is up and right of here " * 2
    with file.open("w") as out:
        for number in range(count):
            turns = [{"from": "human", "loss": None, "value": f"You are in maze {number}. " + words}]
            turns.append({"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions."})
            for step in range(5):
                turns.append({"from": "human", "loss": None, "value": f"Observation {step}: {words[:120]}"})
                thought = words[: 40 + (number * 7 + step * 13) % 60]
                turns.append({"from": "gpt", "loss": True, "value": f"Thought: {thought}\\nAction: move up"})
            out.write(json.dumps({"item_id": f"maze_{number}", "conversations": turns}) + "\n")
    return file


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
