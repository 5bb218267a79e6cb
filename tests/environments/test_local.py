"""Simulators in this process: one that blocks holds up no other episode, and is given up with its session."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import ClassVar

import pytest

from atlas_ray.config import LimitsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.builtin.sciworld import machines
from atlas_ray.environments.http.server import create_app
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult
from atlas_ray.types import StopReason
from tests.support.absent import absent
from tests.support.episodes import episode, spoken
from tests.support.serving import expert_replies, remote, running

GO = spoken("blocking", "go")
SHORT = LimitsConfig(turn_s=0.4)


class Blocking:
    """A step of a task below 10 blocks until the test is over."""

    over: ClassVar[threading.Event]
    begun: ClassVar[threading.Event]  # some step blocks
    ended: ClassVar[list[tuple[str, int]]]
    at_once: ClassVar[int]
    most: ClassVar[int]

    def reset(self, index: int) -> Opening:
        self.index = index
        return Opening("Go.", "You stand still.")

    def step(self, action: str) -> StepResult:
        own = type(self)
        own.at_once += 1
        own.most = max(own.most, own.at_once)
        if action == "fail":
            own.at_once -= 1
            raise StopIteration("nothing left")
        if self.index < 10:
            self.begun.set()
            self.over.wait(60)
        own.at_once -= 1
        return StepResult("You went.", 1.0, True)

    def close(self) -> None:
        self.ended.append(("closed", self.index))

    def kill(self) -> None:
        self.ended.append(("killed", self.index))


SPEC = EnvironmentSpec("blocking", "in", 3, "success", "last", simulator=Blocking)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    Blocking.over, Blocking.begun = threading.Event(), threading.Event()
    Blocking.ended, Blocking.at_once, Blocking.most = [], 0, 0
    registry.register(SPEC)
    yield
    Blocking.over.set()
    del registry.ENVIRONMENTS["blocking"]


async def test_another_environments_episode_ends_by_its_own_moves() -> None:
    maze = LocalSession(registry.get("maze"))
    blocked = asyncio.create_task(episode(LocalSession(SPEC), GO, index=0))
    played = await episode(maze, expert_replies("maze", 7))
    assert (played.stop_reason, played.success) == (StopReason.DONE, True)
    assert not blocked.done()
    Blocking.over.set()
    assert (await blocked).stop_reason is StopReason.DONE


async def test_limits_hold_for_an_answer_that_does_not_come() -> None:
    found = await episode(LocalSession(SPEC), GO, index=0, limits=SHORT)
    assert (found.stop_reason, found.error) == (StopReason.ENV_TIMEOUT, "no answer within 0.4 s")
    assert found.stop_reason.is_infrastructure


async def test_calls_that_hang_leave_threads_for_the_others_of_their_environment() -> None:
    hung = [asyncio.create_task(episode(LocalSession(SPEC), GO, index=i)) for i in range(5)]
    others = [episode(LocalSession(SPEC), GO, index=10 + i) for i in range(20)]
    assert {e.stop_reason for e in await asyncio.gather(*others)} == {StopReason.DONE}
    assert not any(one.done() for one in hung)
    Blocking.over.set()
    await asyncio.gather(*hung)


async def test_calls_that_do_not_hang_come_one_at_a_time() -> None:
    await asyncio.gather(*(episode(LocalSession(SPEC), GO, index=10 + i) for i in range(20)))
    assert Blocking.most == 1


async def test_what_a_simulator_raises_is_its_own_episodes_failure() -> None:
    found = await episode(LocalSession(SPEC), spoken("blocking", "fail"), index=10)
    assert (found.stop_reason, found.error) == (
        StopReason.ENV_ERROR,
        """RuntimeError: StopIteration('nothing left')""",
    )


async def test_a_simulator_is_closed_and_one_that_hangs_is_killed() -> None:
    for index in (10, 0):
        session = LocalSession(SPEC)
        await episode(session, GO, index=index, limits=SHORT)
        await session.close()
    assert Blocking.ended == [("closed", 10), ("killed", 0)]


async def test_a_server_answers_the_others_while_one_hangs() -> None:
    async with running(create_app(["blocking"])) as url, remote("blocking", url, timeout_s=60.0) as hung:
        waiting = asyncio.create_task(episode(hung, GO, index=0))
        assert await asyncio.to_thread(Blocking.begun.wait, 60)
        async with remote("blocking", url, timeout_s=60.0) as session:
            assert (await episode(session, GO, index=10)).stop_reason is StopReason.DONE
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await hung.close()
    assert sorted(Blocking.ended) == [("closed", 10), ("killed", 0)]


@pytest.mark.skipif(absent("sciworld") is not None, reason=str(absent("sciworld")))
async def test_a_java_machine_that_is_stopped_ends_with_its_episodes_alone() -> None:
    spec = registry.get("sciworld")
    stopped, look = LocalSession(spec), spoken("sciworld", "look around")
    await episode(stopped, look, index=0, max_rounds=1)
    (machine,) = {one for one in machines._machines if one.used}
    os.kill(machine.process.pid, signal.SIGSTOP)
    hung = asyncio.create_task(episode(stopped, look, index=0, limits=SHORT))
    maze = await episode(LocalSession(registry.get("maze")), expert_replies("maze", 7))
    assert maze.success
    assert (await hung).stop_reason is StopReason.ENV_TIMEOUT
    await stopped.close()
    machine.process.wait(10)
    other = LocalSession(spec)
    assert (await episode(other, look, index=0, max_rounds=1)).stop_reason is StopReason.MAX_ROUNDS
    await other.close()
