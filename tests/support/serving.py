"""Servers on loopback, scripted replies and recorded exchanges for the tests of server and client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.environments import registry
from atlas_ray.environments.client import HttpSession
from atlas_ray.environments.protocol import Opening, Session, StepResult
from atlas_ray.types import Task

TOOLS = ["weather", "movie", "todo", "academia", "sheet"]
BUILT_IN = [
    "maze",
    "wordle",
    "textcraft",
    "blocksworld",
    "babyai",
    "pddl",
    "webshop",
    "alfworld",
    "sciworld",
    "jericho",
    *TOOLS,
]
RECORDED = Path(__file__).parents[3] / "shared" / "data" / "agentgym"


@contextlib.asynccontextmanager
async def running(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """Serves an app on loopback; gives its address."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def served(app: web.Application, port: int = 0) -> Iterator[str]:
    """Serves an app on loopback in a thread of its own, for clients in other processes; gives its address."""
    loop, server = asyncio.new_event_loop(), running(app, port)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def remote(name: str, *urls: str, timeout_s: float = 5.0) -> AsyncIterator[HttpSession]:
    session = HttpSession(registry.get(name), urls, timeout_s)
    try:
        yield session
    finally:
        await session.close()


def expert_replies(name: str, index: int, noise: float = 0.0) -> list[str]:
    """A whole episode of the built-in expert, with nonsense mixed in."""
    spec, rng = registry.get(name), random.Random(index)
    assert spec.simulator is not None
    simulator, replies, done = spec.simulator(), list[str](), False
    simulator.reset(index)
    while not done and len(replies) < 60:
        nonsense = ["Action: dance", "Action: one\nAction: two", "no action at all", "Action: \u00e9\u2603 </s>"]
        reply = rng.choice(nonsense) if rng.random() < noise else simulator.expert(rng).reply
        replies.append(reply)
        action = spec.take_action(reply)
        done = action is not None and simulator.step(action).done
    return replies


async def play(session: Session, index: int, replies: list[str]) -> tuple[Opening, list[StepResult]]:
    """Resets to a task and plays all replies."""
    opening = await session.reset(Task(session.spec.name, f"{session.spec.name}_{index}"))
    return opening, [await session.step(reply) for reply in replies]


def recorded(name: str) -> list[dict[str, Any]]:
    file = RECORDED / f"{name}.jsonl"
    if not file.exists():
        pytest.skip(f"the recorded exchanges {file} are not here")
    return [json.loads(line) for line in file.read_text().splitlines()]
