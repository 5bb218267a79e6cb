"""A Ray cluster of several nodes on this machine (`cluster/local/nodes.sh`) that takes jobs and loses nodes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NODES = ROOT / "cluster" / "local" / "nodes.sh"
_DASHBOARD = "http://127.0.0.1:8265"  # within the head's namespace
_PATIENCE = 240.0
_DEATHS = f"""
from ray.util.state import list_nodes
listed = list_nodes({_DASHBOARD!r}, detail=True, raise_on_missing_output=False)
print([n.end_time_ms for n in listed if n.state == "DEAD"])
"""


def namespaces_or_skip() -> None:
    """Skips where there can be no network namespaces; in CI that is a failure."""
    if os.geteuid() == 0 and shutil.which("ip") is not None:
        return
    said = "network namespaces want root and iproute2"
    pytest.fail(said) if os.environ.get("CI") == "true" else pytest.skip(said)


class Nodes:
    """The cluster, with 2 CPUs a node and token authentication; node 0 is the head.

    Args:
        folder: Of the cluster's files; its name has to be short.
    """

    def __init__(self, folder: str) -> None:
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self._environment |= {"NODES_DIR": folder, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self._lost: dict[int, float] = {}

    def __call__(self, *arguments: str) -> str:
        """What one of the script's commands prints; the test fails where it does."""
        ended = subprocess.run([NODES, *arguments], env=self._environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{arguments}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
        return ended.stdout

    def lose(self, node: int, fault: str) -> None:
        """Kills a node or cuts it off."""
        self._lost[node] = time.time()
        self(fault, str(node))

    def seconds_until_noticed(self, node: int) -> float:
        """From the loss of a node to the time at which Ray called it dead, by Ray's own record."""
        began, deadline = self._lost[node], time.monotonic() + 60
        while time.monotonic() < deadline:
            ends = json.loads(self("exec", "python", "-c", _DEATHS))
            if ends and max(ends) / 1000 > began:
                return float(max(ends)) / 1000 - began
        return pytest.fail(f"node {node} is alive to Ray a minute after its loss")

    def restore(self) -> None:
        """Lost nodes join again."""
        for node in [*self._lost]:
            self("start", str(node))
            del self._lost[node]

    def renew(self) -> None:
        """Another cluster in this one's place."""
        self("down")
        self("up", "2")
        self._lost.clear()

    def submit(self, job: str, config: Path, modules: Path | None = None) -> Job:
        """Sends `jobs/<job>.py` by Ray's own command and follows it; its driver alone finds modules in a folder."""
        command = ["--", "python", f"jobs/{job}.py", "--config", str(config)]
        if modules is not None:
            found = f'PYTHONPATH="$PYTHONPATH:{modules}" exec {shlex.join(command[1:])}'
            command = ["--", "sh", "-c", found]
        return self._follow(config.with_suffix(".log"), "--working-dir", ".", *command)

    def run_recipe(self, log: Path, *arguments: str) -> Job:
        """Runs a recipe as a job in the source tree itself.

        Nodes of one machine share the folder that a working directory is unpacked in, and the second one unpacks it
        anew, below the feet of a driver that runs in the first.
        """
        environment = json.dumps({"env_vars": {"PYTHONPATH": str(ROOT)}})
        job = ["python", str(ROOT / "jobs" / "run_recipe.py"), *arguments]
        return self._follow(log, "--runtime-env-json", environment, "--", *job)

    def _follow(self, log: Path, *options: str) -> Job:
        command = ["exec", "ray", "job", "submit", "--address", _DASHBOARD, *options]
        with log.open("a") as out:
            client = subprocess.Popen(
                [NODES, *command], cwd=ROOT, env=self._environment, stdout=out, stderr=subprocess.STDOUT
            )
        return Job(client, log)


class Job:
    """A job under way, as the command that submitted it sees it."""

    def __init__(self, client: subprocess.Popen[Any], log: Path) -> None:
        self._client, self._log = client, log

    @property
    def said(self) -> str:
        """All that it and earlier ones on the same configuration printed."""
        return self._log.read_text()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Until a condition holds; the test fails where the job ends before it does."""
        deadline = time.monotonic() + _PATIENCE
        while not reached():
            assert time.monotonic() < deadline, self.said[-3000:]
            try:
                code = self._client.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the job ended by itself with code {code}: {self.said[-3000:]}")

    def fail(self, seconds: float = _PATIENCE) -> None:
        """Until it has ended otherwise."""
        assert self._client.wait(timeout=seconds) != 0

    def succeed(self, seconds: float = _PATIENCE) -> None:
        """Until it has ended well."""
        code = self._client.wait(timeout=seconds)
        assert code == 0, self.said[-3000:]
        assert "succeeded" in self.said.splitlines()[-2]
