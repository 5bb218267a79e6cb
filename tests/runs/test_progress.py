"""What is told of a stage under way: in 80 columns, and no time left before it can be right."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from atlas_ray.runs import progress
from atlas_ray.runs.progress import Tracker


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def told(monkeypatch: pytest.MonkeyPatch, *advances: tuple[float, int], terminal: bool = False) -> list[str]:
    """Lines of a stage of 1,000 units that has done so many more at these times."""
    screen, clock = io.StringIO(), Clock()
    monkeypatch.setattr(progress, "console", Console(file=screen, width=80, force_terminal=terminal, markup=False))
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with Tracker("train", 1000) as tracker:
        for seconds, units in advances:
            clock.now = seconds
            tracker.advance(units, "loss 5.3645, 1,973 tokens/s")
    return screen.getvalue().splitlines()


def test_the_time_left_waits_for_a_rate_that_leaves_the_start_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, (19.0, 1), (31.0, 240), (45.0, 260))
    assert lines == [
        "train: 1000 units",
        "train: 1/1000, 0:19, loss 5.3645, 1,973 tokens/s",  # 19 s of start and one unit are no rate
        "train: 241/1000, 0:31, eta 0:37, loss 5.3645, 1,973 tokens/s",
        "train: 501/1000, 0:45, eta 0:25, loss 5.3645, 1,973 tokens/s",
        "train: 501/1000, 0:45, eta 0:25, loss 5.3645, 1,973 tokens/s",
    ]


def test_hours_are_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch, (1.0, 1), (101.0, 10))[1].startswith("train: 11/1000, 1:41, eta 2:44:50, ")


def test_a_bar_shows_the_time_left_within_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch, (1.0, 1), (21.0, 200), terminal=True)
    assert any("201/1000" in line and "eta 1:19, loss 5.3645, 1,973 tokens/s" in line for line in lines)


def test_a_stage_that_ends_no_unit_for_a_while_tells_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (False, True):
        screen, asked = io.StringIO(), threading.Semaphore(0)
        monkeypatch.setattr(progress, "console", Console(file=screen, width=80, force_terminal=terminal, markup=False))
        monkeypatch.setattr(progress, "_LINE_SECONDS", 0.01)

        def heartbeat(asked: threading.Semaphore = asked) -> str:
            asked.release()
            return "31 replies, 123 tokens/s"

        with Tracker("evaluate base", 40) as tracker:
            tracker.between_units(heartbeat)
            for _ in range(2):  # the first is shown once it is asked a second time
                assert asked.acquire(timeout=20)
        assert "0/40" in screen.getvalue()
        assert "31 replies, 123 tokens/s" in screen.getvalue()


class Looks:
    """In place of the event whose wait is the time between two looks: units end before the first three alone."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._looks = tracker, 0

    def wait(self, _: float) -> bool:
        self._looks += 1
        if self._looks <= 3:
            self._tracker.advance()
        return self._looks > 5

    def set(self) -> None: ...

    def is_set(self) -> bool:
        return False


def test_a_stage_that_ends_units_is_not_asked_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), markup=False))
    tracker = Tracker("evaluate base", 40)
    monkeypatch.setattr(tracker, "_ended", Looks(tracker))
    with tracker:
        tracker.between_units(lambda: str(asked.append(0)))
    assert len(asked) == 2
