"""What a run tells Ray's metrics (Prometheus), and so the dashboard in `cluster/grafana.json`.

Flows in: finished episodes and how many are under way; flows out: counters and gauges, which Ray exports on every node
as `ray_<name>` (a counter with `_total` behind it). A few calls an episode, none a turn or a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from atlas_ray.types import Episode


class Metric(NamedTuple):
    """One metric: what it counts, and by what."""

    kind: str
    words: str
    tags: tuple[str, ...] = ()


METRICS = {
    "atlas_episodes": Metric("Counter", "episodes that ended, spoilt attempts included", ("env", "stop_reason")),
    "atlas_turns": Metric("Counter", "replies of the policy", ("env",)),
    "atlas_generated_tokens": Metric("Counter", "tokens that the policy wrote", ("env",)),
    "atlas_prompt_tokens": Metric("Counter", "tokens of the conversations that it answered", ("env",)),
    "atlas_cached_tokens": Metric("Counter", "those among them that the prefix cache held", ("env",)),
    "atlas_episode_seconds": Metric("Counter", "seconds that episodes took, added up", ("env",)),
    "atlas_episodes_in_flight": Metric("Gauge", "episodes that a replica plays", ("replica",)),
    "atlas_requests_under_way": Metric("Gauge", "requests that a replica's engine works at or holds", ("replica",)),
    "atlas_attempts_waiting": Metric("Gauge", "attempts that are to be made again after failures or deaths"),
    "atlas_replicas_ready": Metric("Gauge", "replicas that have started"),
    "atlas_replica_deaths": Metric("Counter", "replicas that died and were replaced"),
}


class Meter:
    """This process's share of the metrics. Make it where Ray is connected.

    Args:
        replica: The replica's name, where it is one.
    """

    def __init__(self, replica: str = "") -> None:
        from ray.util import metrics

        self._replica = {"replica": replica}
        self._made: dict[str, Any] = {
            name: getattr(metrics, metric.kind)(name, description=metric.words, tag_keys=metric.tags)
            for name, metric in METRICS.items()
        }

    def count(self, name: str, by: float = 1.0, **tags: str) -> None:
        """Adds to a counter."""
        if by > 0:
            self._made[name].inc(by, tags=tags)

    def show(self, name: str, value: float) -> None:
        """Sets a gauge."""
        self._made[name].set(value, tags=self._replica if METRICS[name].tags else {})

    def episode(self, episode: Episode) -> None:
        """Counts an episode that ended."""
        env, usage = episode.env, episode.usage
        self.count("atlas_episodes", env=env, stop_reason=str(episode.stop_reason))
        self.count("atlas_turns", episode.rounds, env=env)
        self.count("atlas_generated_tokens", usage.completion_tokens, env=env)
        self.count("atlas_prompt_tokens", usage.prompt_tokens, env=env)
        self.count("atlas_cached_tokens", usage.cached_tokens, env=env)
        self.count("atlas_episode_seconds", episode.seconds, env=env)
