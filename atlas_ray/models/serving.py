"""vLLM's OpenAI-compatible server as a process of our own: started, awaited, and ended with all its children.

Flows in: a model; flows out: its address, while the context lasts.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from atlas_ray.cluster.processes import free_port, when_ended
from atlas_ray.config import EngineConfig
from atlas_ray.errors import AtlasError
from atlas_ray.models.engine import server_options

_POLL_SECONDS = 0.25
_END_SECONDS = 20.0
_MAIN = f"from {__name__} import main; main()"


@contextmanager
def serving(model: str, config: EngineConfig | None = None, *, name: str | None = None) -> Iterator[str]:
    """Serves a model on loopback, without a key.

    Args:
        model: Folder or hub id.
        config: Shape of the engine, and seconds that its start may take; `replicas` does not count.
        name: What clients call the model; None: `model`.

    Yields:
        The base URL, which ends in `/v1`.

    Raises:
        AtlasError: If the server ends or does not answer in time; its last words are in the message.
    """
    config = config or EngineConfig()
    port, options, environment = free_port(), *server_options(model, config)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", name or model, *options]
    with tempfile.TemporaryFile() as log:
        # A process group of its own: what vLLM starts is ended with it.
        server = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(os.getpid()), *arguments],
            env=environment | os.environ | {"PYTHONPATH": os.pathsep.join(_import_path())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _await_health(server, port, time.monotonic() + config.start_s, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _end(server)


def main() -> None:
    """The server's process: ends, with its group, when the process that started it does."""
    when_ended(int(sys.argv.pop(1)), lambda: os.killpg(0, signal.SIGKILL))
    # `vllm serve` asks for the version of a package that is called otherwise on CPU.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def _import_path() -> list[str]:
    """Where the server finds this package: where this process found it, installed or not."""
    return [str(Path(__file__).parents[2]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _await_health(server: subprocess.Popen[bytes], port: int, until: float, log: IO[bytes]) -> None:
    while time.monotonic() < until:
        if server.poll() is not None:
            raise AtlasError(f"the model server ended with code {server.returncode}: {_last_words(log)}", "see above")
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return
        time.sleep(_POLL_SECONDS)
    raise AtlasError(
        f"the model server did not answer in time: {_last_words(log)}", "give it more time (engine.start_s) or memory"
    )


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:] or "it said nothing"


def _end(server: subprocess.Popen[bytes]) -> None:
    """Asks the server to stop, then ends whatever is left of its group."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(_END_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
