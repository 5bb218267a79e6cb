"""How training is asked to stop: a SIGTERM to the driver becomes a file in the run folder, which the workers look for.

Flows in: a signal; flows out: whether to stop behind this step, with a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from atlas_ray.errors import AtlasError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import console

STOP = "stop"
_POLL_SECONDS = 0.5


class StopFile:
    """Whether a file named `stop` lies in the run folder: how whoever may not stop a process asks it to stop.

    Args:
        folder: Where to look, beside the training; None in processes that leave it to another one.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self._closed, self._found = threading.Event(), False
        if folder is not None:
            threading.Thread(target=self._poll, args=(folder,), daemon=True).start()

    def __call__(self) -> bool:
        return self._found

    def close(self) -> None:
        """Looks no longer."""
        self._closed.set()

    def _poll(self, folder: RunFolder) -> None:
        while not self._found and not self._closed.wait(_POLL_SECONDS):
            with suppress(AtlasError, OSError):  # a store that does not answer now
                self._found = folder.has(STOP)


@contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """The first SIGTERM calls `act`, a second one does what it does otherwise."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handle(_: int, __: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        console.print("SIGTERM: training stops behind this step, with a checkpoint", style="yellow")
        act()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
