"""What every built-in world must hold: sessions at once do not mix, and another process repeats what one has seen."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.environments.table import get, local_session
from tests.test_environments import BUILT_IN, all_played

SESSIONS = 64


@pytest.mark.parametrize("env", BUILT_IN)
def test_sessions_at_once_do_not_mix(env: str) -> None:
    runs = all_played(env, "novice")[:SESSIONS]

    async def turns(n: int) -> list[str]:
        session = local_session(env)
        seen = [(await session.reset(get(env).tasks("test")[n])).observation]
        for reply in runs[n].replies:
            await asyncio.sleep(0)  # so that the sessions take turns
            seen.append((await session.step(reply)).observation)
        return seen

    async def at_once() -> list[list[str]]:
        return list(await asyncio.gather(*(turns(n) for n in range(len(runs)))))

    assert asyncio.run(at_once()) == [one.observations for one in runs]


def test_a_fresh_process_with_another_hash_seed_repeats_a_prefix() -> None:
    prefixes: dict[str, list[tuple[str, list[str], list[str]]]] = {}
    for env in BUILT_IN:
        runs = all_played(env, "novice")
        for one in random.Random(env).sample(runs, min(5, len(runs))):
            length = random.Random(one.task).randint(1, len(one.replies))
            prefixes.setdefault(env, []).append((one.task, one.replies[:length], one.observations[: length + 1]))
    code = (
        "import json, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
        "from atlas_ray.environments.table import get\n"
        "seen = {}\n"
        "for env, runs in json.load(sys.stdin).items():\n"
        "    spec, world = get(env), get(env).world()\n"
        "    for task, replies, _ in runs:\n"
        "        found = [world.reset(spec.index(task)).observation]\n"
        "        found += [world.step(spec.take_action(reply) or '').observation for reply in replies]\n"
        "        seen.setdefault(env, []).append(found)\n"
        "print(json.dumps(seen))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(Path(__file__).parents[1]), *sys.path])],
        input=json.dumps(prefixes),
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {env: [seen for *_, seen in runs] for env, runs in prefixes.items()}
