"""The watchdog of a Ray that was started for this process alone: with its raylet or its GCS the process ends too.

Ray replaces workers, and nothing replaces Ray: a driver without its raylet would wait for many minutes, and one without
its GCS be aborted without a word. Imports nothing heavy.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType

from atlas_ray.cluster.processes import kill_descendants, when_ended
from atlas_ray.errors import RayLost

UNWIND_SECONDS = 20.0  # that the process has to write down what is done: a call of Ray's may never return
ENDING_SECONDS = 10.0  # that it may take to end once it is told to
_lost: list[RayLost] = []


def lost() -> RayLost | None:
    """How this process lost its Ray, which is the cause of whatever it ends with; None where it has not."""
    return _lost[0] if _lost else None


def watch(processes: Mapping[str, subprocess.Popen[bytes]], in_use: Callable[[], bool]) -> None:
    """Interrupts the main thread, as Ctrl-C does, once one of Ray's processes is lost; soon after, the process ends.

    Args:
        processes: By what people call them.
        in_use: Whether this process is connected to this Ray: after `ray.shutdown()` nothing is lost.
    """
    over, main = threading.Event(), threading.main_thread()
    atexit.register(over.set)  # from here on it is Ray's own end

    def break_in(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise KeyboardInterrupt  # the one exception that comes through a call of Ray's

    def ended(name: str, process: subprocess.Popen[bytes]) -> None:
        if process.poll() in (0, -signal.SIGTERM):  # as Ray ends them where this process is told to end
            over.wait(ENDING_SECONDS)
        if over.is_set() or not in_use():
            return
        over.set()
        _lost.append(
            RayLost(
                f"Ray's {name} on this machine has died (process {process.pid}, exit code {process.returncode}), "
                "and all that ran on it",
                "what is recorded is kept: run the same command again; where memory ran out, the kernel's log says so",
            )
        )
        if signal.getsignal(signal.SIGUSR1) is break_in:
            signal.pthread_kill(main.ident or 0, signal.SIGUSR1)
        time.sleep(UNWIND_SECONDS)
        sys.stderr.write(f"atlas: {_lost[0]}\n")
        sys.stderr.flush()
        kill_descendants()
        os._exit(RayLost.exit_code)

    if threading.current_thread() is main:
        signal.signal(signal.SIGUSR1, break_in)
    for name, process in processes.items():
        when_ended(process.pid, partial(ended, name, process))
