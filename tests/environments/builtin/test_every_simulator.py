"""What every built-in simulator must hold.

The expert succeeds and the novice falls behind, gold is a real cut, any reply gets an answer and none is evaluated,
sessions at once do not mix, another process repeats what one has seen, and what is closed is gone.
"""

from __future__ import annotations

import asyncio
import builtins
import gc
import itertools
import json
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from atlas_ray.environments.builtin.sciworld import machines
from atlas_ray.environments.builtin.webshop.search import search_of
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.protocol import gold_ranks
from atlas_ray.environments.registry import get
from atlas_ray.errors import UserError
from atlas_ray.types import Category, Task
from tests.support.absent import here
from tests.support.simulators import (
    BUILT_IN,
    LAPTOP,
    PLAYED,
    REAL_ACTIONS,
    Played,
    all_played,
    make_simulator,
    play,
)

SESSIONS, HEAVY = 64, ("alfworld", "sciworld")
# the agents' shares of successes: at least, and apart by at least
EXPERT, GAP = {"alfworld": 0.9}, {"blocksworld": 0.25}
SLOW = [env for env, few in PLAYED.items() if few < min(100, get(env).n_test)]
# four blocks leave nothing to notice after the first step
CATEGORIES = {"blocksworld": set(Category) - {Category.CRITICAL_OBSERVATION}}


def check_agents(env: str, runs: dict[str, Sequence[Played]]) -> None:
    expert, novice = (sum(one.success for one in runs[role]) / len(runs[role]) for role in ("expert", "novice"))
    assert expert >= EXPERT.get(env, 0.95)
    assert novice <= expert - GAP.get(env, 0.3)
    marks = [category for one in runs["expert"] for category, _ in one.marks]
    assert 0.3 <= sum(category is not None for category in marks) / len(marks) <= 0.7
    if len(runs["expert"]) >= 50:
        assert novice >= 0.1
        found = set().union(*map(top, runs["expert"]))
        assert found - {None} == CATEGORIES.get(env, set(Category))
        assert len({reply for one in runs["expert"] for reply in one.replies}) > 40


def top(one: Played) -> set[Category | None]:
    """The categories that the budget of 30 % takes."""
    ranks = gold_ranks([(step, weight) for step, (category, weight) in enumerate(one.marks, 1) if category])
    return {one.marks[step - 1][0] for step, rank in ranks.items() if rank <= max(1, len(one.marks) * 3 // 10)}


@pytest.mark.parametrize("env", BUILT_IN)
def test_the_expert_succeeds_the_novice_falls_behind_and_gold_is_a_real_cut(env: str) -> None:
    check_agents(env, {role: all_played(env, role) for role in ("expert", "novice")})


@pytest.mark.slow
@pytest.mark.parametrize("env", SLOW)
def test_scripted_agents_on_a_hundred_tasks(env: str) -> None:
    async def all_of(role: str) -> list[Played]:
        return [await play(task, role) for task in get(env).tasks("test", min(100, get(env).n_test))]

    check_agents(env, {role: asyncio.run(all_of(role)) for role in ("expert", "novice")})


# 10,000 in all and more; fewer where a step takes long
FUZZED = {"babyai": 300, "alfworld": 200, "sciworld": 200}
REPLIES = 1_000
PIECES = (
    *("Thought: ", "Action: ", "Action Input: ", " with ", "\n", "{", "}", "[", "]", '"', "\\", "(", "</s>", "\ud800"),
    *(
        "go to",
        "take",
        "open",
        "search[",
        "click[",
        "finish",
        "look",
        "move",
        "\x00",
        "\u202e",
        "𝔘",
        "1",
        "-9",
        "1e999",
    ),
)


def fuzzed(rng: random.Random, canary: str) -> str:
    """A reply that no honest model gives: noise, pieces of the forms, code, or JSON that is deep or wide."""
    wild = "".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(40)))
    code = rng.choice(
        [
            f"__import__('os').mkdir({canary!r})",
            f"{{}}.__class__.__init__.__globals__['os'].mkdir({canary!r})",
            f"$(mkdir {canary})",
            f"`mkdir {canary}`",
            f"'; import os; os.mkdir({canary!r}) #",
            f'"+__import__("os").mkdir("{canary}")+"',
        ]
    )
    bomb = rng.choice(["[" * 5_000, '{"a":' * 3_000 + "1", "[" + "[1]," * 3_000 + "1]", "9" * 6_000, "1" + "0" * 5_000])
    inner = rng.choice([wild, code, code, bomb, "".join(rng.choices(PIECES, k=6)), *rng.choices(REAL_ACTIONS, k=3)])
    return rng.choice(
        [
            inner,
            f"Thought: {wild}\nAction: {inner}",
            f"Thought: {wild}\nAction: {inner} with Action Input: {inner}",
            f'Action: finish with Action Input: {{"answer": {json.dumps(inner)}}}',
            f"Action: finish with Action Input: {inner}",
            f"Action: search[{inner}]",
            f"Action: {rng.choice(PIECES)} {inner}",
            "".join(rng.choices(PIECES, k=10)),
        ]
    )


