"""Whether a cluster can hold what a stage needs, said before the stage holds anything.

Flows in: bundles (the CPUs and GPUs that one actor takes, on one node) and the cluster's nodes; flows out: nothing, or
a sentence with what was asked for, what the cluster has, and what to change. What others hold counts as the cluster's:
they will give it back. What fitted may not do so any more once nodes are lost: that is said as well.

Nodes carry labels (`ray start --labels`, the groups of a cluster file), and what is placed asks for them: training for
the nodes of the group `train`, engines for those of `rollout`, where a cluster has such groups.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from atlas_ray.errors import PlacementError
from atlas_ray.runs.progress import console

Resources = Mapping[str, float]
Labels = Mapping[str, str]

GROUP = "group"  # the label by which the files under cluster/ tell their groups apart
TRAIN, ROLLOUT = "train", "rollout"
PLACE = "lower engine.replicas or engine.tensor_parallel, or add nodes (ray.num_cpus where Ray runs here alone)"

_log = logging.getLogger(__name__)
_KINDS = ("CPU", "GPU")
_LOOK_SECONDS = 1.0
_MANY = 999  # nodes of a group without a bound
_JOIN_SECONDS = 20.0  # that nodes of a cluster which is only starting may take to join


def fits(bundle: Resources, count: int, nodes: Iterable[Resources]) -> bool:
    """Whether so many bundles fit, each on one node."""
    return sum(_room(bundle, node) for node in nodes) >= count


def labels_for(group: str, wanted: Labels | None = None, bundle: Resources | None = None) -> dict[str, str]:
    """Labels of the nodes on which something is to run; none where any node will do.

    Args:
        group: `TRAIN` or `ROLLOUT`: whose nodes it gets, where there is such a group, or an autoscaler may start it.
        wanted: The labels that the settings name, in the group's stead.
        bundle: What an actor takes; a group whose nodes are too small for it is passed over.
    """
    if wanted is not None:
        return dict(wanted)
    labels = {GROUP: group}
    nodes = [*_nodes(labels), *(node for node, _ in _node_groups(labels))]
    return labels if any(_room(bundle or {}, node) for node in nodes) else {}


def require(bundle: Resources, count: int, what: str, remedy: str, labels: Labels | None = None) -> None:
    """Returns once the cluster has room for all bundles, or an autoscaler may make it.

    Args:
        bundle: What one of them takes, e.g. CPU 1 and GPU 4.
        count: How many.
        what: Their name, for people, e.g. "engine replicas".
        remedy: What to change where they do not fit.
        labels: Of the nodes that may hold them; None: any.

    Raises:
        PlacementError: If they cannot be placed, nor after the time that further nodes may take to join.
    """
    nodes = partial(_nodes, labels)
    require_within(bundle, count, what, remedy, nodes, _node_groups(labels), 0.0 if _alone() else None, labels)


def require_within(
    bundle: Resources,
    count: int,
    what: str,
    remedy: str,
    nodes: Callable[[], Sequence[Resources]],
    groups: Sequence[tuple[Resources, int]],
    seconds: float | None = None,
    labels: Labels | None = None,
) -> None:
    """The same for nodes and an autoscaler's groups (a node's resources, most nodes) that the caller names."""
    until = time.monotonic() + (_JOIN_SECONDS if seconds is None else seconds)
    asked, said = f"{count} {what} of {told(bundle)} each", False
    if labels:
        asked += " on nodes with " + ", ".join(f"{key}={value}" for key, value in labels.items())
    while not fits(bundle, count, here := nodes()):
        if sum(_room(bundle, node) * most for node, most in groups) >= count:
            _log.warning("%s: the cluster has %s now, and its autoscaler is asked for more", asked, held(here))
            return
        if time.monotonic() >= until:
            may = (
                f"; its autoscaler may add {held([n for n, m in groups for _ in range(min(m, 99))])}" if groups else ""
            )
            which = " of that kind" if labels else ""
            raise PlacementError(f"cannot place {asked}: the cluster has {held(here)}{which}{may}", remedy)
        if not said:
            left = until - time.monotonic()
            console.print(f"waiting {left:.0f} s at most for {asked}: the cluster has {held(here)}", style="yellow")
            said = True
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))


@contextmanager
def watched(
    bundle: Resources,
    count: int,
    what: str,
    nodes: Callable[[], Sequence[Resources]] | None = None,
    labels: Labels | None = None,
) -> Iterator[None]:
    """Says so while bundles do not fit, for nodes were lost or have yet to join: whoever runs them waits in silence.

    Args:
        bundle: What one of them takes.
        count: How many.
        what: Their name, for people.
        nodes: Resources of the nodes that are there; None: Ray's.
        labels: Of the nodes that may hold them, among Ray's; None: any.
    """
    over = threading.Event()

    def watch() -> None:
        short = False
        while not over.wait(_LOOK_SECONDS):
            here = nodes() if nodes else _nodes(labels)
            if fits(bundle, count, here) is short:
                short = not short
                asked = f"{count} {what} of {told(bundle)} each"
                said = f"waiting for room for {asked}" if short else f"there is room for {asked}"
                console.print(f"{said}; the cluster has {held(here)}", style="yellow")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def gpus() -> float:
    """GPUs that the cluster has, or else may add."""
    import ray

    held = float(ray.cluster_resources().get("GPU", 0.0))
    return held or sum(node.get("GPU", 0.0) * most for node, most in _node_groups())


def nodes_at_most() -> list[tuple[Resources, Labels]]:
    """The nodes that are there, with their labels, and those that an autoscaler may add."""
    import ray

    found: list[tuple[Resources, Labels]] = [(n["Resources"], n["Labels"]) for n in ray.nodes() if n["Alive"]]
    for resources, most, labels in _groups():
        there = sum(any(own.get(key) == name for key, name in labels.items()) for _, own in found)
        found += [(resources, labels)] * (min(most, _MANY) - there)
    return found


def engine_gpus(wanted: int) -> int:
    """GPUs that an engine takes: on a cluster without any it runs on CPUs, unless it is split over several."""
    return wanted if wanted > 1 or gpus() else 0


def place_engines(gpus: int, replicas: int, wanted: Labels | None = None) -> dict[str, Any]:
    """Ray's options for actors that hold an engine each, once the cluster has room for them.

    Args:
        gpus: That an engine takes where there are any; 0 for a model that takes none.
        replicas: How many engines.
        wanted: Labels of the nodes, as the settings name them; None: the group for rollouts, if it holds the engine.
            A model that takes no GPU runs anywhere.

    Raises:
        UserError: If they cannot be placed.
    """
    need = {"CPU": 1, "GPU": engine_gpus(gpus)}
    labels = labels_for(ROLLOUT, wanted, need) if gpus else {}
    require(need, replicas, "engine replicas", PLACE, labels)
    return {
        "num_cpus": need["CPU"],
        "num_gpus": need["GPU"],
        "label_selector": labels or None,
        "scheduling_strategy": "SPREAD",
    }


def beside_driver() -> dict[str, Any]:
    """Ray's options for an actor that others ask: it lives on this node, as long as the driver does."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}


