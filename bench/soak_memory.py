"""Memory of a cluster's processes over time. Flows in: process ids by node; flows out: samples, and how they grew."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

LASTING = ("driver", "head's GCS", "head's raylet", "head's agents")  # kinds of which none is killed
OURS = ("driver", "replicas", "servers")


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment.

    Attributes:
        seconds: Since the first episode was asked for.
        megabytes: That processes of a kind hold alone (USS), together.
        complete: Whether all were there; else the total says nothing.
        episodes: That had come back.
    """

    seconds: float
    megabytes: dict[str, float]
    complete: bool
    episodes: int

    def of(self, kinds: Iterable[str]) -> float:
        """Megabytes of some kinds."""
        return sum(self.megabytes.get(kind, 0.0) for kind in kinds)


def kind_of(node: int, words: Sequence[str]) -> str:
    """A process's kind, by the node that it belongs to (0 is the head) and its command line."""
    line = " ".join(words)
    name = line.split(" ", 1)[0].rsplit("/", 1)[-1]
    if "bench.soak_player" in words:
        return "driver"
    if "environments.http.server" in line:
        return "servers"
    if line.startswith("ray::"):
        return "replicas" if "Replica" in line else "idle workers"
    if node:
        return "nodes' raylets" if name == "raylet" else "nodes' agents"
    return {"gcs_server": "head's GCS", "raylet": "head's raylet"}.get(name, "head's agents")


def measure(pids: Iterable[tuple[int, int]]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Megabytes by kind, and the process ids of each kind, of processes given as (node, process id)."""
    sizes, found = defaultdict[str, float](float), defaultdict[str, list[int]](list)
    for node, pid in pids:
        try:
            process = psutil.Process(pid)
            words, size = process.cmdline(), process.memory_full_info().uss / 1e6
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
        if words:
            kind = kind_of(node, words)
            sizes[kind] += size
            found[kind].append(pid)
    return dict(sizes), dict(found)


def growth(samples: Sequence[Sample], end: float, kinds: Iterable[str] | None = None) -> tuple[float, float]:
    """How memory grew over the last two thirds of the time until `end`, along a straight line.

    Args:
        samples: Those that are not complete are left out.
        end: Seconds.
        kinds: Which count; None for all.

    Returns:
        Megabytes at the beginning and at the end of these two thirds; not numbers where fewer than 3 samples lie there.
    """
    late = [s for s in samples if s.complete and end / 3 <= s.seconds <= end]
    if len(late) < 3:
        return math.nan, math.nan
    sizes = [s.of(s.megabytes if kinds is None else kinds) for s in late]
    slope, start = statistics.linear_regression([s.seconds for s in late], sizes)
    return start + slope * end / 3, start + slope * end
