"""Environments before a run: each server answers and repeats itself, and replays an expert's trajectory to its reward.

Flows in: environments' settings and recorded trajectories; flows out: findings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable, Mapping

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.http.probe import probe
from atlas_ray.errors import AtlasError, EnvironmentFailure
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.recipes.preflight.findings import Finding, attempt
from atlas_ray.rollouts.recorded import play_again
from atlas_ray.types import Trajectory

_NO_SERVER = (
    "no server is named, and the test tasks are a server's",
    "name it: environments.servers.NAME: [http://HOST:PORT]",
)
_CLOSE = 1e-6  # rewards are compared as floats that went through JSON


def check_environments(
    names: Iterable[str], remote: Container[str], config: EnvironmentsConfig, recorded: Mapping[str, Trajectory]
) -> list[Finding]:
    """Looks at every environment that a run plays in.

    Args:
        names: Environments.
        remote: Those among them that need a server.
        config: Their servers.
        recorded: By environment a trajectory of its, to be replayed where a server is asked.
    """
    found: list[Finding] = []
    for name in dict.fromkeys(names):
        servers = config.servers.get(name, [])
        if not servers and name in remote:
            found.append(Finding("server", name, "failed", *_NO_SERVER))
        elif not servers:
            found += attempt("environment", name, lambda name=name: _built_in(name, config))  # type: ignore[misc]
        for server in servers:
            found += attempt("server", f"{name} at {server}", lambda n=name, s=server: _answers(n, s))  # type: ignore[misc]
            alone = config.model_copy(update={"servers": {name: [server]}})
            if name in recorded and found[-1].result == "ok":
                one = recorded[name]
                found += attempt("replay", f"{one.id} at {server}", lambda o=one, c=alone: replay(o, c))  # type: ignore[misc]
    return found


def replay(trajectory: Trajectory, config: EnvironmentsConfig) -> str:
    """Plays a recorded trajectory's replies again.

    Returns:
        What came of it.

    Raises:
        AtlasError: If the environment fails, answers otherwise than recorded, or ends at another reward.
    """
    episode = asyncio.run(play_again(trajectory, config))
    reward = episode.reward
    if episode.error is not None:
        raise EnvironmentFailure(
            f"{trajectory.id} does not replay: {episode.error}",
            "serve the data and version that the trajectories were made with; `atlas doctor ENV=URL` looks closer",
        )
    if trajectory.reward is not None and abs(reward - trajectory.reward) > _CLOSE:
        raise AtlasError(
            f"{trajectory.id} ends with reward {reward:g}, recorded is {trajectory.reward:g}",
            "serve the data and version that the trajectories were made with",
        )
    told = "as recorded" if trajectory.reward is not None else ("a success" if episode.success else "not a success")
    return f"{len(trajectory.steps)} steps as recorded, reward {reward:g} ({told})"


def _built_in(name: str, config: EnvironmentsConfig) -> str:
    """Whose tasks are played here; raises what is missing for them, e.g. an extra or AgentBoard's files."""
    session = open_session(registry.get(name), config)
    asyncio.run(session.close())
    return other_tasks([name], config).get(name, "AgentBoard's tasks")


def _answers(name: str, server: str) -> str:
    found = asyncio.run(probe(server, name))
    if not found.ok:
        first = next((w for w in (found.reachable, found.tasks, found.replay) if w.startswith("no")), found.reachable)
        raise EnvironmentFailure(
            f"the server of {name} does not play: {first.removeprefix('no: ')}",
            f"start it, or mend environments.servers.{name}",
        )
    return f"answers, tasks {found.tasks}, replay {found.replay}"
