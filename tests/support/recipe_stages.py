"""Stages of recipes for tests: plain functions, for they are called in processes of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from atlas_ray.errors import AtlasError, ConfigurationChanged, StorageTimeout

SECONDS = 60.0


def wait_for(file: Path) -> None:
    """Until a file is there."""
    deadline = time.monotonic() + SECONDS
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.02)


def done(folder: Path, name: str) -> None:
    """Leaves a file."""
    (folder / name).write_text(str(os.getpid()))


def meet(folder: Path, name: str, other: str) -> None:
    """Is over only if another stage runs at the same time."""
    print(f"{name} waits for {other}")
    done(folder, name)
    wait_for(folder / other)


def refuse(what: str) -> None:
    raise AtlasError(what, "do otherwise")


def refuse_changed() -> None:
    raise ConfigurationChanged("another configuration", "use another folder")


def break_down() -> None:
    raise RuntimeError("a bug")


def meet_silence() -> None:
    """Fails, and leaves behind what would be waited for."""
    threading.Thread(target=threading.Event().wait, args=(SECONDS,)).start()
    raise StorageTimeout("no answer")


def fail_to_clean_up() -> None:
    try:
        raise KeyboardInterrupt
    finally:
        refuse("no connection")


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def record_left_out(folder: Path, name: str, without: dict[str, str] | None = None) -> None:
    """Leaves a file that says what it was to do without."""
    (folder / name).write_text(str(without or {}))


def hold_on(folder: Path, name: str) -> None:
    """Runs until it is stopped, and says that it was."""
    try:
        done(folder, name)
        threading.Event().wait(SECONDS)
    finally:
        (folder / f"{name} ended").touch()
