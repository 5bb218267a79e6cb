"""Whether test tasks were trained on, by id and by first observation.

Flows in: training trajectories and test episodes; flows out: one row per environment that has both, or test tasks only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from atlas_ray.types import Episode, Trajectory, first_observation


def overlap(trajectories: Iterable[Trajectory], episodes: Iterable[Episode]) -> list[dict[str, Any]]:
    """Counts test tasks that share their id, or their first observation, with a training task.

    Different tasks may open alike (a word game opens all of them with the same words), so a shared observation is no
    proof; `distinct_first_observations` says how much the second count can tell.
    """
    train, test = _tasks(trajectories), _tasks(episodes)
    rows = []
    for env in sorted(test):
        seen = set().union(*train.get(env, {}).values())
        openings = set().union(*test[env].values())
        shared_ids = test[env].keys() & train.get(env, {}).keys()
        rows.append(
            {
                "env": env,
                "train_tasks": len(train.get(env, {})),
                "test_tasks": len(test[env]),
                "shared_ids": len(shared_ids),
                "shared_first_observations": sum(bool(first & seen) for first in test[env].values()),
                "distinct_first_observations": len(openings),
            }
        )
    return rows


def _tasks(records: Iterable[Trajectory | Episode]) -> dict[str, dict[str, set[str]]]:
    """First observations by environment and task."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for record in records:
        found[record.env][record.item_id] |= {first_observation(record.messages).strip()} - {""}
    return found
