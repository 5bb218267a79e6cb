"""Episodes of given replies, against servers and simulators."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.types import Episode, Message, Task, ToolCall
from tests.support.agentgym import TOOLS


class Recite:
    """A policy that says given replies, then the last one again and again."""

    name = "recite"

    def __init__(self, replies: Sequence[str | Reply]) -> None:
        self.replies = list(replies)

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Recite:
        return Recite(self.replies)

    async def generate(self, seed: int) -> Reply:
        said = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return said if isinstance(said, Reply) else Reply(said)

    def append(self, message: Message) -> None: ...


def spoken(name: str, *actions: str) -> list[str]:
    """Replies that say actions in an environment's form."""
    form = "Action: {} with Action Input: {{}}" if name in TOOLS else "Action: {}"
    return [f"Thought: let me see\n{form.format(action)}" for action in actions]


def winning(name: str) -> list[str]:
    """Replies that reach the goal; the tools want to be told that this is all."""
    finish = ['Thought: done\nAction: finish with Action Input: {"answer": 3}'] if name in TOOLS else []
    return spoken(name, "go 1", "look", "go 2", "go 3") + finish


async def episode(session: Any, replies: list[str], index: int = 7, **options: Any) -> Episode:
    task = Task(session.spec.name, f"{session.spec.name}_{index}")
    limits, prefix = options.pop("limits", None), options.pop("prefix", ())
    options["prefix"] = tuple(Message("assistant", reply, True) for reply in prefix)
    return await run_episode(Recite(replies), session, EpisodeRequest(task, Sampling(), seed=0, **options), limits)


def calling(name: str, id_: str = "", **arguments: Any) -> Reply:
    """A reply that calls a tool."""
    return Reply("", calls=(ToolCall(name, json.dumps(arguments), id_),))


async def play_all(
    name: str,
    replies: Mapping[int, Sequence[str | Reply]],
    at_once: int = 16,
    opening: OpeningTemplate | None = None,
) -> list[Episode]:
    """An episode of each task of a registered environment, so many at once, each session for several."""
    spec, waiting, done = registry.get(name), list(replies), dict[int, Episode]()

    async def work() -> None:
        session = open_session(spec, EnvironmentsConfig())
        while waiting:
            index = waiting.pop(0)
            request = EpisodeRequest(Task(name, f"{name}_{index}"), Sampling(), seed=0, opening=opening)
            done[index] = await run_episode(Recite(replies[index]), session, request)
        await session.close()

    await asyncio.gather(*(work() for _ in range(at_once)))
    return [done[index] for index in replies]
