"""The end of a process that Ray cannot do without: it interrupts the main thread, and ends what hangs."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PROGRAM = """
import atexit, queue, subprocess, sys, threading
from atlas_ray.cluster import watchdog

watchdog.UNWIND_SECONDS, watchdog.ENDING_SECONDS = 0.3, {ending}
raylet = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

def end():  # as Ray ends its processes, and takes its time
    raylet.kill()
    threading.Event().wait(1.0)

atexit.register(end)
watchdog.watch({{"raylet": raylet}}, lambda: {used})
threading.Timer(0.1, {happens}).start()
try:
    queue.SimpleQueue().get(timeout={seconds})
except queue.Empty:
    print("nothing happened")
except KeyboardInterrupt:
    print("written down")
    {then}
"""


def run(
    happens: str,
    then: str = "sys.exit(str(watchdog.lost()))",
    seconds: float = 20.0,
    ending: float = 5.0,
    used: bool = True,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(happens=happens, then=then, seconds=seconds, ending=ending, used=used)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_killed_raylet_interrupts_what_the_process_waits_for() -> None:
    done = run("raylet.kill")
    assert (done.returncode, done.stdout) == (1, "written down\n")
    assert done.stderr.startswith("Ray's raylet on this machine has died (process ")
    assert "run the same command again" in done.stderr


@pytest.mark.parametrize("then", ["queue.SimpleQueue().get()", "threading.Event().wait()"])
def test_where_its_handling_hangs_the_process_ends_all_the_same(then: str) -> None:
    done = run("raylet.kill", f"sys.stdout.flush(); {then}")
    assert (done.returncode, done.stdout) == (1, "written down\n")
    assert done.stderr.startswith("atlas: Ray's raylet on this machine has died")


@pytest.mark.parametrize("happens", ["raylet.stdin.close", "raylet.terminate"])
def test_a_raylet_that_is_told_to_end_is_missed_while_the_process_goes_on(happens: str) -> None:
    assert run(happens, ending=0.1).stdout == "written down\n"


@pytest.mark.parametrize(
    ("happens", "seconds"), [("raylet.stdin.close", 1.0), ("raylet.terminate", 1.0), ("bool", 0.2)]
)
def test_a_raylet_that_ends_with_the_process_is_not_missed(happens: str, seconds: float) -> None:
    done = run(happens, seconds=seconds)
    assert (done.returncode, done.stdout, "atlas:" in done.stderr) == (0, "nothing happened\n", False)


def test_after_a_shutdown_of_ray_the_process_goes_on_without_its_raylet() -> None:
    assert run("raylet.terminate", seconds=1.5, ending=0.1, used=False).stdout == "nothing happened\n"


def test_of_two_rays_of_one_process_the_first_is_no_longer_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that shuts its Ray down and starts another one loses nothing with the first."""
    from ray._private import worker

    from atlas_ray.cluster import connection

    asked: list[Any] = []
    first, second = (SimpleNamespace(all_processes=defaultdict(lambda: [SimpleNamespace(process=None)])) for _ in "ab")
    monkeypatch.setattr(connection, "watch", lambda _, in_use: asked.append(in_use))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    for node in (first, second):
        monkeypatch.setattr(worker, "_global_node", node)
        connection._watch_own_ray()
    assert [in_use() for in_use in asked] == [False, True]
