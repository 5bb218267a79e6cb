"""Ray for one process listens on all addresses of the machine: only who has that process's token is heard."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.cluster import connection
from atlas_ray.config import RayConfig
from atlas_ray.errors import AtlasError, RayLost

ASK = (
    "import os; from atlas_ray.cluster.connection import _require_token as ask; "
    "ask(); print(*map(os.environ.get, {names}))"
)
START = """
import sys
from atlas_ray.config import RayConfig
from atlas_ray.cluster.connection import connect
connect(RayConfig(num_cpus=1))
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""

ROOT = Path(__file__).parents[2]


def environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(ROOT), "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"} | variables


@pytest.mark.parametrize(("set_", "mode"), [({}, "token"), ({"RAY_AUTH_MODE": "disabled"}, "disabled")])
def test_each_process_has_a_token_of_its_own_unless_told_otherwise(
    set_: dict[str, str], mode: str, tmp_path: Path
) -> None:
    code = [sys.executable, "-c", ASK.format(names=("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"))]
    said = [
        subprocess.run(
            code, env=environment(tmp_path, **set_), capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [found for found, _ in said] == [mode, mode]
    tokens = {token for _, token in said}
    assert tokens == {"None"} if mode == "disabled" else len(tokens) == 2 and all(len(t) == 64 for t in tokens)
    assert not (tmp_path / ".ray").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "[::1]:1", "127.0.0.1:99999", "no.invalid:1"])
def test_an_address_where_nobody_listens_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 0.6)
    with pytest.raises(AtlasError, match=r"cannot reach Ray at .*: ") as refused:
        connection._check_reachable(address)
    assert address in refused.value.what


@pytest.mark.slow
def test_ray_starts_where_temporary_files_lie_deep(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    given = environment(tmp_path, TMPDIR=str(deep))
    done = subprocess.run(
        [sys.executable, "-c", START], env=given, input="", capture_output=True, text=True, check=True
    )
    assert f"{deep}/ray(TMPDIR)istoolongforsockets" in "".join(done.stderr.split())  # a screen breaks a long path
    assert ":" in done.stdout  # an address


def test_a_ray_that_cannot_start_here_says_so_and_where_it_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied", "/var/ray")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(
        AtlasError, match=r"Ray does not start on this machine: .*Permission denied.*/var/ray"
    ) as refused:
        connection.connect(RayConfig())
    assert "RAY_TMPDIR" in refused.value.remedy


def test_a_cluster_without_nodes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", dict)
    monkeypatch.setattr(ray, "available_resources", dict)
    with pytest.raises(RayLost, match="no node of the Ray cluster is alive\n  start the cluster again"):
        connection.waiting_for(1, 2, 61.0, 0)


@pytest.mark.slow
def test_a_stranger_on_the_network_gets_nothing_from_a_laptops_ray(tmp_path: Path) -> None:
    import psutil

    with subprocess.Popen(
        [sys.executable, "-c", START],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            assert _refused(address, "/ray.rpc.NodeInfoGcsService/GetClusterId")
            raylets = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "raylet"]
            ports = [c.laddr.port for c in raylets[0].net_connections() if c.status == psutil.CONN_LISTEN]
            calls = [f"/ray.rpc.NodeManagerService/{name}" for name in ("RequestWorkerLease", "GetNodeStats")]
            assert any(all(_refused(f"127.0.0.1:{port}", call) for call in calls) for port in ports)
            # In our own words, for another `atlas` that has no token or another one.
            code = f"from atlas_ray.cluster.connection import _check_reachable; _check_reachable({address!r})"
            wrong = environment(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
            for given, why in ((environment(tmp_path), "none was sent"), (wrong, "the one that was sent is wrong")):
                done = subprocess.run(
                    [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False
                )
                assert f"UserError: the cluster at {address} asks for a token: {why}" in done.stderr
        finally:
            process.communicate("")
    assert not (tmp_path / ".ray" / "auth_token").exists()


def _refused(address: str, call: str) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(call)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False
