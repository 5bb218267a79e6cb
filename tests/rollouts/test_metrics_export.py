"""What a run tells Ray's metrics, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import pytest

from atlas_ray.config import EngineConfig
from atlas_ray.environments.registry import get
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.metrics import METRICS
from atlas_ray.rollouts.pool import FixedSpec, RolloutPool
from atlas_ray.rollouts.scripted import ScriptedPolicy

DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana.json"
OF_RAY = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_cpu_utilization", "ray_node_mem_used"}


def exported(name: str) -> str:
    """As Prometheus sees it."""
    return f"ray_{name}_total" if METRICS[name].kind == "Counter" else f"ray_{name}"


def asked() -> set[str]:
    """Metrics in the dashboard's expressions."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return {name for expression in expressions for name in re.findall(r"\bray_\w+", expression)}


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    assert asked() - OF_RAY == {exported(name) for name in METRICS}
    assert asked() & OF_RAY == OF_RAY


def test_the_dashboard_groups_by_tags_that_the_metrics_have() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            names = [n for n in METRICS if exported(n) in target["expr"]]
            for tags in re.findall(r"by \(([^)]*)\)", target["expr"]) if names else []:
                assert {tag.strip() for tag in tags.split(",")} <= set(METRICS[names[0]].tags), target["expr"]


def scrape() -> dict[str, float]:
    """What the node's agent exports now, added up over tags."""
    import ray

    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, float] = {}
    for line in lines:
        if match := re.fullmatch(r"(ray_atlas_\w+)(\{.*\})? (\S+)", line):
            found[match[1]] = found.get(match[1], 0.0) + float(match[3])
    return found


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_exports_what_it_played() -> None:
    before = scrape()

    def grown(now: dict[str, float], what: str) -> float:
        name = f"ray_atlas_{what}_total"
        return now.get(name, 0.0) - before.get(name, 0.0)

    requests = [EpisodeRequest(task, Sampling(), seed=0) for task in get("maze").tasks("test", 5)]
    with RolloutPool(FixedSpec(ScriptedPolicy("expert")), EngineConfig(episodes_in_flight=4)) as pool:
        turns = sum(episode.rounds for _, episode in pool.run(requests))
        wanted = {"ray_atlas_episodes_total", "ray_atlas_episodes_in_flight", "ray_atlas_replicas_ready"}
        deadline, found = time.monotonic() + 60, dict[str, float]()
        while not (wanted <= found.keys() and grown(found, "episodes") == 5) and time.monotonic() < deadline:
            time.sleep(0.2)
            found = scrape()
    assert wanted <= found.keys()
    assert grown(found, "episodes") == 5
    assert grown(found, "turns") == turns
