"""Policies and episodes of evaluations, and what they are made from."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atlas_ray.config import validate
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.registry import get
from atlas_ray.errors import ModelFailure, UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.protocol import Policy, Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.scripted import ScriptedConversation, ScriptedPolicy
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Episode, Message, StopReason, Task, Trajectory, Usage

UNUSABLE = {
    "refused": UserError("it has no chat template", "set one"),
    "jammed": ModelFailure("the engine does not start: out of memory"),
}


@dataclass(frozen=True)
class Scripted:
    """Stands where `EngineSpec` does; the model says who plays, or names the file while which nobody can.

    One of `UNUSABLE` cannot be loaded before there is a file of its name.
    """

    name: str
    model: Any
    config: Any
    revision: str | None = None
    chat_template: str | None = None
    gpus: int = 0

    async def build(self) -> Policy:
        if (error := UNUSABLE.get(Path(self.model).name)) is not None:
            if not Path(self.model).exists():
                raise error
            return ScriptedPolicy("expert")
        if self.name == "metered":
            return Metered(self.model)
        return Flaky(self.model) if "/" in self.model else ScriptedPolicy(self.model)


def config(run: Path, models: dict[str, str], **given: Any) -> EvaluateConfig:
    values = {"run": str(run), "models": models, "tasks": {"maze": 8, "wordle": 6}, "retries": 0} | given
    return validate(EvaluateConfig, values)


def an_episode(item: int, start: int, success: bool, stop: StopReason = StopReason.DONE) -> Episode:
    score = float(success)
    ends = (score, score, success, score, 3, stop)
    return Episode(f"maze/maze_{item}@0+{start}", "maze", f"maze_{item}", "m", 0, start, 0, (), *ends)


async def experts(n: int) -> list[Trajectory]:
    session, policy = LocalSession(get("maze")), ScriptedPolicy("expert")
    tasks = get("maze").tasks("train", n)
    return [to_trajectory(await run_episode(policy, session, EpisodeRequest(t, Sampling(), seed=0))) for t in tasks]


class Flaky(ScriptedPolicy):
    """An expert that fails on even tasks while a file is there, or keeps silent in mazes while a folder is."""

    def __init__(self, broken: str) -> None:
        super().__init__("expert")
        self.broken = Path(broken)

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> ScriptedConversation:
        if self.broken.is_dir() and task.env == "maze":
            return _Silent()
        if self.broken.is_file() and task.item_id[-1] in "02468":
            raise ModelFailure("no answer")
        return super().open(task, opening, sampling)


class Metered(ScriptedPolicy):
    """An expert whose prompts come to three quarters from a cache; its process is killed once half-way."""

    def __init__(self, folder: str) -> None:
        super().__init__("expert")
        self.note = Path(folder) / "killed"

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> ScriptedConversation:
        if task.item_id == "maze_4" and not self.note.exists():
            self.note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        conversation = super().open(task, opening, sampling)
        generate = conversation.generate

        async def metered(seed: int) -> Reply:
            return replace(await generate(seed), usage=Usage(100, 75, 5, 1))

        conversation.generate = metered  # type: ignore[method-assign]
        return conversation


class _Silent(ScriptedConversation):
    """Never answers."""

    def __init__(self) -> None: ...

    async def generate(self, seed: int) -> Reply:
        await asyncio.Event().wait()
        raise AssertionError