HUGE = ["", "x" * 2**20, "Action: " + "get " * 2**18, "Action: " * 2**17, "Action: \ud800\x00", "\n" * 2**20]


@pytest.mark.parametrize("env", BUILT_IN)
def test_any_reply_gets_an_answer_and_none_is_evaluated(env: str, tmp_path: Path) -> None:
    rng, canary, spec = random.Random(f"fuzz/{env}"), str(tmp_path / "canary"), get(env)
    tasks, simulator = spec.tasks("test", min(50, spec.n_test)), make_simulator(env)

    async def fuzz() -> None:
        session, done = LocalSession(get(env)), True
        for n in range(FUZZED.get(env, REPLIES) + len(HUGE)):
            if done:
                task = rng.choice(tasks)
                await session.reset(task)
                simulator.reset(spec.index(task.item_id))
            reply = HUGE[n] if n < len(HUGE) else fuzzed(rng, canary)
            if n >= len(HUGE) and rng.random() < 0.2:
                reply = simulator.expert(rng).reply  # so that it gets somewhere
            result = await session.step(reply)
            if (action := spec.take_action(reply)) is not None:
                assert simulator.step(action).done == result.done
            assert len(result.observation) < (500 if env in LAPTOP else 10_000)
            result.observation.encode()
            assert 0 <= spec.scale(result.reward) <= 1
            if n % 5 == 0 and not result.done:
                assert "Action: " in simulator.novice(rng).reply
            done = result.done
        await session.close()

    asyncio.run(fuzz())
    assert not Path(canary).exists()


@pytest.mark.parametrize("env", BUILT_IN)
def test_closed_simulators_release_everything(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "IDLE_SECONDS", 0.0)

    async def use() -> list[weakref.ref]:
        sessions = [LocalSession(get(env)) for _ in range(3)]
        for session in sessions:
            await session.reset(get(env).tasks("test", 1)[0])
            await session.step("Action: look")
        await asyncio.gather(*(session.close() for session in sessions))
        return [weakref.ref(session) for session in sessions]

    before = set(psutil.Process().children(recursive=True))
    sessions = asyncio.run(use())
    gc.collect()
    assert [session() for session in sessions] == [None] * 3
    _, left = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=30)
    assert left == []


@pytest.mark.parametrize(
    ("env", "sessions"),
    [
        *((env, 10 if env in HEAVY else SESSIONS) for env in BUILT_IN),
        *(pytest.param(env, SESSIONS, marks=pytest.mark.slow) for env in HEAVY),
    ],
)
def test_sessions_at_once_do_not_mix(env: str, sessions: int) -> None:
    runs = list(itertools.islice(itertools.cycle(all_played(env, "novice")), sessions))

    async def turns(one: Played) -> list[str]:
        session = LocalSession(get(env))
        seen = [(await session.reset(Task(env, one.task.rpartition("/")[2]))).observation]
        for reply in one.replies:
            await asyncio.sleep(0)  # so that the sessions take turns
            seen.append((await session.step(reply)).observation)
        await session.close()
        return seen

    async def at_once() -> list[list[str]]:
        return list(await asyncio.gather(*map(turns, runs)))

    assert asyncio.run(at_once()) == [one.observations for one in runs]


def test_a_fresh_process_with_another_hash_seed_repeats_a_prefix() -> None:
    prefixes: dict[str, list[tuple[str, list[str], list[str]]]] = {}
    for env in here(BUILT_IN):
        runs = all_played(env, "novice")
        for one in random.Random(env).sample(runs, min(5, len(runs))):
            length = random.Random(one.task).randint(1, len(one.replies))
            prefixes.setdefault(env, []).append((one.task, one.replies[:length], one.observations[: length + 1]))
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from atlas_ray.environments.registry import get\n"
        "seen = {}\n"
        "for env, runs in json.load(sys.stdin).items():\n"
        "    spec, simulator = get(env), get(env).simulator()\n"
        "    for task, replies, _ in runs:\n"
        "        found = [simulator.reset(spec.index(task.rpartition('/')[2])).observation]\n"
        "        found += [simulator.step(spec.take_action(reply) or '').observation for reply in replies]\n"
        "        seen.setdefault(env, []).append(found)\n"
        "print(json.dumps(seen))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(Path(__file__).parents[3]), *sys.path])],
        input=json.dumps(prefixes),
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {env: [seen for *_, seen in runs] for env, runs in prefixes.items()}


@pytest.mark.parametrize(
    ("env", "module"),
    [("babyai", "minigrid"), ("jericho", "jericho"), ("sciworld", "scienceworld"), ("webshop", "tantivy")],
)
def test_a_missing_extra_names_its_installation(env: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search_of.cache_clear()
    true_import = builtins.__import__

    def without(name: str, *rest: Any, **given: Any) -> Any:
        if name.partition(".")[0] == module:
            raise ImportError(name)
        return true_import(name, *rest, **given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=f"needs {module}") as caught:
        LocalSession(get(env))
    assert caught.value.remedy == f"pip install 'atlas-ray[{get(env).extra}]'"
