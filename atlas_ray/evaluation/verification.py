"""Step verification (section 4.6, Table 6): does a model do better right after each critical step of the expert?

Flows in: trajectories, their selection, a model; flows out: episodes from scratch, from right after each critical step,
and from after as many other steps near by: mere nearness to the goal would explain a gain over scratch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from atlas_ray.environments import table
from atlas_ray.errors import UserError
from atlas_ray.evaluation.metrics import EnvironmentResult, summarise
from atlas_ray.evaluation.settings import VerifyConfig
from atlas_ray.models.engine import EngineSpec
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import episode_id
from atlas_ray.rollouts.pool import EpisodeRequest, RolloutPool
from atlas_ray.runs.cluster import connect
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import track
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Episode, Trajectory

Start = Literal["from scratch", "from critical step", "from other step"]


def verify(config: VerifyConfig, *, clean: bool = False) -> dict[str, list[EnvironmentResult]]:
    """Plays every start of every task, or goes on where an earlier run stopped.

    Returns:
        By kind of start, one result for each environment: per task the mean over its starts, then over tasks.

    Raises:
        UserError: If no selected trajectory is left.
        AtlasError: If engines or environments fail as a whole.
    """
    folder = RunFolder(config.run)
    folder.begin(config, stage="verify", clean=clean)
    begun = time.monotonic()
    chosen = {s.trajectory_id: s.chosen for s in RunFolder(config.selection).read(SELECTIONS) if s.error is None}
    # one trajectory a task: another one's prefix would bear the same episode's name
    trajectories = [t for t in read_trajectories(config.data) if t.id == t.task.id and chosen.get(t.id)]
    if not trajectories:
        raise UserError(f"{config.selection} chose no step in {config.data.path}", "select and verify the same data")
    plan = {t.id: starts(t, chosen[t.id], config.seed) for t in trajectories}
    requests = {
        episode_id(r.task, r.sample, len(r.prefix)): r for t in trajectories for r in _requests(t, plan[t.id], config)
    }
    done = folder.done(EPISODES)
    if left := [request for key, request in requests.items() if key not in done]:
        connect(config.ray)
        with (
            RolloutPool(
                EngineSpec("base", reachable(config.model), config.engine),
                replicas=config.engine.replicas,
                in_flight=config.engine.episodes_in_flight,
                environments=config.environments,
            ) as pool,
            folder.writer(EPISODES) as writer,
        ):
            for _, episode in track(pool.run(left), len(requests), "verify", len(requests) - len(left)):
                writer.add(episode)
        folder.compact(EPISODES)
    found = results(folder.read(EPISODES), plan)
    folder.finish(
        seconds=round(time.monotonic() - begun, 1),
        results={kind: [asdict(result) for result in cells] for kind, cells in found.items()},
    )
    return found


def starts(trajectory: Trajectory, chosen: Sequence[int], seed: int) -> dict[Start, set[int]]:
    """After which steps to start: 0, each critical step, and for each the nearest step that is neither.

    The last step is no start: nothing is left to do after it.
    """
    last = len(trajectory.steps)
    critical = {t for t in chosen if t < last}
    free = [t for t in range(1, last) if t not in critical]
    draw, others = random.Random(derive_seed(seed, "verify", trajectory.id)), set[int]()
    for t in sorted(critical):
        if near := [u for u in free if u not in others]:
            others.add(min(near, key=lambda u: (abs(u - t), draw.random())))
    return {"from scratch": {0}, "from critical step": critical, "from other step": others}


def results(episodes: Sequence[Episode], plan: dict[str, dict[Start, set[int]]]) -> dict[str, list[EnvironmentResult]]:
    """By kind of start and environment, over the tasks that have one of that kind."""
    found: dict[str, list[EnvironmentResult]] = {}
    for kind in get_args(Start):
        played = [e for e in episodes if e.start_step in plan[f"{e.env}/{e.item_id}"][kind]]
        by_env: dict[str, list[Episode]] = {}
        for episode in played:
            by_env.setdefault(episode.env, []).append(episode)
        found[kind] = [summarise(group, table.get(env), len(group)) for env, group in sorted(by_env.items())]
    return found


def _requests(t: Trajectory, begin: dict[Start, set[int]], config: VerifyConfig) -> Iterator[EpisodeRequest]:
    replies = tuple(step.reply for step in t.steps)
    answers = tuple(step.observation for step in t.steps[1:])
    for start in sorted(set().union(*begin.values())):
        for sample in range(config.samples):
            yield EpisodeRequest(
                task=t.task,
                sampling=Sampling(config.temperature, config.max_tokens),
                seed=config.seed,
                sample=sample,
                prefix=replies[:start],
                recorded=answers[:start],
                instruction=t.messages[0].content,
                group=t.id,
            )


def plan_lines(config: VerifyConfig) -> list[str]:
    """What a verification would do, in words."""
    chosen: dict[str, Any] = {s.trajectory_id: s.chosen for s in RunFolder(config.selection).read(SELECTIONS)}
    known = [t for t in read_trajectories(config.data) if t.id == t.task.id and chosen.get(t.id)]
    episodes = sum(len(list(_requests(t, starts(t, chosen[t.id], config.seed), config))) for t in known)
    return [f"{len(known)} tasks, {episodes} episodes: from scratch, after each critical step, after as many others"]
