"""Every benchmark runs through in its tiny form, by the command that runs the large one, and writes its rows."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import NAMES
from bench.table import Entry, path_of

ROOT = Path(__file__).parents[2]
QUICK = ("peaks", "rendering", "environments")  # the others start Ray, an engine or a browser, or train
UNABLE = {
    "training": None if importlib.util.find_spec("trl") else "TRL is not installed",
    "viewer": None if shutil.which("chromium") else "there is no Chromium",
    "soak": None if os.geteuid() == 0 and shutil.which("ip") else "network namespaces want root and iproute2",
}
ENTRIES = {
    "training": ["throughput", "memory"],
    "rendering": ["time", "memory", "rendering"],
    "perplexity": ["per_step", "vllm"],
    "selection": [f"{what}, {n} actor(s)" for n in (1, 2) for what in ("judging", "whole")],
    "values": ["f1", "tokens", "agreement"],
    "gpu": [
        *("training.floor", "training.memory", "numerics.loss", "numerics.gradients"),
        *("rollouts", "perplexity"),
    ],
    "soak": ["episodes", "memory_total", "memory_ours", "memory_driver"],
}


def marks_of(name: str) -> list[Any]:
    why = UNABLE.get(name)
    return [pytest.mark.skipif(why is not None, reason=why or ""), *([] if name in QUICK else [pytest.mark.slow])]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in NAMES])
def test_a_benchmark_ends_and_writes_what_it_found(name: str) -> None:
    written = path_of(name, tiny=True)
    written.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench", name, "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = json.loads(written.read_text())
    if name == "peaks":
        assert all(value > 0 for value in rows.values())
        return
    assert rows
    assert [row["name"] for row in rows] == ENTRIES.get(name, [row["name"] for row in rows])
    for row in rows:
        assert row["against"]
        if not row["name"].startswith("memory_"):  # of a minute no growth can be told
            assert isfinite(row["ratio"])
            assert row["ratio"] > 0
        assert (row["floor"] is None) == (row["share"] is None)


def test_ratio_and_share_are_above_one_where_ours_is_better_than_the_rival_or_the_floor() -> None:
    fast = Entry("rate", [30.0, 10.0, 20.0], [10.0], against="x 1.0", unit="1/s", floor=40.0)
    assert (fast.ratio, fast.share) == (2.0, 0.5)
    short = Entry("time", [5.0], [10.0], against="x 1.0", unit="s", better="lower", floor=4.0)
    assert (short.ratio, short.share) == (2.0, 0.8)
    assert Entry("time", [5.0], [10.0], against="x 1.0", unit="s").row["share"] is None
