"""Processes that this one starts: with it they end, and with them all that they started. Imports nothing heavy.

`python -m atlas_ray.cluster.processes OWNER COMMAND ..` is a guard: it runs a command of anybody's and ends it, with
all its descendants, on a SIGTERM or when process OWNER has ended, however that one ends. Without a command it is a
watcher: once OWNER has ended it ends what that one has marked.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

GRACE_SECONDS = 10.0  # that a command has to end by itself
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans among the descendants become children of this process


def when_ended(process: int, call: Callable[[], object]) -> None:
    """Calls a function, in another thread, once a process has ended; where the system can tell."""
    if not hasattr(os, "pidfd_open"):
        return
    watched = select.poll()
    try:
        watched.register(os.pidfd_open(process), select.POLLIN)
    except ProcessLookupError:
        call()
        return

    def watch() -> None:
        watched.poll()
        call()

    threading.Thread(target=watch, name="when_ended", daemon=True).start()


def free_port(host: str = "127.0.0.1", wanted: int = 0) -> int:
    """A port where nobody listens: the wanted one if it is free."""
    for port in dict.fromkeys((wanted, 0)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    raise OSError(f"no port is free at {host}")


def start_guarded(
    command: Sequence[str], log: IO[bytes], environment: dict[str, str], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Starts a command below a guard of this process's; the guard's exit code is the command's."""
    own = [sys.executable, "-m", __name__, str(os.getpid())]
    return subprocess.Popen(
        [*own, *([f"--folder={folder}"] if folder else []), *command],
        env=environment | {_OUTER: environment.get("PYTHONPATH", ""), "PYTHONPATH": _import_path()},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end_guarded(guard: subprocess.Popen[bytes]) -> None:
    """Ends a guard, its command and all that belongs to it."""
    with suppress(ProcessLookupError):
        guard.terminate()
    with suppress(subprocess.TimeoutExpired):
        guard.wait(GRACE_SECONDS + 5)
    with suppress(ProcessLookupError):  # a guard that was killed leaves its group behind
        os.killpg(guard.pid, signal.SIGKILL)
    guard.wait()


def watch_for(owner: int) -> subprocess.Popen[bytes]:
    """Starts a watcher: whatever a process starts from now on, through a library or not, ends with it.

    It is told by a variable in its environment, so that this holds for what is started by others on its behalf.
    """
    os.environ[_MARK] = str(owner)
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(owner)],
        env={key: value for key, value in os.environ.items() if key != _MARK} | {"PYTHONPATH": _import_path()},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _import_path() -> str:
    """Where this package is found, installed or not."""
    return os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _end_marked(owner: int) -> None:
    """Ends what a process has marked and left behind, until none of it has appeared for a while."""
    mark, quiet = f"{_MARK}={owner}".encode(), 0
    while quiet < 5:
        quiet += 1
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in entry.read_bytes().split(b"\0"):
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    quiet = 0
        time.sleep(0.2)


_MARK = "ATLAS_OWNER"
_OUTER = "ATLAS_GUARDED_PYTHONPATH"  # the command's own PYTHONPATH, which is not the guard's


class _Stop(Exception):
    """A SIGTERM."""


def main() -> None:
    """The guard, or the watcher."""
    owner, *command = sys.argv[1:]
    if not command:
        if not hasattr(os, "pidfd_open"):
            return
        over = threading.Event()
        when_ended(int(owner), over.set)
        over.wait()
        _end_marked(int(owner))
        return
    folder = command.pop(0).partition("=")[2] if command[0].startswith("--folder=") else None
    environment = dict(os.environ)
    if outer := environment.pop(_OUTER, ""):
        environment["PYTHONPATH"] = outer
    else:
        environment.pop("PYTHONPATH", None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stop

    def end() -> None:
        kill_descendants()
        os._exit(1)

    signal.signal(signal.SIGTERM, stop)
    code, child = 1, None
    try:
        child = subprocess.Popen(command, env=environment, cwd=folder)
        when_ended(int(owner), end)
        code = child.wait()
    except _Stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for pid in _descendants():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if child is not None:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(GRACE_SECONDS)
    except OSError as error:
        print(f"cannot start {command[0]}: {error.strerror}", flush=True)
        code = 127
    kill_descendants()
    os._exit(code if code >= 0 else 128 - code)


def _descendants() -> list[int]:
    """Processes below this one, the nearest first; of this one's group where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, at = [], [os.getpid()]
    while at:
        at = [child for pid in at for child in children.get(pid, [])]
        found += at
    return found


def kill_descendants() -> None:
    """Ends the processes below this one until none is left; orphans too, where they become children of this one."""
    while pids := _descendants():
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(-1, 0)


if __name__ == "__main__":
    main()
