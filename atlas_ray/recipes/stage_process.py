"""A stage in a process of its own, which joins the recipe's Ray cluster: as if its own command ran beside the others.

Each has its own main thread for signals, its own memory, and its own connection to Ray, which ends what a lost one
held. Flows in: a call; flows out: its lines, and what it ended with. It ends with the process that started it.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO, Any

from atlas_ray.cluster.processes import when_ended
from atlas_ray.errors import AtlasError, Unresponsive


class StageProcess:
    """A stage's process, which waits for what to do.

    Args:
        environment: Variables besides this process's own.
        say: Takes each line that it prints.
        ended: Called from another thread once it is over.
    """

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None], ended: Callable[[], None]) -> None:
        self._say, self._ended = say, ended
        received, result = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid()), str(result)],
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[result],
            start_new_session=True,  # Ctrl-C and `ray job stop` reach it once, from here
        )
        os.close(result)
        self._result = os.fdopen(received, "rb")

    def begin(self, call: Callable[[], Any]) -> None:
        """Has it do something; the call is pickled."""
        with suppress(BrokenPipeError):  # it has ended already, and the code says so
            assert self._process.stdin is not None
            self._process.stdin.write(pickle.dumps(call))
            self._process.stdin.close()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()
        self._process.wait()
        reader.join(5.0)  # a process that it left behind may hold the pipe
        self._ended()

    def _read(self, out: IO[bytes]) -> None:
        for line in out:
            self._say(line.decode(errors="replace").rstrip("\n"))

    def error(self) -> Exception | None:
        """What a stage that is over ended with; None where all is well."""
        code, told = self._process.returncode, self._result.read()
        self._result.close()
        if told:
            found: Exception = pickle.loads(told)  # noqa: S301 (written below)
            return found
        if code == 0:
            return None
        why = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        return AtlasError(f"its process ended with {why}", "look for a lack of memory, then run the same command again")

    def wait(self) -> None:
        """Until it is over."""
        self._process.wait()

    def send(self, number: int) -> None:
        """Sends it a signal; SIGKILL goes to all that it started as well."""
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGKILL else os.kill)(self._process.pid, number)


def main() -> None:
    """The stage's side."""
    from atlas_ray.runs.units import show_units

    owner, result = map(int, sys.argv[1:])
    when_ended(owner, lambda: os.killpg(0, signal.SIGKILL))
    show_units()
    try:
        pickle.load(sys.stdin.buffer)()  # noqa: S301 (written above)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 (told to the process that started it)
        if os.environ.get("ATLAS_VERBOSE"):
            traceback.print_exc()
        with os.fdopen(result, "wb") as out:
            out.write(pickle.dumps(as_ours(error)))
        if isinstance(error, Unresponsive):
            os._exit(1)
        sys.exit(1)


def as_ours(error: Exception) -> AtlasError:
    """Our own errors as they are, others as a sentence."""
    if isinstance(error, AtlasError):
        return error
    return AtlasError(f"{type(error).__name__}: {str(error).strip()[-1500:]}", "`atlas -v ...` shows the traceback")


if __name__ == "__main__":
    main()
