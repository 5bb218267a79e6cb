"""Stages of ten units in this process, of which a test says which fail: what is real but for engines and Ray.

`faults` is asked about every unit by its number; a stage's units are those of `maze_0` to `maze_9`, or ten tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import ModelFailure
from atlas_ray.evaluation import stage as evaluation
from atlas_ray.evaluation import verification
from atlas_ray.models.client import Completion
from atlas_ray.models.protocol import Sampling
from atlas_ray.models.request import CompletionRequest
from atlas_ray.rollouts.coordinator import table_of
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm.coordinator import Coordinator
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.perplexity.scores import Scores
from atlas_ray.selection.perplexity.selector import PerplexitySelector
from atlas_ray.selection.perplexity.stage import PerplexityWorker
from atlas_ray.selection.protocol import StageContext
from atlas_ray.selection.rows import RowStage
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.selection.value.stage import value_steps
from atlas_ray.trajectories import collect
from atlas_ray.types import Episode, Selection, StopReason, Trajectory, Usage
from tests.selection.llm.test_llm_answers import GOOD
from tests.selection.test_selection import data_in, expert
from tests.support.fake_endpoint import LocalLink

CAUSE = "the disk of the world is full"
UNITS = 10


@dataclass
class Faults:
    """Which units fail, and at which the user presses Ctrl-C; `asked` are those that were worked at."""

    failing: set[int] = field(default_factory=set)
    interrupted: int | None = None
    asked: list[int] = field(default_factory=list)

    def meet(self, number: int) -> bool:
        """Works at a unit; whether it fails."""
        if number == self.interrupted:
            raise KeyboardInterrupt
        self.asked.append(number)
        return number in self.failing


faults = Faults()


def number_of(item: str) -> int:
    return int(item.rpartition("_")[2])


def choose(trajectory: Trajectory) -> list[int]:
    """A user's own selector."""
    if faults.meet(number_of(trajectory.item_id)):
        raise OSError(CAUSE)
    return [1]


class Player:
    """Plays episodes here, by the scripted expert."""

    context = None

    def __init__(self, numbers: Callable[[EpisodeRequest], int]) -> None:
        self._numbers = numbers

    def play(self, requests: Sequence[EpisodeRequest], folder: RunFolder) -> Iterator[tuple[EpisodeRequest, Episode]]:
        for request in requests:
            episode = spoilt(request) if faults.meet(self._numbers(request)) else played(request)
            with folder.writer(table_of(request)) as writer:
                writer.add(episode)
            yield request, episode

    def usage(self) -> Usage:
        return Usage()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None: ...


def spoilt(request: EpisodeRequest) -> Episode:
    return request.episode("expert", StopReason.ENV_ERROR, CAUSE)


def played(request: EpisodeRequest) -> Episode:
    session = LocalSession(get(request.task.env))
    return asyncio.run(run_episode(ScriptedPolicy("expert"), session, request))


@dataclass(frozen=True)
class Stage:
    """A stage's verb, and what is told of it.

    Attributes:
        arguments: Of the verb.
        run: Folder whose failure and figures are shown.
        retries: Whether the same command tries again what failed in a finished run.
    """

    arguments: list[str]
    run: str
    retries: bool = True


