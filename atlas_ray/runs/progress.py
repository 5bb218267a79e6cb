"""Progress with an ETA: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False, markup=False)
output = Console(markup=False)  # what a verb was asked for; names in it are those of data, and no markup
_LINE_SECONDS = 10.0
_SURE_SECONDS = 5.0  # behind the first unit, from which on a rate says how long the rest takes
_Item = TypeVar("_Item")


class Tracker:
    """Shows how far a stage is. Use it as a context manager.

    Args:
        description: What is being done.
        total: Units in all, or None while unknown.
        done: Units that an earlier run finished; they count as done but not towards the rate.
    """

    def __init__(self, description: str, total: int | None, done: int = 0) -> None:
        self._description, self._total, self._done = description, total, done
        self._beating: threading.Thread | None = None
        self._ended = threading.Event()
        self._note = ""
        self._begun = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first units were done, and how many there were then
        self._bar: Progress | None = None

    def __enter__(self) -> Tracker:
        resumed = f" ({self._done} done before)" if self._done else ""
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=10),  # with all else it fits 80 columns
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._bar.add_task(self._description + resumed, total=self._total, completed=self._done, note="")
        else:
            console.print(f"{self._description}: {self._total if self._total is not None else '?'} units{resumed}")
        return self

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """Counts finished units; `note` is a short figure shown beside them."""
        self._done += units
        self._note = self._note if note is None else note
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        if self._bar:
            notes = ", ".join(filter(None, [self._left(now), self._note]))
            self._bar.update(self._bar.task_ids[0], completed=self._done, note=notes)
        elif now - self._printed > _LINE_SECONDS:
            self._print()

    def between_units(self, heartbeat: Callable[[], str]) -> None:
        """Has told how the work goes on while no unit ends for a while.

        Args:
            heartbeat: The words, or none; it is asked by another thread.
        """
        self._beating = threading.Thread(target=self._beat, args=[heartbeat], name="heartbeat", daemon=True)
        self._beating.start()

    def _beat(self, heartbeat: Callable[[], str]) -> None:
        """Looks again and again whether a unit has ended."""
        before = self._done
        while not self._ended.wait(_LINE_SECONDS):
            if self._done == before and (words := heartbeat()):
                if self._bar:
                    self._bar.update(self._bar.task_ids[0], note=words)
                elif not self._ended.is_set():
                    self._print(words)
            before = self._done

    def _print(self, words: str | None = None) -> None:
        self._printed = now = time.monotonic()
        total = f"/{self._total}" if self._total is not None else ""
        parts = [f"{self._done}{total}", _clock(now - self._begun), self._left(now), words or self._note]
        console.print(f"{self._description}: {', '.join(filter(None, parts))}")

    def _left(self, now: float) -> str:
        """The time left; nothing until it can be right: what starts before the first unit says nothing of the rest."""
        if self._first is None or self._total is None:
            return ""
        since, done = now - self._first[0], self._done - self._first[1]
        if self._done == self._total or since < _SURE_SECONDS or not done:
            return ""
        return f"eta {_clock((self._total - self._done) * since / done)}"

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._ended.set()
        if self._beating:
            self._beating.join()
        if self._bar:
            self._bar.stop()
        else:
            self._print()


def track(items: Iterable[_Item], total: int | None, description: str, done: int = 0) -> Iterator[_Item]:
    """Passes items through and shows progress, one unit each."""
    with Tracker(description, total, done) as tracker:
        for item in items:
            yield item
            tracker.advance()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
