"""A Ray cluster of three nodes in this process's children, two of them labelled; says where what is placed runs.

Run as a program (`python -m tests.support.labelled_nodes FOLDER MODEL`): a session of pytest holds a Ray of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlas_ray.cluster import placement
from atlas_ray.config import EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.training import stage


class Spec:
    """A policy named by the group of the node that it runs on; it asks for a GPU where there are any."""

    gpus = 1

    async def build(self) -> Any:
        import ray

        from atlas_ray.rollouts.scripted import ScriptedPolicy

        policy = ScriptedPolicy("expert")
        policy.name = ray.get_runtime_context().get_node_labels().get("group", "none")
        return policy


def groups_of_engines(labels: dict[str, str] | None, replicas: int = 2) -> list[str]:
    from atlas_ray.environments import registry
    from atlas_ray.models.protocol import Sampling
    from atlas_ray.rollouts.episode import EpisodeRequest
    from atlas_ray.rollouts.pool import RolloutPool

    tasks = registry.get("maze").tasks("test", 3 * replicas)
    with RolloutPool(Spec(), EngineConfig(replicas=replicas, episodes_in_flight=3, label_selector=labels)) as pool:
        played = pool.run(EpisodeRequest(task, Sampling(), seed=0) for task in tasks)
        return sorted({episode.policy for _, episode in played})


def groups_of_workers(folder: Path, model: str, labels: dict[str, str] | None) -> list[str]:
    from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE, a_config

    folder.mkdir()
    inner: Callable[[dict[str, Any]], Any] = stage._work

    def work(given: dict[str, Any]) -> Any:
        import ray

        (folder / str(os.getpid())).write_text(ray.get_runtime_context().get_node_labels().get("group", "none"))
        return inner(given)

    stage._work = work
    try:
        config = a_config(run=str(folder / "run"), model=model, num_workers=2, epochs=1, label_selector=labels)
        stage.train(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    finally:
        stage._work = inner
    return sorted(file.read_text() for file in folder.iterdir() if file.is_file())


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "placed"


def main(folder: str, model: str) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    for group, cpus in (("rollout", 4), ("train", 2)):
        cluster.add_node(num_cpus=cpus, labels={"group": group})
    ray.init(address=cluster.address, logging_level="error", log_to_driver=False)
    placement._JOIN_SECONDS = 0.0  # all nodes are there
    path = Path(folder)
    found = {
        "engines": groups_of_engines(None),
        "engines elsewhere": groups_of_engines({"group": "!rollout"}),
        "training": groups_of_workers(path / "placed", model, None),
        "too many": refusal(lambda: groups_of_engines(None, replicas=5)),
        "nowhere": refusal(lambda: groups_of_workers(path / "refused", model, {"zone": "moon"})),
    }
    print(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
