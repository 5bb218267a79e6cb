"""Whether an environment keeps the protocol: it is played, replayed, given nonsense and closed, and findings are told.

Flows in: an environment's name, and servers where it is not built in; flows out: a finding for each rule.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, Session, StepResult
from atlas_ray.errors import AtlasError, UserError
from atlas_ray.types import Task

NONSENSE = (
    "",
    "Action:",
    "Action: " + "x" * 100_000,
    "Action: \x00\x1b[2J\u202e",
    "Action: {{7*7}} ${HOME} '; DROP TABLE tasks; --",
    "Action: \U0001f600 \ud7ff\n\n\n",
    "Action: -1\nAction: 1e999",
    "no action at all",
)
_TASKS = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one rule; `told` says what was seen."""

    rule: str
    holds: bool
    told: str


@dataclass(slots=True)
class _Played:
    """An episode as the environment answered it, and what each answer took."""

    opening: Opening
    turns: list[tuple[str, StepResult]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [self.opening.observation, *(result.observation for _, result in self.turns)]

    @property
    def rewards(self) -> list[float]:
        return [result.reward for _, result in self.turns]


async def check(name: str, config: EnvironmentsConfig) -> AsyncIterator[Finding]:
    """Plays test tasks by the scripted expert where there is one, by fixed replies else; tells what holds.

    Raises:
        UserError: If the environment is unknown, or has neither a simulator nor a server.
    """
    spec = registry.get(name)
    tasks = spec.tasks("test")[:_TASKS] or [Task(name, f"{name}_{i}") for i in range(_TASKS)]

    @asynccontextmanager
    async def session() -> AsyncIterator[Session]:
        opened = open_session(spec, config)
        try:
            yield opened
        finally:
            await opened.close()

    replies = {task: _expert(spec, task) for task in tasks}
    scripted = all(replies.values())
    replies = replies if scripted else dict.fromkeys(tasks, _fixed(spec))
    async with session() as one, session() as other:
        try:
            alone = {task: await _play(one, task, replies[task]) for task in tasks}
        except AtlasError:  # its own words say what is to be done
            raise
        except Exception as error:  # noqa: BLE001 (whatever the environment raises)
            yield _raised("a test task can be played", error)
            return
        if scripted:
            yield _plays(spec, alone)
        first, second = tasks[0], tasks[-1]
        again = await _play(other, first, replies[first])
        yield _same("replay: the same actions give the same texts and rewards", spec, alone[first], again)
        yield await _guarded("sessions apart", _apart(spec, one, other, alone[first], alone[second], first, second))
        half = replies[first][: len(replies[first]) // 2]
        await _play(one, first, half)
        yield _same("reset begins anew", spec, alone[first], await _play(one, first, replies[first]))
        yield _rewards(spec, alone)
        yield await _guarded("nonsense is answered", _nonsense(one, first))
    yield _cost(alone)


def _expert(spec: EnvironmentSpec, task: Task) -> list[str]:
    """What the scripted expert says; nothing where there is none."""
    simulator, rng, replies = spec.simulator and spec.simulator(), random.Random(task.id), list[str]()
    if not simulator or not hasattr(simulator, "expert"):
        return []
    try:
        simulator.reset(spec.number(task))
        while len(replies) < spec.max_rounds:
            replies.append(simulator.expert(rng).reply)
            if simulator.step(spec.take_action(replies[-1]) or "").done:
                break
    except UserError:  # there is none for what is not ours
        return []
    finally:
        if hasattr(simulator, "close"):
            simulator.close()
    return replies


def _fixed(spec: EnvironmentSpec) -> list[str]:
    return [f"Action: {action}" for action in spec.probe_actions or ("look", "inventory", "look")]


async def _play(session: Session, task: Task, replies: list[str]) -> _Played:
    begun = time.perf_counter()
    played = _Played(await session.reset(task))
    played.seconds.append(time.perf_counter() - begun)
    for reply in replies:
        begun = time.perf_counter()
        played.turns.append((reply, await session.step(reply)))
        played.seconds.append(time.perf_counter() - begun)
        if played.turns[-1][1].done:
            break
    return played


def _plays(spec: EnvironmentSpec, alone: dict[Task, _Played]) -> Finding:
    scores = [spec.scale(played.rewards[-1]) if played.turns else 0.0 for played in alone.values()]
    won = sum(score >= spec.success_at for score in scores)
    rounds = max(len(played.turns) for played in alone.values())
    told = f"{won} of {len(alone)} tasks, within {rounds} of {spec.max_rounds} rounds"
    return Finding("the expert succeeds", won == len(alone), told)


def _same(rule: str, spec: EnvironmentSpec, one: _Played, other: _Played) -> Finding:
    for turn, (a, b) in enumerate(zip(one.texts, other.texts, strict=False)):
        if (found := spec.compare(a, b)) == "differs":
            return Finding(rule, False, f"turn {turn}: {a[:60]!r}, then {b[:60]!r}")
        if found != "exact":
            return Finding(rule, True, f"turn {turn}: {found}")
    if one.rewards != other.rewards:
        return Finding(rule, False, f"rewards {one.rewards}, then {other.rewards}")
    return Finding(rule, True, f"{len(one.turns)} turns")


async def _apart(
    spec: EnvironmentSpec, one: Session, other: Session, a: _Played, b: _Played, first: Task, second: Task
) -> Finding:
    """Two episodes turn by turn, each as it was alone."""
    found = _Played(await one.reset(first)), _Played(await other.reset(second))
    for turn in range(max(len(a.turns), len(b.turns))):
        for played, alone, session in zip(found, (a, b), (one, other), strict=True):
            if turn < len(alone.turns):
                reply = alone.turns[turn][0]
                played.turns.append((reply, await session.step(reply)))
    both = [_same("sessions apart", spec, alone, played) for alone, played in zip((a, b), found, strict=True)]
    return next((finding for finding in both if not finding.holds), both[0])


def _rewards(spec: EnvironmentSpec, alone: dict[Task, _Played]) -> Finding:
    rewards = [reward for played in alone.values() for reward in played.rewards]
    rule = "rewards are finite, and at most 1 once scaled"
    wrong = [r for r in rewards if not math.isfinite(r) or r * spec.reward_scale > 1 + 1e-9]
    told = f"{wrong[0]:g}" if wrong else f"{min(rewards, default=0):g} to {max(rewards, default=0):g}"
    return Finding(rule, not wrong, told)


async def _nonsense(session: Session, task: Task) -> Finding:
    for reply in NONSENSE:
        await session.reset(task)
        result = await session.step(reply)
        if not isinstance(result.observation, str) or not result.observation:
            return Finding("nonsense is answered", False, f"{reply[:40]!r}: {result.observation!r}")
    return Finding("nonsense is answered", True, f"{len(NONSENSE)} replies")


async def _guarded(rule: str, asked: Awaitable[Finding]) -> Finding:
    """An exception is a finding too."""
    try:
        return await asked
    except Exception as error:  # noqa: BLE001 (whatever the environment raises)
        return _raised(rule, error)


def _raised(rule: str, error: Exception) -> Finding:
    return Finding(rule, False, f"{type(error).__name__}: {error}"[:200])


def _cost(alone: dict[Task, _Played]) -> Finding:
    resets = [played.seconds[0] for played in alone.values()]
    steps = [seconds for played in alone.values() for seconds in played.seconds[1:]]
    words = fmean(sum(len(text.split()) for text in played.texts) for played in alone.values())
    told = f"reset {1e3 * fmean(resets):.1f} ms, step {1e3 * fmean(steps or [0]):.1f} ms, {words:.0f} words an episode"
    return Finding("cost", True, told)