def _alone() -> bool:
    """Whether this process started Ray for itself: no further node will join."""
    from ray._private import worker  # the one place where Ray tells

    node = worker._global_node
    return node is not None and node.is_head()


def _nodes(labels: Labels | None = None) -> list[Resources]:
    """What each node has that is alive to Ray and carries the labels."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"] and carries(n["Labels"], labels)]


def carries(held: Labels, wanted: Labels | None) -> bool:
    """Whether a node's labels are those that are asked for, in Ray's forms: `a`, `!a`, `in(a, b)`, `!in(a, b)`."""
    for key, asked in (wanted or {}).items():
        value = asked.removeprefix("!")
        listed = value[3:-1] if value.startswith("in(") and value.endswith(")") else None
        values = [value] if listed is None else [one.strip() for one in listed.split(",")]
        if (held.get(key) in values) == asked.startswith("!"):
            return False
    return True


def _room(bundle: Resources, node: Resources) -> int:
    """How many bundles one node holds."""
    return min((int(node.get(kind, 0.0) / need + 1e-9) for kind, need in bundle.items() if need), default=sys.maxsize)


def told(resources: Resources) -> str:
    """E.g. "1 CPU and 4 GPU"."""
    return " and ".join(f"{resources[k]:g} {k}" for k in _KINDS if resources.get(k)) or "nothing"


def held(nodes: Iterable[Resources]) -> str:
    """E.g. "2 nodes of 8 CPU and 4 GPU, 1 node of 2 CPU"."""
    counts = Counter(told(node) for node in nodes)
    return ", ".join(f"{n} node{'s' if n > 1 else ''} of {told}" for told, n in counts.items()) or "no nodes"


def _node_groups(labels: Labels | None = None) -> list[tuple[Resources, int]]:
    """An autoscaler's kinds of node with the labels, and the most that it may start; none where Ray reports none."""
    return [(resources, most) for resources, most, own in _groups() if carries(own, labels)]


def _groups() -> list[tuple[Resources, int, Labels]]:
    """The same of all kinds, with their labels.

    Ray tells a group's name, not its labels: a group is taken to be labelled as those under cluster/ are, by its name.
    """
    from ray._private.state import state  # the one place where Ray tells

    config = state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [
        (
            dict(g.resources),
            g.max_count if g.max_count >= 0 else sys.maxsize,
            {GROUP: g.name, "ray.io/node-group": g.name},
        )
        for g in groups
    ]
