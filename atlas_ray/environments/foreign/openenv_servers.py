"""Servers of installed OpenEnv packages, started for this process: each at a free port, and ended with it.

Flows in: a package's name; flows out: addresses of servers of it that answer. One more is started where all that there
are play as many episodes as they take.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO

import aiohttp

from atlas_ray.cluster.processes import end_guarded, free_port, start_guarded
from atlas_ray.errors import EnvironmentFailure
from atlas_ray.text import printable

MOST = 16  # servers of one package
_START_SECONDS = 120.0
_LOOK_SECONDS = 0.1
_ASK = aiohttp.ClientTimeout(total=2.0)


@dataclass(frozen=True)
class Package:
    """A package whose server is started here.

    Attributes:
        app: Its application, as `module:name`.
        python: The Python that has it installed.
    """

    app: str
    python: str = sys.executable

    @classmethod
    def of(cls, place: str) -> Package:
        """The one that `[PYTHON:]PACKAGE[:NAME]` names; an application's usual place is `PACKAGE.server.app:app`."""
        python, _, rest = place.partition(":")
        if "/" not in python:
            python, rest = sys.executable, place
        return cls(rest if ":" in rest else f"{rest}.server.app:app", python)


_servers: dict[Package, list[_Server]] = {}


async def addresses(package: Package) -> AsyncIterator[str]:
    """Addresses of the package's servers, one after the other until the caller has found one that is not full.

    Raises:
        EnvironmentFailure: If a server does not start, or as many as may be are full.
    """
    for number in range(MOST):
        servers = _servers.setdefault(package, [])
        if number == len(servers):
            servers.append(_Server(package))
        try:
            yield await servers[number].address()
        except EnvironmentFailure:
            del servers[number:]  # the next episode tries again
            raise
    raise EnvironmentFailure(
        f"{MOST} servers of {package.app} are full", "play fewer episodes at once: engine.episodes_in_flight"
    )


@atexit.register
def end_all() -> None:
    """Ends all servers that this process has started."""
    for servers in _servers.values():
        for server in servers:
            server.end()


class _Server:
    """One process."""

    def __init__(self, package: Package) -> None:
        self._package, self._url = package, f"http://127.0.0.1:{free_port()}"
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (the server writes to it)
        command = [package.python, "-m", "uvicorn", package.app, "--host", "127.0.0.1", "--log-level", "warning"]
        port = self._url.rpartition(":")[2]
        self._guard: subprocess.Popen[bytes] = start_guarded([*command, "--port", port], self._log, dict(os.environ))
        self._until = time.monotonic() + _START_SECONDS
        self._ready = False

    @property
    def alive(self) -> bool:
        return self._guard.poll() is None

    def end(self) -> None:
        """Ends it, with all that it started."""
        end_guarded(self._guard)

    async def address(self) -> str:
        """Its address, once it answers.

        Raises:
            EnvironmentFailure: If it does not.
        """
        async with aiohttp.ClientSession(timeout=_ASK) as http:
            while not self._ready:
                try:
                    async with http.get(f"{self._url}/health") as answer:
                        self._ready = answer.status < 500
                except (aiohttp.ClientError, OSError, TimeoutError):
                    pass
                if not self._ready:
                    self._check()
                    await asyncio.sleep(_LOOK_SECONDS)
        self._check()
        return self._url

    def _check(self) -> None:
        late = not self._ready and time.monotonic() > self._until
        if self.alive and not late:
            return
        self.end()
        self._log.seek(0)
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        why = printable(" | ".join(lines[-3:])[-600:]) or "it said nothing"
        raise EnvironmentFailure(
            f"OpenEnv's server {self._package.app} "
            + (f"did not answer within {_START_SECONDS:.0f} s" if late else "ended")
            + f": {why}",
            f"install the package, and uvicorn, for {self._package.python}, or name that of another environment: "
            "openenv:/path/to/python:PACKAGE",
        )
