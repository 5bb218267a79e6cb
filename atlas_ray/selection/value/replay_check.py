"""Whether environments repeat themselves well enough for values, before any engine starts: a few replays of each.

A rollout after step t begins with the expert's first t steps; where those are answered otherwise than recorded, it is
thrown away. Flows in: trajectories; flows out: counts by environment, or a refusal with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from atlas_ray.config import EnvironmentsConfig, LimitsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.client import with_tolerance
from atlas_ray.errors import UserError, together
from atlas_ray.rollouts.recorded import play_again
from atlas_ray.runs.tables import TRAJECTORIES

REPLAYED = 4  # trajectories of each environment
_LEAST = 0.5  # share of them that has to replay
_SAME_REWARD = 1e-6  # rewards may have gone through JSON
_ROW = pa.schema([("id", pa.string()), ("env", pa.string()), ("replay", pa.string()), ("same_reward", pa.bool_()),
                  ("error", pa.string())])  # fmt: skip


def replay_rows(table: pa.Table, environments: EnvironmentsConfig, limits: LimitsConfig) -> pa.Table:
    """How each trajectory of a block replays; on a worker, where rollouts are played."""

    async def replay_all() -> list[dict[str, Any]]:
        found = []
        for trajectory in TRAJECTORIES.from_table(table):
            if registry.not_replayed(trajectory):  # no rollouts either
                continue
            episode = await play_again(trajectory, environments, limits)
            replay = "differs" if episode.error else episode.replay or "exact"
            same = trajectory.reward is None or abs(episode.reward - trajectory.reward) < _SAME_REWARD
            row = {"id": trajectory.id, "env": trajectory.env, "error": episode.error}
            found.append(row | {"replay": replay, "same_reward": same})
        return found

    return pa.Table.from_pylist(asyncio.run(replay_all()), _ROW)


@dataclass(frozen=True)
class Replays:
    """How some trajectories of an environment replay.

    Attributes:
        counts: Of trajectories, by `Replay`.
        rewards: How many end at the recorded reward, as far as one is recorded.
        tolerance: Share of an answer that may differ from the recorded one.
        first: Why the first of those that differ does.
    """

    counts: Mapping[str, int]
    rewards: int
    tolerance: float
    first: str | None

    @property
    def replayed(self) -> int:
        """Those whose answers are as recorded, or within the tolerance."""
        return self.counts["exact"] + self.counts["near"]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        near = self.counts["near"]
        within = f", {near} of them within the tolerance of {self.tolerance:.0%}" if near else ""
        wrong = "" if self.rewards == self.total else f"; {self.rewards} end at the recorded reward"
        return f"{self.replayed} of {self.total} trajectories replay{within}{wrong}"


def replays_by_environment(rows: Iterable[Mapping[str, Any]], environments: EnvironmentsConfig) -> dict[str, Replays]:
    """Rows of `replay_rows` by environment."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["env"], row["id"])):
        found.setdefault(row["env"], []).append(row)
    return {
        env: Replays(
            {kind: sum(row["replay"] == kind for row in some) for kind in ("exact", "near", "differs")},
            sum(row["same_reward"] for row in some),
            with_tolerance(registry.get(env), environments).tolerance,
            next((f"{row['id']}: {row['error']}" for row in some if row["replay"] == "differs"), None),
        )
        for env, some in found.items()
    }


def refuse_unrepeatable(replays: Mapping[str, Replays]) -> None:
    """Refuses what rollouts would be thrown away in.

    Raises:
        UserError: If fewer than half of an environment's trajectories replay.
    """
    if wrong := [
        UserError(
            f"values of {env} cannot be estimated: {found}; {found.first}",
            "play the data and version that the trajectories were made with, with a fixed seed; "
            f"environments.replay_tolerance.{env} (now {found.tolerance:g}) lets answers differ a little; "
            "data.envs leaves an environment out",
        )
        for env, found in replays.items()
        if found.replayed < _LEAST * found.total
    ]:
        raise together(wrong)
