"""Step verification (section 4.6, Table 6): does a model do better right after each critical step of the expert?

Flows in: trajectories, their selection, a model; flows out: episodes of four kinds, and a row for each kind and
environment. From scratch; from right after each critical step; `iterative`: one episode from scratch in which the
critical steps are put in, each where the policy sees what the expert saw before it (after it has left the expert's
path, none is until it is back, and one that it passed by is not gone back to); and the control, from after as many
other steps near by: mere nearness to the goal would explain a gain over scratch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace

from atlas_ray.cluster.connection import connect
from atlas_ray.environments.agentgym.task_numbers import unplayable
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import Opening
from atlas_ray.environments.registry import not_replayed
from atlas_ray.errors import UserError, together
from atlas_ray.evaluation.settings import VerifyConfig
from atlas_ray.evaluation.stage import cause_of, check_played, record_played
from atlas_ray.evaluation.table6 import Row, Start, rows
from atlas_ray.models.engine import EngineModel
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.coordinator import player_of
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.guided import GivenTurn
from atlas_ray.rollouts.heartbeat import Heartbeat
from atlas_ray.runs.failures import FailureWatch, failure_recorded
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import loading
from atlas_ray.runs.progress import Tracker
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import EPISODES, SELECTIONS
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Trajectory, Usage

# Its episodes bear the names of those from scratch, so they have a table of their own.
ITERATIVE = replace(EPISODES, name="iterative")


@dataclass(frozen=True, slots=True)
class Planned:
    """A trajectory with its critical steps, and after which steps to start."""

    trajectory: Trajectory
    chosen: tuple[int, ...]
    starts: dict[Start, set[int]]


def verify(config: VerifyConfig, *, clean: bool = False) -> list[Row]:
    """Plays every start of every trajectory, or goes on where an earlier run stopped.

    Returns:
        Table 6's rows, also written to `results.json`.

    Raises:
        UserError: If no selected trajectory is left.
        ModelUnavailable: If the model could not be loaded.
        TooManyFailed: If hardly any episode was played.
        AtlasError: If engines or environments fail as a whole.
    """
    folder = RunFolder(config.run)
    folder.begin(config, stage="verify", clean=clean)
    with failure_recorded(folder):
        return _verify(config, folder)


def _verify(config: VerifyConfig, folder: RunFolder) -> list[Row]:
    begun, context = time.monotonic(), None
    plan = _plan(config)
    requests = [request for task in plan for request in _requests(task, config)]
    done, apart = folder.done(EPISODES), folder.done(ITERATIVE)
    left = [r for r in requests if r.id not in (apart if r.table == ITERATIVE.name else done)]
    if left:
        connect(config.ray)
        with loading(folder, config.model):
            spec = EngineModel(path=config.model, chat_template=config.chat_template).spec("base", config.engine)
            player = player_of(spec, config.engine, config.environments, limits=config.limits, retries=config.retries)
        with (
            player,
            closing(player.play(left, folder)) as playing,
            Tracker("verify", len(requests), len(requests) - len(left)) as tracker,
        ):
            tracker.between_units(Heartbeat(player.usage))
            usage, context, watch = Usage(), player.context, FailureWatch("episodes")
            for _, episode in playing:
                watch.add(cause_of(episode) if episode.stop_reason.is_infrastructure else None)
                usage += episode.usage
                tracker.advance(note=f"prefix cache {usage.hit_rate:.0%}")
        folder.compact(EPISODES)
        folder.compact(ITERATIVE)
    episodes, iterative = folder.read(EPISODES), folder.read(ITERATIVE)
    check_played(folder, [*episodes, *iterative], len(requests), config.max_failed)
    found = rows(
        {t.trajectory.id: t.starts for t in plan},
        {t.trajectory.id: _given(t) for t in plan},
        {t.trajectory.id: len(t.trajectory.steps) for t in plan},
        episodes,
        iterative,
        config.max_excluded,
    )
    folder.write_json("results.json", {"rows": [asdict(row) for row in found]})
    record_played(folder, [*episodes, *iterative], time.monotonic() - begun, context)
    return found


def plan_lines(config: VerifyConfig) -> list[str]:
    """What a verification would do, in words."""
    plan = _plan(config)
    episodes = sum(len(list(_requests(task, config))) for task in plan)
    kinds = "from scratch, after each critical step, after as many others near by"
    tasks = len({planned.trajectory.task.id for planned in plan})
    words = f"{len(plan)} trajectories of {tasks} task{'s' * (tasks > 1)}" if tasks < len(plan) else f"{tasks} tasks"
    return [f"{words}, {episodes} episodes: {kinds}{', critical steps put in' * config.iterative}"]


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


def _plan(config: VerifyConfig) -> list[Planned]:
    """The selected trajectories; of a task with several of them, one starts from scratch for all.

    Raises:
        UserError: If there is none, or a task has no number at the environment that would play it.
    """
    selections = RunFolder(config.selection).read(SELECTIONS)
    chosen = {s.trajectory_id: s.chosen for s in selections if s.error is None}
    found = [t for t in read_trajectories(config.data) if chosen.get(t.id)]
    if not found:
        why = next((f"; the first failed: {s.error}" for s in selections if s.error), "")
        raise UserError(
            f"{config.selection} chose no step in {config.data.path}{why}", "select and verify the same data"
        )
    if unplayed := next(filter(None, map(not_replayed, found)), None):
        raise UserError(unplayed, "verify on trajectories that can be played again")
    if wrong := unplayable((t.task for t in found), config.environments):
        raise together(wrong)
    plan, scratched = list[Planned](), set[str]()
    for t in found:
        begins = starts(t, chosen[t.id], config.seed)
        if t.task.id in scratched:
            begins["from scratch"] = set()
        scratched.add(t.task.id)
        plan.append(Planned(t, chosen[t.id], begins))
    return plan


def _given(task: Planned) -> tuple[GivenTurn, ...]:
    """The expert's critical steps, and what it saw before each."""
    steps = task.trajectory.steps
    return tuple(GivenTurn(steps[t - 1].observation, steps[t - 1].message) for t in task.chosen)


def _requests(task: Planned, config: VerifyConfig) -> Iterator[EpisodeRequest]:
    t = task.trajectory
    replies, answers, opening = t.replies, t.answers, Opening.recorded(t)
    every = [(start, ()) for start in sorted(set().union(*task.starts.values()))]
    for start, given in [*every, *([(0, _given(task))] if config.iterative else [])]:
        for sample in range(config.samples):
            yield EpisodeRequest(
                task=t.task,
                sampling=Sampling(config.temperature, config.max_tokens),
                seed=config.seed,
                sample=sample,
                prefix=replies[:start],
                recorded=answers[:start],
                opening=OpeningTemplate.verbatim(opening) if opening else None,
                first_observation=opening.observation if opening else None,
                given=given,
                table=ITERATIVE.name if given else EPISODES.name,
                trajectory=t.id,
                group=t.id,
            )
