"""ScienceWorld's simulators: many in a Java machine, and as many machines as they need.

Flows in: a task's name and variation, and commands; flows out: texts and scores. A machine starts with the first
simulator that has no room elsewhere, and ends when it had none for a while.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any, cast

from atlas_ray.errors import EnvironmentFailure, UserError

# A loaded simulator holds 13 to 17 MB; the machine itself 130 MB.
PER_MACHINE = 20
IDLE_SECONDS = 30.0  # an episode's end is mostly the next one's start
_OPTIONS = (
    "-Xmx512m",
    "-XX:+UseSerialGC",
    # Sets of objects are walked in the order of hash codes, which are addresses otherwise: the same cups on another
    # shelf in the next process. One code for all leaves the order in which they were put in.
    "-XX:+UnlockExperimentalVMOptions",
    "-XX:hashCode=2",
)
_EXIT_SECONDS = 10.0


def require() -> None:
    """Whether there is all that a simulator needs.

    Raises:
        UserError: If scienceworld or Java is not installed.
    """
    try:
        import scienceworld  # noqa: F401
    except ImportError:
        raise UserError("the built-in sciworld needs scienceworld", "pip install 'atlas-ray[sciworld]'") from None
    home = os.environ.get("JAVA_HOME")
    if not shutil.which(str(Path(home, "bin", "java")) if home else "java"):
        raise UserError("the built-in sciworld needs Java", "apt-get install openjdk-17-jre-headless, or set JAVA_HOME")


class _Machine:
    """One Java process; only who knows its token can speak to it."""

    def __init__(self) -> None:
        from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway
        from scienceworld.constants import JAR_PATH

        self._folder = tempfile.TemporaryDirectory(prefix="atlas-sciworld-")  # ScienceWorld leaves a file where it runs
        try:
            port, token, self.process = launch_gateway(
                cwd=self._folder.name,
                classpath=JAR_PATH,
                javaopts=list(_OPTIONS),
                java_path=None,  # JAVA_HOME's, else the one on PATH
                die_on_exit=True,
                enable_auth=True,
                create_new_process_group=True,  # Ctrl-C is ours
                return_proc=True,
            )
        except (OSError, ValueError) as error:  # ValueError: it told no port
            raise EnvironmentFailure(f"sciworld's Java machine does not start: {error}") from None
        self.gateway: Any = JavaGateway(gateway_parameters=GatewayParameters(port=port, auth_token=token))
        self.used, self.idle = 0, cast("threading.Timer | None", None)
        self.turn = threading.Lock()  # ScienceWorld numbers its objects for all games of a process

    def end(self) -> None:
        """Ends the process."""
        with contextlib.suppress(Exception):
            self.gateway.shutdown()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(_EXIT_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it waits for
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


_machines: list[_Machine] = []
_lock = threading.RLock()  # a collected simulator may be given back in the middle of anything


def _take() -> _Machine:
    with _lock:
        free = [m for m in _machines if m.used < PER_MACHINE and m.process.poll() is None]
        if not free:
            free = [_Machine()]
            _machines.append(free[0])
        if free[0].idle:
            free[0].idle.cancel()
        free[0].used += 1
        return free[0]


def _give_back(machine: _Machine, simulator: Any) -> None:
    with contextlib.suppress(Exception):
        machine.gateway.detach(simulator)
    with _lock:
        machine.used -= 1
        if not machine.used:
            machine.idle = threading.Timer(IDLE_SECONDS, _end_idle, [machine])
            machine.idle.daemon = True
            machine.idle.start()


def _end_idle(machine: _Machine) -> None:
    with _lock:
        if machine.used or machine not in _machines:
            return
        _machines.remove(machine)
    machine.end()


class JavaGame:
    """One game; closed or collected, it leaves its place in the machine to the next.

    Raises:
        EnvironmentFailure: If Java does not start.
    """

    def __init__(self) -> None:
        self._machine = machine = _take()
        try:
            with machine.turn:
                self._java = machine.gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        except BaseException:
            _give_back(machine, None)
            raise
        self.close = weakref.finalize(self, _give_back, machine, self._java)

    def kill(self) -> None:
        """Ends the machine of a game that hangs; its other games have to start elsewhere."""
        self._machine.process.kill()

    def load(self, name: str, variation: int, solve: bool = False) -> str:
        """Starts a game; its task in words.

        Args:
            name: The kind of task.
            variation: Its number.
            solve: Whether `path` is wanted; takes up to a second.

        Raises:
            EnvironmentFailure: If the machine is gone or full.
        """
        self._call("load", name, variation, "", solve)
        return str(self._call("getTaskDescription"))

    def step(self, command: str) -> str:
        """What a command gives.

        Raises:
            EnvironmentFailure: If the machine is gone or full.
        """
        return str(self._call("step", command))

    def look(self) -> str:
        """What is in sight; takes no time."""
        return str(self._call("freeActionLook"))

    @property
    def path(self) -> list[str]:
        """The actions that solve the game; it may go on a little after its end."""
        return list(self._call("getGoldActionSequence"))

    @property
    def score(self) -> int:
        """From 0 to 100, or -100 after the wrong thing was focused on."""
        return round(100 * self._call("getScore"))

    @property
    def completed(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self._call("getCompleted"))

    @property
    def moves(self) -> int:
        """Time that has gone by."""
        return int(self._call("getNumMoves"))

    @property
    def hints(self) -> dict[str, list[str]]:
        """The forms of actions, and what they can be about now."""
        actions, things = self._call("getPossibleActions"), self._call("getPossibleObjects")
        return {"possible_actions": list(actions), "possible_objects": list(things)}

    def _call(self, name: str, *given: Any) -> Any:
        from py4j.protocol import Py4JError

        try:
            with self._machine.turn:
                return getattr(self._java, name)(*given)
        except (Py4JError, OSError) as error:
            why = str(getattr(error, "java_exception", error)).splitlines()[0]
            raise EnvironmentFailure(f"sciworld's Java machine failed at {name}: {why}") from None
