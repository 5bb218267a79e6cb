"""What cannot be placed is said before a stage holds anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas_ray.cluster import placement
from atlas_ray.cluster.placement import fits, require_within
from atlas_ray.config import EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.models.engine import EngineSpec
from atlas_ray.rollouts.pool import RolloutPool
from tests.support.training import write_base

ROOT = Path(__file__).parents[2]
ENGINE = {"CPU": 1, "GPU": 4}


@pytest.mark.parametrize(
    ("count", "nodes", "placed"),
    [
        (1, [{"CPU": 8, "GPU": 4}], True),
        (2, [{"CPU": 8, "GPU": 4}], False),
        (1, [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}], False),  # a tensor-parallel group stays on one node
        (3, [{"CPU": 8, "GPU": 8}, {"CPU": 1, "GPU": 4}, {"CPU": 16}], True),  # a mixed cluster
        (1, [{"GPU": 4}], False),  # GPUs without a CPU beside them
        (1, [], False),
    ],
)
def test_every_bundle_needs_one_node(count: int, nodes: list[dict[str, float]], placed: bool) -> None:
    assert fits(ENGINE, count, nodes) is placed


def test_fractions_of_a_gpu_add_up() -> None:
    assert fits({"CPU": 1, "GPU": 1 / 3}, 3, [{"CPU": 3, "GPU": 1}])
    assert not fits({"CPU": 1, "GPU": 1 / 3}, 4, [{"CPU": 4, "GPU": 1}])


def test_the_message_has_what_was_asked_what_there_is_and_what_to_change() -> None:
    nodes = [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 2}, {"CPU": 4}]
    with pytest.raises(UserError) as refused:
        require_within(ENGINE, 2, "engine replicas", "lower it", lambda: nodes, [({"CPU": 8, "GPU": 2}, 9)], 0)
    assert str(refused.value) == (
        "cannot place 2 engine replicas of 1 CPU and 4 GPU each: the cluster has 2 nodes of 8 CPU and 2 GPU,"
        " 1 node of 4 CPU; its autoscaler may add 9 nodes of 8 CPU and 2 GPU\n  lower it"
    )
    assert refused.value.exit_code == 2


def test_an_autoscaler_that_may_add_enough_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    require_within(ENGINE, 2, "engine replicas", "", lambda: [{"CPU": 2}], [({"CPU": 8, "GPU": 4}, 2)], 0)
    assert "1 node of 2 CPU now, and its autoscaler is asked for more" in caplog.text


def test_nodes_that_are_joining_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.time, "sleep", lambda _: None)
    seen = iter([[], [{"CPU": 2}], [{"CPU": 8, "GPU": 4}]])
    require_within(ENGINE, 1, "engine replicas", "", lambda: next(seen), [])


def test_a_node_that_is_lost_and_one_that_joins_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(placement, "_LOOK_SECONDS", 0.001)
    one, seen = {"CPU": 2.0}, threading.Event()
    states = iter([[one, one], [one], [one], [one, one], [one, one]])

    def nodes() -> list[dict[str, float]]:
        if (state := next(states, None)) is None:
            seen.set()
        return state or [one, one]

    with placement.watched({"CPU": 2}, 2, "training workers", nodes):
        assert seen.wait(10)
    assert " ".join(capsys.readouterr().err.split()) == (
        "waiting for room for 2 training workers of 2 CPU each; the cluster has 1 node of 2 CPU"
        " there is room for 2 training workers of 2 CPU each; the cluster has 2 nodes of 2 CPU"
    )


@pytest.mark.parametrize(
    ("wanted", "carried"),
    [
        (None, True),
        ({"group": "train"}, True),
        ({"group": "rollout"}, False),
        ({"group": "!rollout"}, True),
        ({"group": "in(rollout, train)"}, True),
        ({"group": "!in(rollout, train)"}, False),
        ({"group": "train", "zone": "a"}, False),
        ({"zone": "!a"}, True),
    ],
)
def test_labels_are_compared_as_ray_does(wanted: dict[str, str] | None, carried: bool) -> None:
    assert placement.carries({"group": "train"}, wanted) is carried


@pytest.mark.parametrize(
    ("groups", "bundle", "labels"),
    [
        ([("train", 8, 2), ("rollout", 1, 16)], {"CPU": 1, "GPU": 1}, {"group": "rollout"}),
        ([("train", 8, 2), ("rollout", 1, 16)], {"CPU": 1, "GPU": 4}, {}),  # a judge of 70 B: none of them holds it
        ([("train", 8, 2)], {"CPU": 1, "GPU": 1}, {}),  # no such group
        ([], {"CPU": 1}, {}),
    ],
)
def test_engines_go_to_the_group_for_rollouts_if_it_holds_them(
    monkeypatch: pytest.MonkeyPatch,
    groups: list[tuple[str, int, int]],
    bundle: dict[str, float],
    labels: dict[str, str],
) -> None:
    """The groups of an autoscaler count, though none of their nodes has been started."""
    from ray._private.state import state

    named = [SimpleNamespace(name=n, resources={"CPU": 8, "GPU": gpus}, max_count=most) for n, gpus, most in groups]
    monkeypatch.setattr(state, "get_cluster_config", lambda: SimpleNamespace(node_group_configs=named))
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {}, "Labels": {}}])
    assert placement.labels_for(placement.ROLLOUT, None, bundle) == labels
    assert placement.labels_for(placement.ROLLOUT, {"zone": "a"}, bundle) == {"zone": "a"}
    trained = {"group": "train"} if groups else {}
    assert placement.labels_for(placement.TRAIN) == trained


@pytest.mark.slow
def test_training_and_engines_run_on_the_nodes_that_are_labelled_for_them(tmp_path: Path) -> None:
    model = write_base(tmp_path / "base")
    program = [sys.executable, "-m", "tests.support.labelled_nodes", str(tmp_path), model]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("engines") == ["rollout"]
    assert "rollout" not in found.pop("engines elsewhere")
    assert found.pop("training") == ["train", "train"]
    refused = {what: words.partition("\n")[0] for what, words in found.items()}
    assert refused == {
        "too many": "cannot place 5 engine replicas of 1 CPU each on nodes with group=rollout: "
        "the cluster has 1 node of 4 CPU of that kind",
        "nowhere": "cannot place 2 training workers of 1 CPU each on nodes with zone=moon: "
        "the cluster has no nodes of that kind",
    }


@pytest.mark.usefixtures("ray_cluster")
def test_a_pool_that_cannot_be_placed_starts_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything waited for where Ray runs for this process alone: no node can join."""
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: pytest.fail("it waits"))
    monkeypatch.setattr(placement, "time", clock)
    with pytest.raises(UserError, match="cannot place 99 engine replicas of 1 CPU each: the cluster has 1 node of 4"):
        RolloutPool(EngineSpec("none", "no-such-model", EngineConfig()), EngineConfig(replicas=99))


@pytest.mark.usefixtures("ray_cluster")
def test_an_engine_that_is_split_over_gpus_is_not_played_on_cpus() -> None:
    with pytest.raises(UserError, match="cannot place 1 engine replicas of 1 CPU and 4 GPU each: the cluster has 1"):
        RolloutPool(EngineSpec("none", "no-such-model", EngineConfig(tensor_parallel=4)))
