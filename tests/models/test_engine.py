"""The vLLM engine as a policy: exact repetition, swapped weights, limits, company."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from atlas_ray.config import EngineConfig
from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.errors import ContextOverflow, ModelFailure, UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.engine import _CPU_BLOCK, EngineConversation, EngineSpec, VllmPolicy
from atlas_ray.models.protocol import Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.pool import RolloutPool
from atlas_ray.types import Message, StopReason, Task, Usage
from tests.support.tiny import tiny_tokenizer

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

pytestmark = pytest.mark.asyncio(loop_scope="session")

WORDS = [a + b + c for a in "abcdefgh" for b in "aeiou" for c in "klmnop"]
GREEDY, DRAWN = Sampling(0.0, 16), Sampling(1.0, 16)
TASK = Task("maze", "maze_0")


def sentence(rng: random.Random, n: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def opening(number: int) -> list[Message]:
    rng = random.Random(number)
    start = sentence(random.Random(number % 3), 120)  # shared by every third conversation
    return [Message("user", start), Message("assistant", "OK"), Message("user", sentence(rng, 5 + 40 * (number % 4)))]


async def converse(policy: VllmPolicy, number: int, sampling: Sampling) -> list[int]:
    """Four turns; the ids of it all."""
    conversation = policy.open(TASK, opening(number), sampling)
    rng = random.Random(-number)
    for turn in range(4):
        await conversation.generate(1000 * number + turn)
        conversation.append(Message("user", sentence(rng, rng.randrange(3, 40))))
    return list(conversation._ids or [])


async def converse_all(
    policy: VllmPolicy, numbers: Iterable[int], sampling: Sampling, at_once: int
) -> dict[int, list[int]]:
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> tuple[int, list[int]]:
        async with room:
            return number, await converse(policy, number, sampling)

    return dict(await asyncio.gather(*map(one, numbers)))


async def forget(policy: VllmPolicy) -> None:
    """Empties the prefix cache."""
    assert policy._engine is not None
    await policy._engine.reset_prefix_cache()


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
async def test_replies_do_not_depend_on_company_or_cache(engine: VllmPolicy, sampling: Sampling) -> None:
    together = await converse_all(engine, range(64), sampling, 64)
    before = engine.usage
    assert await converse_all(engine, range(63, -1, -2), sampling, 20) == {n: together[n] for n in range(63, -1, -2)}
    assert engine.usage.cached_tokens > before.cached_tokens
    for numbers, at_once in [(range(0, 64, 3), 7), (range(0, 64, 16), 1)]:
        await forget(engine)
        assert await converse_all(engine, numbers, sampling, at_once) == {n: together[n] for n in numbers}


async def test_siblings_find_all_whole_blocks_of_their_common_beginning_in_the_cache(engine: VllmPolicy) -> None:
    await forget(engine)
    first, *others = [(await engine.open(TASK, opening(1), DRAWN).generate(seed)).usage for seed in range(4)]
    blocks = (first.prompt_tokens - 1) // _CPU_BLOCK  # the last token is computed anew, for what follows it
    assert blocks > 3
    assert first.cached_tokens == 0
    assert [usage.cached_tokens for usage in others] == [blocks * _CPU_BLOCK] * 3


async def test_seeds_tell_drawn_replies_apart(engine: VllmPolicy) -> None:
    async def draw(seed: int, sampling: Sampling) -> str:
        return (await engine.open(TASK, opening(1), sampling).generate(seed)).text

    assert await draw(1, DRAWN) == await draw(1, DRAWN) != await draw(2, DRAWN)
    assert await draw(1, GREEDY) == await draw(2, GREEDY)


async def test_swapped_weights_are_as_good_as_fresh_ones(engine: VllmPolicy, tiny_models: tuple[str, str]) -> None:
    own = await converse_all(engine, range(12), DRAWN, 12)
    kept = engine._engine
    await engine.load(replace(engine.spec, name="other", model=tiny_models[1]))
    assert engine.name == "other"
    other = await converse_all(engine, range(12), DRAWN, 12)
    assert all(own[n] != other[n] for n in own)
    await engine.load(replace(engine.spec, name="tiny", model=tiny_models[0]))
    assert await converse_all(engine, range(12), DRAWN, 12) == own
    assert engine._engine is kept


async def test_a_model_that_is_refused_leaves_the_engine_as_it_was(engine: VllmPolicy, tmp_path: Path) -> None:
    own, kept = await converse_all(engine, range(3), DRAWN, 3), engine._engine
    (tmp_path / "tokenizer_config.json").write_text("{ no json")
    for bad in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(UserError, match="cannot load a tokenizer"):
            await engine.load(replace(engine.spec, name="bad", model=bad))
    assert (engine.name, engine._engine) == ("tiny", kept)
    assert await converse_all(engine, range(3), DRAWN, 3) == own


async def test_a_full_context_ends_the_conversation(engine: VllmPolicy) -> None:
    conversation = engine.open(TASK, opening(0), Sampling(0.0, 4000))
    conversation.append(Message("assistant", sentence(random.Random(0), engine.context - 200)))
    conversation.append(Message("user", "OK"))
    cut = await conversation.generate(0)
    assert cut.usage.prompt_tokens + cut.usage.completion_tokens <= engine.context
    conversation.append(Message("user", sentence(random.Random(0), engine.context)))
    calls = engine.usage.calls
    with pytest.raises(ContextOverflow):
        await conversation.generate(1)
    assert engine.usage.calls == calls
    asked = EpisodeRequest(TASK, GREEDY, seed=0, prefix=(Message("assistant", "x " * 1100, True),))
    found = await run_episode(engine, LocalSession(registry.get("maze")), asked)
    assert (found.stop_reason, found.error) == (StopReason.CONTEXT_OVERFLOW, None)


async def test_a_question_is_answered_freely_or_by_a_schema(engine: VllmPolicy) -> None:
    asked = [Message("system", sentence(random.Random(1), 9)), Message("user", sentence(random.Random(2), 30))]
    free, again, other = [(await engine.answer(asked, DRAWN, seed)).text for seed in (1, 1, 2)]
    assert free == again != other
    schema = {"type": "integer", "minimum": 3, "maximum": 6}
    found = await asyncio.gather(*(engine.answer(asked, DRAWN, seed, schema) for seed in range(40)))
    assert {int(reply.text) for reply in found} == {3, 4, 5, 6}
    with pytest.raises(ContextOverflow):
        await engine.answer([Message("user", sentence(random.Random(0), engine.context))], DRAWN, 1)
    with pytest.raises(ModelFailure):
        await engine.answer(asked, DRAWN, 1, {"type": "no such type"})
    assert (await engine.answer(asked, DRAWN, 1)).text == free


async def test_many_conversations_run_at_once_and_a_cancelled_one_leaves(engine: VllmPolicy) -> None:
    inner: AsyncLLM | None = engine._engine
    assert inner is not None
    speaking = asyncio.create_task(converse_all(engine, range(64), Sampling(1.0, 64), 64))
    most = 0
    while not speaking.done():
        most = max(most, inner.get_num_unfinished_requests())
        await asyncio.sleep(0.005)
    assert most >= 32
    endless = [asyncio.create_task(engine.open(TASK, opening(n), Sampling(1.0, 800)).generate(n)) for n in range(8)]
    while inner.get_num_unfinished_requests() < 8:
        await asyncio.sleep(0.005)
    for task in endless:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*endless, return_exceptions=True))
    assert inner.get_num_unfinished_requests() == 0
    assert await converse(engine, 3, GREEDY)


async def test_an_episode_keeps_ids_as_they_were_sampled() -> None:
    chat = ChatFormat(tiny_tokenizer())
    opened = [Message("user", "go")]
    begun, end = chat.opening(opened), chat.stop_ids[0]
    go, left = chat.reply("go")[0], chat.reply("left")[0]

    def conversation(ids: list[int], finish: str, reason: Any, text: str) -> EngineConversation:
        async def generate(*_: Any) -> tuple[Any, Usage]:
            return SimpleNamespace(text=text, token_ids=ids, finish_reason=finish, stop_reason=reason), Usage()

        policy: Any = SimpleNamespace(generate=generate)
        return EngineConversation(policy, chat, opened, GREEDY)

    whole = conversation([go, end], "stop", None, "go")
    assert (await whole.generate(0)).finish == "stop"
    assert whole._ids == [*begun, go, end]
    cut = conversation([go, left], "length", None, "go left")
    assert (await cut.generate(0)).finish == "length"
    assert cut._ids == [*begun, go, left, end]
    invented = conversation([go, left, left], "stop", "\nObservation:", "go")
    assert (await invented.generate(0)).text == "go"
    assert invented._ids == begun + chat.reply("go")
    invented.append(Message("user", "wall"))
    assert invented._ids == begun + chat.reply("go") + chat.observation("wall")


async def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no-such-folder': there is no such folder"):
        await EngineSpec("x", "./no-such-folder", EngineConfig()).build()


def _requests(n: int) -> list[EpisodeRequest]:
    return [EpisodeRequest(task, DRAWN, seed=1) for task in registry.get("maze").tasks("test", n)]


def _engine_cores() -> set[int]:
    """Engines of this process and of its Ray cluster; others may run on this machine."""
    return {p.pid for p in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(_command(p))}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _gone(pids: Iterable[int]) -> bool:
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
async def test_killed_engines_change_nothing(ray_cluster: None, tiny_models: tuple[str, str]) -> None:
    others = _engine_cores()
    with RolloutPool(EngineSpec("tiny", tiny_models[0], EngineConfig()), EngineConfig(episodes_in_flight=16)) as pool:
        calm = {e.id: e.messages for _, e in pool.run(_requests(24))}
        for kill_core in (True, False):
            cores = _engine_cores() - others
            assert len(cores) == 1
            found: dict[str, Any] = {}
            for _, episode in pool.run(_requests(24)):
                assert episode.stop_reason in (StopReason.DONE, StopReason.MAX_ROUNDS), episode.error
                assert episode.id not in found
                found[episode.id] = episode.messages
                if len(found) == 5:
                    os.kill(cores.pop() if kill_core else pool._handles[0].pid or 0, signal.SIGKILL)
            assert found == calm
            assert _gone(cores)
        assert pool.restarts == 2
        pool.load(EngineSpec("other", tiny_models[1], EngineConfig()))
        other = {e.id: e.messages for _, e in pool.run(_requests(24))}
        assert other.keys() == calm.keys()
        assert other != calm
        left = _engine_cores() - others
    assert _gone(left)


@pytest.mark.slow
async def test_an_engine_that_is_loading_ends_with_its_owner(tiny_models: tuple[str, str]) -> None:
    code = (
        "import asyncio; from atlas_ray.config import EngineConfig; from atlas_ray.models.engine import EngineSpec;"
        f"asyncio.run(EngineSpec('tiny', {tiny_models[0]!r}, EngineConfig()).build())"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    loading: list[int] = []
    while not loading:
        assert owner.poll() is None
        assert time.monotonic() < end
        started = psutil.Process(owner.pid).children(recursive=True)
        loading = [p.pid for p in started if "spawn_main" in " ".join(_command(p))]
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    while any(psutil.pid_exists(pid) for pid in loading):
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
async def test_a_dead_engine_says_so(tiny_models: tuple[str, str]) -> None:
    others = _engine_cores()
    policy = await EngineSpec("tiny", tiny_models[0], EngineConfig()).build()
    conversation = policy.open(TASK, opening(0), DRAWN)
    await conversation.generate(0)
    for pid in _engine_cores() - others:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ModelFailure, match="the engine failed"):
        await conversation.generate(1)
    assert policy.dead
    await policy.close()
