"""Trajectories of scripted agents in built-in environments, on Ray Data.

Flows in: tasks; flows out: trajectories in a run folder, and `agenttraj.json` beside them in AgentTraj-L's form.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace

import pyarrow as pa

from atlas_ray.cluster.connection import connect
from atlas_ray.cluster.dataset import map_on_ray, stream
from atlas_ray.config import ActionProtocol
from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.errors import TooManyFailed
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.failures import FailureWatch, check_failed, failure_recorded
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.progress import track
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.trajectories.formats.agenttraj import to_row
from atlas_ray.trajectories.settings import CollectConfig
from atlas_ray.types import Episode, Task, Trajectory

_BATCH = 32
_UNIT = ["env", "item_id", "sample"]
_ENDS = ["success", "spoilt_by"]  # of an episode, beside its trajectory
FAILURES = replace(TRAJECTORIES, name="failures")


def collect(config: CollectConfig, *, clean: bool = False) -> RunFolder:
    """Plays the tasks of `config` and keeps the episodes as trajectories.

    Returns:
        The run folder; its `finished.json` counts episodes, successes and kept trajectories.

    Raises:
        TooManyFailed: If no trajectory was kept, or hardly any episode played.
    """
    folder = RunFolder(config.run)
    folder.begin(config, stage="collect", clean=clean)
    finished = folder.finished
    if finished is not None and not finished.get("errors"):
        return folder
    with failure_recorded(folder):
        _collect(config, folder)
    return folder


def _collect(config: CollectConfig, folder: RunFolder) -> None:
    begun, watch = time.monotonic(), FailureWatch("episodes")
    units = episodes_of(config)
    done = folder.done(TRAJECTORIES) | folder.done(FAILURES)
    left = [unit for unit in units if _trajectory_id(*unit) not in done]
    connect(config.ray)
    with folder.writer(TRAJECTORIES) as kept, folder.writer(FAILURES) as failures:
        played, causes = _play(left, config), list[str]()
        for trajectory, success, error in track(played, len(units), f"collect {config.role}s", len(units) - len(left)):
            watch.add(error)
            if error is not None:  # it says nothing of the agent, and is played again in the next run
                causes.append(error)
                continue
            (kept if success or config.keep_failures else failures).add(trajectory)
    for table_spec in (TRAJECTORIES, FAILURES):
        folder.compact(table_spec)
    check_failed(folder, "episodes", len(causes), len(units), next(iter(causes), None), config.max_failed)
    trajectories = folder.read(TRAJECTORIES)
    if not trajectories:
        raise TooManyFailed(
            f"no {config.role} reached the goal in {len(units)} episodes: no trajectory was kept",
            "raise max_rounds, or keep them as they are: keep_failures=true",
        )
    folder.write_json("agenttraj.json", [to_row(trajectory) for trajectory in trajectories])
    folder.finish(
        episodes=len(units),
        kept=len(trajectories),
        failed=len(units) - len(trajectories),
        **({"errors": len(causes), "first_error": causes[0]} if causes else {}),
        seconds=round(time.monotonic() - begun, 1),
    )


def episodes_of(config: CollectConfig) -> list[tuple[Task, int]]:
    """The episodes to play: tasks, each with the numbers of its samples.

    Raises:
        UserError: If an environment is unknown, has too few tasks, or no tools where these are to be called.
    """
    for env in config.envs:
        _opening(env, config.protocol)

    def of(figure: int | dict[str, int] | None, env: str) -> int | None:
        return figure.get(env) if isinstance(figure, dict) else figure

    return [
        (task, sample)
        for env in config.envs
        for task in registry.get(env).tasks(config.split, of(config.tasks, env))
        for sample in range(of(config.samples, env) or 1)
    ]


def sample(config: CollectConfig, n: int) -> dict[str, list[Trajectory]]:
    """A few of the trajectories that a collection will keep, by environment: the first n episodes of each, played here.

    Raises:
        UserError: As `episodes_of` does, or if an environment cannot be had.
    """
    found: dict[str, list[Trajectory]] = {}
    policy, episodes = ScriptedPolicy(config.role, config.seed, config.waste), episodes_of(config)
    for env in config.envs:
        units = [(task.env, task.item_id, number) for task, number in episodes if task.env == env][:n]
        played = _play_batch(pa.table([*zip(*units, strict=True)], _UNIT), policy, config.max_rounds, config.protocol)
        ends = (played[name].to_pylist() for name in _ENDS)
        trajectories = TRAJECTORIES.from_table(played.drop_columns(_ENDS))
        found[env] = [
            trajectory
            for trajectory, success, error in zip(trajectories, *ends, strict=True)
            if error is None and (success or config.keep_failures)
        ]
    return found


def _play(units: list[tuple[Task, int]], config: CollectConfig) -> Iterator[tuple[Trajectory, bool, str | None]]:
    if not units:
        return
    rows = [(task.env, task.item_id, sample) for task, sample in units]
    batches = (pa.table([*zip(*rows[i : i + _BATCH], strict=True)], _UNIT) for i in range(0, len(rows), _BATCH))
    policy = ScriptedPolicy(config.role, config.seed, config.waste)
    played = map_on_ray(batches, _play_batch, policy, config.max_rounds, config.protocol)
    for batch in stream(played, "collecting"):
        ends = (batch[name].to_pylist() for name in _ENDS)
        yield from zip(TRAJECTORIES.from_table(batch.drop_columns(_ENDS)), *ends, strict=True)


def _play_batch(batch: pa.Table, policy: ScriptedPolicy, max_rounds: int | None, protocol: ActionProtocol) -> pa.Table:
    async def play() -> list[Episode]:
        return [
            await run_episode(
                policy,
                LocalSession(registry.get(env)),
                EpisodeRequest(
                    Task(env, item_id),
                    Sampling(),
                    seed=policy.seed,
                    sample=sample,
                    max_rounds=max_rounds,
                    opening=_opening(env, protocol),
                ),
            )
            for env, item_id, sample in zip(*(batch[name].to_pylist() for name in _UNIT), strict=True)
        ]

    episodes = asyncio.run(play())
    trajectories = TRAJECTORIES.to_table(to_trajectory(e) for e in episodes)
    ends = [[e.success for e in episodes], [e.error if e.stop_reason.is_infrastructure else None for e in episodes]]
    for name, end, kind in zip(_ENDS, ends, (pa.bool_(), pa.string()), strict=True):
        trajectories = trajectories.append_column(name, pa.array(end, kind))
    return trajectories


def _opening(env: str, protocol: ActionProtocol) -> OpeningTemplate | None:
    return OpeningTemplate.of_tools(registry.get(env)) if protocol == "tools" else None


def to_trajectory(episode: Episode) -> Trajectory:
    """An episode from scratch as a trajectory, with the scripted agent's marks as gold."""
    return Trajectory(
        _trajectory_id(Task(episode.env, episode.item_id), episode.sample),
        episode.env,
        episode.item_id,
        episode.messages,
        episode.reward,
        episode.gold or (),
        episode.tools,
    )


def _trajectory_id(task: Task, sample: int) -> str:
    return task.id if sample == 0 else f"{task.id}#{sample + 1}"