def a_stage(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """One of `STAGES`, ready to be run."""
    return STAGES[name](here, monkeypatch)


def _select(here: Path, *settings: str) -> Stage:
    if not (here / "data").exists():
        data_in(here / "data", [expert(10, i, ()) for i in range(UNITS)])
    set_ = [part for setting in settings for part in ("--set", setting)]
    retries = bool({"selector.name=llm", "selector.name=value"} & set(settings))
    arguments = ["select", "--data", str(here / "data"), "--run", str(here / "run"), *set_]
    return Stage(arguments, str(here / "run"), retries)


def _python(here: Path, _: pytest.MonkeyPatch) -> Stage:
    return _select(here, "selector.name=python", "selector.call=tests.support.failing:choose")


def _perplexity(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    def score(trajectories: Sequence[Trajectory]) -> list[Scores]:
        if any(faults.meet(number_of(t.item_id)) for t in trajectories):
            raise OSError(CAUSE)
        return [Scores(tuple(float(step.index) for step in t.steps)) for t in trajectories]

    def scoring(selector: PerplexitySelector, _: Any) -> RowStage:
        worker = PerplexityWorker(selector, "torch", "m", 1, 0.0)
        worker._score = score
        return RowStage(lambda: worker._alone)

    monkeypatch.setattr(PerplexitySelector, "scoring", scoring)
    return _select(here, "selector.name=perplexity", "selector.model=m", "selector.dtype=float32")


def _value(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    async def play(request: EpisodeRequest) -> Episode:
        first = len(request.prefix) == request.sample == 0
        number = number_of(request.task.item_id)
        failed = faults.meet(number) if first else number in faults.failing
        return spoilt(request) if failed else request.episode("m", StopReason.DONE, None)

    def scoring(selector: ValueSelector, _: Any) -> RowStage:
        return RowStage(lambda: lambda t: asyncio.run(value_steps(t, play, selector, 0)))

    monkeypatch.setattr(ValueSelector, "scoring", scoring)
    return _select(here, "selector.name=value", "selector.model=m", "selector.rollouts=2")


class Backend:
    """Answers about one trajectory."""

    address = "here"

    def __init__(self, number: int) -> None:
        self._number = number

    async def complete(self, request: CompletionRequest) -> Completion:
        if faults.meet(self._number):
            raise ModelFailure(CAUSE)
        return Completion(GOOD, "stop", Usage(900, 0, 90, 1))

    async def close(self) -> None: ...


def _llm(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    def stage(selector: LlmSelector, context: StageContext) -> RowStage:
        async def judge(trajectory: Trajectory) -> Selection:
            link: Any = LocalLink(Coordinator(selector, context.folder))
            return await Judge(selector, Backend(number_of(trajectory.item_id)), link, 0).judge(trajectory)

        return RowStage(lambda: lambda trajectory: asyncio.run(judge(trajectory)))

    monkeypatch.setattr(LlmSelector, "stage", stage)
    return _select(here, "selector.name=llm")


def _evaluate(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    numbers = {task.item_id: i for i, task in enumerate(get("maze").tasks("test", UNITS))}
    monkeypatch.setattr(evaluation, "player_of", lambda *_, **__: Player(lambda r: numbers[r.task.item_id]))
    monkeypatch.setattr(evaluation, "connect", lambda *_: None)
    arguments = ["--set", f"tasks.maze={UNITS}", "--set", "models.arm=m"]
    return Stage(["evaluate", "--run", str(here / "run"), *arguments], str(here / "run" / "arm"))


def _verify(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Of ten trajectories; each is played from scratch alone, for its last step is the critical one."""
    tasks = get("maze").tasks("train", UNITS)
    numbers = {task.item_id: i for i, task in enumerate(tasks)}
    monkeypatch.setattr(verification, "player_of", lambda *_, **__: Player(lambda r: numbers[r.task.item_id]))
    monkeypatch.setattr(verification, "connect", lambda *_: None)
    data = [collect.to_trajectory(played(EpisodeRequest(t, Sampling(), seed=0))) for t in tasks]
    if not (here / "data").exists():
        data_in(here / "data", data)
        chosen = [Selection(t.id, t.env, t.item_id, "x", 0.3, len(t.steps), (len(t.steps),)) for t in data]
        RunFolder(str(here / "chosen")).write_shard(SELECTIONS, chosen)
    arguments = ["--data", str(here / "data"), "--set", f"selection={here}/chosen", "--set", "iterative=false"]
    return Stage(["verify", "--run", str(here / "run"), *arguments], str(here / "run"))


def _collect(here: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    numbers = {task.item_id: i for i, task in enumerate(get("maze").tasks("train", UNITS))}

    async def run(policy: Any, session: Any, request: EpisodeRequest) -> Episode:
        failed = faults.meet(numbers[request.task.item_id])
        return spoilt(request) if failed else await run_episode(policy, session, request)

    monkeypatch.setattr(collect, "run_episode", run)
    monkeypatch.setattr(collect, "_BATCH", 1)
    monkeypatch.setattr(collect, "connect", lambda *_: None)
    monkeypatch.setattr(collect, "map_on_ray", lambda tables, play, *args: (play(table, *args) for table in tables))
    monkeypatch.setattr(collect, "stream", lambda tables, _: tables)
    arguments = ["--set", "envs=[maze]", "--set", f"tasks={UNITS}"]
    return Stage(["collect", "--run", str(here / "run"), *arguments], str(here / "run"))


STAGES: dict[str, Callable[[Path, pytest.MonkeyPatch], Stage]] = {
    "python": _python,
    "llm": _llm,
    "perplexity": _perplexity,
    "value": _value,
    "evaluate": _evaluate,
    "verify": _verify,
    "collect": _collect,
}
