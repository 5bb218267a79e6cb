"""What the soak counts: episodes by id, memory by kind of process and along a line. Of its cluster nothing stays."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bench.soak import NODES, Accounts, Cluster, Server, account
from bench.soak_memory import LASTING, Sample, growth, kind_of, measure


def at(seconds: float, driver: float, replicas: float = 0.0, complete: bool = True) -> Sample:
    return Sample(seconds, {"driver": driver, "replicas": replicas}, complete, 0)


def test_growth_is_that_of_the_last_two_thirds_while_all_is_there() -> None:
    samples = [
        at(0, 1000),  # too early
        at(30, 100, 100),
        at(50, 500, complete=False),
        at(60, 103, 94),  # 3 more in the driver, 6 less in a younger replica
        at(90, 106, 100),
        at(120, 900),  # too late
    ]
    assert growth(samples, 90, ["driver"]) == pytest.approx((100, 106))
    assert growth(samples, 90, ["replicas"]) == pytest.approx((98, 98))
    assert growth(samples, 90) == pytest.approx((198, 204))
    assert all(math.isnan(size) for size in growth(samples[:4], 90))


@pytest.mark.parametrize(
    ("node", "words", "kind"),
    [
        (0, ["/venv/bin/python", "-m", "bench.soak_player", "/tmp/s/settings.json"], "driver"),
        (0, ["/venv/bin/python", "-c", "from atlas_ray.environments.http.server import serve; serve()"], "servers"),
        (0, ["/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp"], "head's GCS"),
        (0, ["/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "head's raylet"),
        (0, ["/venv/bin/python", "-u", "/ray/dashboard/dashboard.py"], "head's agents"),
        (1, ["/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=x"], "nodes' raylets"),
        (2, ["/venv/bin/python", "-u", "/ray/dashboard/agent.py"], "nodes' agents"),
        (1, ["ray::Replica.ended"], "replicas"),
        (2, ["ray::IDLE", "", ""], "idle workers"),
    ],
)
def test_processes_are_told_apart_by_their_node_and_command(node: int, words: list[str], kind: str) -> None:
    assert kind_of(node, words) == kind
    assert (kind in LASTING) == (kind == "driver" or kind.startswith("head's"))


def test_processes_that_are_gone_do_not_count() -> None:
    sizes, pids = measure([(1, os.getpid()), (1, 2**22 + 1)])
    assert pids == {"nodes' agents": [os.getpid()]}
    assert sizes["nodes' agents"] > 1


def test_every_episode_is_wanted_and_comes_and_stays_once() -> None:
    assert account({"a", "b"}, ["b", "a"], ["a", "b"]) == Accounts(2, 2, 0, 0, 0)
    assert account({"a", "b"}, ["b", "a"], ["a", "b"]).good
    for returned, recorded, found in (
        (["a"], ["a"], Accounts(2, 1, lost=1, twice=0, strange=0)),
        (["a", "b", "a"], ["a", "b"], Accounts(2, 2, lost=0, twice=1, strange=0)),
        (["a", "b"], ["a", "b", "b"], Accounts(2, 2, lost=0, twice=1, strange=0)),
        (["a", "b", "c"], ["a", "b"], Accounts(2, 2, lost=0, twice=0, strange=1)),
    ):
        assert account({"a", "b"}, returned, recorded) == found
        assert not found.good


def asked(cluster: Cluster, server: Server, node: int, token: str) -> str:
    """The status of a node's request for an episode."""
    code = (
        "import sys, urllib.error, urllib.request as r\n"
        "asked = r.Request(sys.argv[1], b'{}', {'Authorization': 'Bearer ' + sys.argv[2]})\n"
        "try: print(r.urlopen(asked, timeout=5).status)\n"
        "except urllib.error.HTTPError as error: print(error.code)"
    )
    words = cluster.within(node, sys.executable, "-c", code, f"{server.url}/wordle/create", token)
    return subprocess.check_output(words, text=True).strip()


def use(cluster: Cluster) -> None:
    with cluster:
        assert [node for node, _ in cluster.pids()] == list(range(NODES))
        server = Server(cluster)
        address = server.url
        assert address.startswith(f"http://{cluster.head}:")
        assert asked(cluster, server, 1, cluster.environment["ATLAS_SERVER_TOKEN"]) == "200"
        assert asked(cluster, server, 1, "guessed") == "401"
        server.kill()
        server.start()
        assert server.url == address
        assert [node for node, _ in cluster.pids()].count(0) == 2
        raise KeyboardInterrupt


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces want root and iproute2")
def test_nodes_reach_the_servers_and_nothing_stays_after_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a process that sleeps in place of Ray's."""
    (tmp_path / "ray").write_text("#!/bin/sh\nsleep 600 >/dev/null 2>&1 &\n")
    (tmp_path / "ray").chmod(0o755)
    handler = signal.getsignal(signal.SIGINT)
    with tempfile.TemporaryDirectory() as name:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", str(tmp_path / "python"))  # `ray` is the one beside it
            cluster = Cluster(Path(name) / "n")
        with pytest.raises(KeyboardInterrupt):
            use(cluster)
        assert not any(Path(name).iterdir())
    own = cluster.within(0)[-1].removesuffix("0")
    assert own not in subprocess.check_output(["ip", "netns", "list"], text=True)
    assert signal.getsignal(signal.SIGINT) is handler
