"""cluster/local/nodes.sh: nodes in network namespaces that can be killed and cut off, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.nodes import NODES

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces want root and iproute2"
)
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Nodes:
    """The script with its folder and PATH."""

    environment: dict[str, str]

    def __call__(self, *arguments: str, **settings: str) -> Done:
        own = self.environment | settings
        return subprocess.run([NODES, *arguments], env=own, capture_output=True, text=True, check=False)

    def namespaces(self) -> list[str]:
        """This cluster's; others may be under way."""
        folder = self.environment["NODES_DIR"]
        sum_ = subprocess.run(["cksum"], input=folder, capture_output=True, text=True, check=True).stdout.split()[0]
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        names = sorted(line.split()[0] for line in listed.splitlines())
        return [name for name in names if name.startswith(f"a{int(sum_):08x}-")]


def processes(namespace: str) -> list[str]:
    return subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """The script, with a `ray` in place of Ray's that starts one process, or fails while a file is there."""
    ray = tmp_path / "ray"
    ray.write_text(
        f"#!/bin/sh\n[ ! -e {tmp_path}/broken ] || exit 1\nsleep 600 >/dev/null 2>&1 &\n"
        f'echo "$RAY_AUTH_MODE $@" >> {tmp_path}/called\n'
    )
    ray.chmod(0o755)
    with TemporaryDirectory() as short:
        made = Nodes(os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NODES_DIR": f"{short}/c"})
        yield made
        made("down")


def reach(namespace: str, address: str) -> str:
    command = ["timeout", "5", "ip", "netns", "exec", namespace, "bash", "-c", f"exec 3<>/dev/tcp/{address}/9"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_a_node_is_killed_another_cut_off_both_join_again_and_nothing_stays(nodes: Nodes, tmp_path: Path) -> None:
    assert nodes("up", "3").returncode == 0
    new = nodes.namespaces()
    assert [name.rsplit("-", 1)[1] for name in new] == ["0", "1", "2", "net"]
    calls = (tmp_path / "called").read_text().splitlines()
    assert all(call.startswith("token start") for call in calls)  # token authentication, on every node
    assert "--dashboard-host=127.0.0.1" in calls[0]
    head = calls[1].split("--address=")[1].split(":")[0]
    assert [len(processes(name)) for name in new[:3]] == [1, 1, 1]

    assert nodes("up", "2").returncode == 2  # one cluster a folder
    assert nodes("kill", "1").returncode == 0
    assert [len(processes(name)) for name in new[:3]] == [1, 0, 1]

    assert "refused" in reach(new[2], head)
    assert nodes("cut", "2").returncode == 0
    assert "unreachable" in reach(new[2], head)
    [old] = processes(new[2])

    # either joins again, without what was left of it
    old = processes(new[2])
    assert nodes("start", "1").returncode == nodes("start", "2").returncode == 0
    assert [len(processes(name)) for name in new[:3]] == [1, 1, 1]
    assert processes(new[2]) != old
    assert "refused" in reach(new[2], head)
    assert (tmp_path / "called").read_text().splitlines()[-1].startswith(f"token start --address={head}:")

    assert nodes("down").returncode == 0
    assert nodes.namespaces() == []


def test_the_head_can_be_left_to_the_driver(nodes: Nodes, tmp_path: Path) -> None:
    assert nodes("up", "2", NODES_HEAD_CPUS="0").returncode == 0
    calls = (tmp_path / "called").read_text().splitlines()
    assert [call.split("--num-cpus=")[1].split()[0] for call in calls] == ["0", "2"]


def test_a_node_that_does_not_start_takes_the_others_away(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    assert nodes("up", "2").returncode != 0
    assert nodes.namespaces() == []
