"""What judging actors share, in one process: turns, money, replies, an end, and what a dead actor leaves behind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas_ray.errors import AtlasError, TooManyFailed, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm import coordinator
from atlas_ray.selection.llm.coordinator import Coordinator, Link, SharedThrottle, SpentError
from atlas_ray.selection.llm.journal import REPLIES, PaidReply
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.types import Usage


class Handle:
    """A coordinator as its actor's handle shows it, without Ray."""

    def __init__(self, folder: Path, **section: Any) -> None:
        self.inner = Coordinator(LlmSelector.model_validate(section), RunFolder(str(folder)))
        self.inner._opened.set()
        self.messages = 0

    def __getattr__(self, name: str) -> Any:
        def remote(*arguments: Any) -> Any:
            self.messages += name == "post"
            return getattr(self.inner, name)(*arguments)

        return type("Method", (), {"remote": staticmethod(remote)})

    async def link(self, actor: str) -> Link:
        made = Link(self)
        await made.ask("join", actor)
        return made


def reply(key: str, dollars: float = 0.0) -> PaidReply:
    return PaidReply(key, "maze/maze_0", "text", "stop", Usage(1, 0, 1, 1, dollars))


async def test_calls_of_two_actors_share_the_turns_and_few_messages(tmp_path: Path) -> None:
    handle = Handle(tmp_path, endpoint={"concurrency": 5})
    throttles = [SharedThrottle(await handle.link(name)) for name in ("one", "other")]
    active = peak = 0
    done = [0, 0]

    async def call(which: int) -> None:
        nonlocal active, peak
        async with throttles[which].turn(1):
            active += 1
            peak = max(peak, active)
            await asyncio.sleep(0.01)
            active -= 1
            done[which] += 1

    await asyncio.gather(*(call(i % 2) for i in range(100)))
    assert (peak, done) == (5, [50, 50])
    assert handle.messages < 150  # of 200 calls


async def test_a_claim_waits_for_money_and_the_run_ends_when_there_is_none(tmp_path: Path) -> None:
    handle = Handle(tmp_path, max_cost=1.0)
    one, other = await handle.link("one"), await handle.link("other")
    assert await one.ask("claim", "a", 0.6) is None
    waiting = asyncio.create_task(other.ask("claim", "b", 0.6))
    await one.ask("keep", reply("a", 0.3))
    assert await waiting is None  # 0.3 were spent where 0.6 were set aside
    assert [r.id for r in RunFolder(str(tmp_path)).read(REPLIES)] == ["a"]
    assert await other.ask("claim", "a", 0.6) == reply("a", 0.3)  # paid for by the other actor
    await other.ask("keep", reply("b", 0.5))
    with pytest.raises(SpentError, match=r"stopped at \$0.8000: one more call could exceed max_cost=1"):
        await one.ask("claim", "c", 0.6)
    with pytest.raises(SpentError):
        await other.ask("claim", "d", 0.01)


async def test_the_end_waits_for_calls_under_way_and_is_the_first_error(tmp_path: Path) -> None:
    handle = Handle(tmp_path, endpoint={"concurrency": 1})
    one, other = await handle.link("one"), await handle.link("other")
    await one.ask("claim", "a", 0.0)
    throttle = SharedThrottle(one)
    began = await throttle.enter(1)
    assert began > 0
    waiting = asyncio.create_task(SharedThrottle(other).enter(1))
    await other.ask("claim", "b", 0.0)
    other.tell("release", "b")
    ending = asyncio.create_task(other.ask("end", UserError("refused", "mend")))
    with pytest.raises(UserError, match="refused"):
        await waiting
    assert not ending.done()
    await one.ask("keep", reply("a"))
    with pytest.raises(UserError, match="refused"):
        await one.ask("end", AtlasError("another"))
    with pytest.raises(UserError, match="refused"):
        await ending
    with pytest.raises(UserError, match="refused"):
        await one.ask("claim", "c", 0.0)


async def test_an_actor_that_is_started_again_gives_back_what_it_held(tmp_path: Path) -> None:
    handle = Handle(tmp_path, max_cost=1.0, endpoint={"concurrency": 1})
    dead = await handle.link("one")
    await dead.ask("claim", "first", 0.0)  # until it is settled, nothing else is asked for
    await dead.ask("keep", reply("first", 0.0))
    await dead.ask("claim", "a", 0.4)
    await dead.ask("claim", "b", 0.5)
    await dead.ask("keep", reply("b", 0.2))
    await SharedThrottle(dead).enter(1)
    alive = await handle.link("one")
    async with asyncio.timeout(5), SharedThrottle(alive).turn(1):
        assert await alive.ask("claim", "b", 0.5) == reply("b", 0.2)
    # What its call may have cost counts as spent: 0.2 + 0.4.
    assert await alive.ask("claim", "a", 0.4) is None
    alive.tell("release", "a")
    with pytest.raises(SpentError, match=r"stopped at \$0.6000"):
        await alive.ask("claim", "c", 0.41)


async def test_who_waits_is_told_that_the_coordinator_is_lost(tmp_path: Path) -> None:
    handle = Handle(tmp_path)
    link = await handle.link("one")

    async def gone(*_: Any) -> None:
        raise OSError("the node is gone")

    handle.inner.post = gone  # type: ignore[method-assign, assignment]
    with pytest.raises(AtlasError, match="the run's coordinator is lost: the node is gone"):
        await link.ask("claim", "a", 0.0)


async def test_an_actor_that_asks_nothing_for_long_is_not_taken_for_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(coordinator, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(coordinator, "_POLL_SECONDS", 0.01)
    handle = Handle(tmp_path, max_cost=1.0)
    one, other = await handle.link("one"), await handle.link("other")
    await one.ask("claim", "a", 0.6)  # it then waits for its endpoint
    waiting = asyncio.create_task(other.ask("claim", "b", 0.6))
    for _ in range(3):
        now[0] += 200
        async with asyncio.timeout(5):
            while any(held.seen < now[0] for held in handle.inner._workers.values()):
                await asyncio.sleep(0.005)
    await one.ask("keep", reply("a", 0.1))
    assert await waiting is None
    handle.inner._workers.clear()  # as after silence
    with pytest.raises(AtlasError, match="lost: an actor was silent for 300 s"):
        await one.ask("claim", "c", 0.0)


async def test_a_reply_that_cannot_be_kept_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = Handle(tmp_path)
    link = await handle.link("one")

    def full(*_: Any) -> None:
        raise UserError("no space left on device")

    monkeypatch.setattr(RunFolder, "write_shard", full)
    await link.ask("claim", "a", 0.0)
    with pytest.raises(UserError, match="no space"):
        await link.ask("keep", reply("a"))
    async with asyncio.timeout(5):
        with pytest.raises(UserError, match="no space"):
            await link.ask("end", UserError("no space left on device"))


async def test_as_many_failed_judgements_in_a_row_as_make_no_sense_end_the_run(tmp_path: Path) -> None:
    handle = Handle(tmp_path)
    one, other = await handle.link("one"), await handle.link("other")
    for error in ["no answer: HTTP 500"] * 31 + [None, "no answer: HTTP 502"] + ["no answer: HTTP 500"] * 30:
        one.tell("judged", error)
    assert await other.ask("claim", "a", 0.0) is None
    other.tell("release", "a")
    other.tell("judged", "no answer: HTTP 503")
    with pytest.raises(TooManyFailed, match="32 judgements in a row failed; the first: no answer: HTTP 502"):
        await one.ask("claim", "b", 0.0)
