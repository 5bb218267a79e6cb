"""`metrics.jsonl`: one line per optimizer step, written by the first worker and followed by the driver.

Flows in: the loop's metrics; flows out: the file, and each step once to whoever follows it.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.units import unit_finished
from atlas_ray.training.estimate import peak_flops

if TYPE_CHECKING:
    import torch

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
_FLUSH_SECONDS = 1.0
_POLL_SECONDS = 0.5
Progress = Callable[[dict[str, Any]], None]


def read_metrics(folder: RunFolder, name: str = METRICS) -> list[dict[str, Any]]:
    """All steps recorded so far."""
    return [json.loads(line) for line in folder.read_bytes(name).splitlines()] if folder.has(name) else []


def read_checkpoints(folder: RunFolder) -> list[dict[str, Any]]:
    """Checkpoints of the last attempt: `step`, and the seconds that saving took."""
    return read_metrics(folder, CHECKPOINTS)


def best_step(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The step of least validation loss, the earlier one of equals; None where none was validated."""
    return min((m for m in lines if "validation_loss" in m), key=lambda m: m["validation_loss"], default=None)


class MetricsLog:
    """One line per optimizer step, in order, no step twice: a checkpoint carries the lines up to its step.

    Args:
        folder: Where the file lies; None in processes that write nothing.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.steps: list[dict[str, Any]] = []
        self._folder, self._written, self._checkpoints = folder, 0.0, ""

    @property
    def text(self) -> str:
        """The file's content."""
        return "".join(json.dumps(step) + "\n" for step in self.steps)

    def restore(self, text: str) -> None:
        """Goes back to the lines that a checkpoint carries."""
        self.steps = [json.loads(line) for line in text.splitlines()]
        self.flush()

    def add(self, metrics: dict[str, Any]) -> None:
        """Takes a step; it is in the file after at most a second or the next checkpoint."""
        self.steps.append(metrics)
        if time.monotonic() - self._written > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """The whole file anew: object stores cannot append, and a reader never meets half a line."""
        self._written = time.monotonic()
        if self._folder is not None:
            self._folder.write_bytes(METRICS, self.text.encode())

    def saved(self, step: int, seconds: float) -> None:
        """Says that a checkpoint is there: to the driver, by a file beside the metrics, and in this process's log."""
        if self._folder is not None:
            self._checkpoints += json.dumps({"step": step, "seconds": round(seconds, 3)}) + "\n"
            self._folder.write_bytes(CHECKPOINTS, self._checkpoints.encode())
            _checkpoint_finished(self._folder, step, seconds)


def _checkpoint_finished(folder: RunFolder, step: int, seconds: float) -> None:
    unit_finished("train", folder.uri, f"checkpoint {step}", "saved", seconds)


class Meter:
    """Adds what only a process with the device knows: memory, and the share of the device's peak that was used.

    Args:
        world: Processes, each with a device of this kind.
        bfloat16: Whether it is computed in; the peaks known are bfloat16's.
    """

    def __init__(self, device: torch.device, world: int, bfloat16: bool) -> None:
        import torch

        self._world, self._cuda = world, device.type == "cuda"
        peak = peak_flops(torch.cuda.get_device_name(device)) if self._cuda else None
        self._peak = peak if bfloat16 else None

    def complete(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics with `mfu` (None where the device's peak is unknown, as on CPU) and `memory_gb`, this process's
        peak: of the device, or resident on CPU."""
        used = metrics["flops"] / metrics["seconds"] / self._world
        return metrics | {"mfu": used / self._peak if self._peak else None, "memory_gb": self._memory() / 2**30}

    def _memory(self) -> int:
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Follower:
    """Reads the metrics that a worker writes, and passes each step on once, soon after it. A context manager."""

    def __init__(self, folder: RunFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._last, self._saved, self._stop = 0, 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        # Steps of an earlier run are known, those that it takes back to its last checkpoint among them.
        self._last = max((metrics["step"] for metrics in read_metrics(self._folder)), default=0)
        self._saved = max((saved["step"] for saved in read_checkpoints(self._folder)), default=0)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(_POLL_SECONDS)
            try:
                steps = [m for m in read_metrics(self._folder) if m["step"] > self._last]
                saved = read_checkpoints(self._folder) if steps or stopping else []
            except OSError:
                continue
            for checkpoint in (c for c in saved if c["step"] > self._saved):
                self._saved = checkpoint["step"]
                _checkpoint_finished(self._folder, checkpoint["step"], checkpoint["seconds"])
            for metrics in steps:
                self._last = metrics["step"]
                self._progress(metrics)
