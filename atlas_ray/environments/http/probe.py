"""What one environment server can do, found out by playing a little: for `atlas doctor`; and whose tasks it has.

Flows in: an address and an environment; flows out: a `Probe` in words, or `ServedTasks`.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import Any

from atlas_ray.environments import registry
from atlas_ray.environments.client import PAUSE_SECONDS, check_address
from atlas_ray.environments.http.client_pool import ClientPool, Lease
from atlas_ray.environments.http.dialects import OWN_SERVER
from atlas_ray.environments.http.requests import Fault, Refusal, request_json
from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.environments.replay import worst
from atlas_ray.errors import UserError
from atlas_ray.types import Replay

_ROOT_TRIES = 3
MOST_TASKS = 4096  # looked for; some servers take any number


@dataclass(frozen=True, slots=True)
class Probe:
    """What one server can do for one environment, in words for a table; "-" where it was not reached.

    Attributes:
        ok: Whether it can be used at all; a replay that differs does not forbid it.
        tasks: Which tasks were to be had, e.g. "0 to 24"; else why none was.
        replay: "exact" where task 0 and a few actions gave the same texts and rewards twice, "lines in another order",
            "nearly" (within the environment's tolerance), or what differed.
    """

    ok: bool = False
    reachable: str = "-"
    tasks: str = "-"
    replay: str = "-"


async def probe(url: str, name: str, timeout_s: float = 10.0) -> Probe:
    """Tries one server: an id, task 0, a short prefix, the same again on another id; then how many tasks there are.

    Raises:
        UserError: If the environment is unknown, or the address is no URL.
    """
    spec = registry.get(name)
    check_address(name, url)
    pool = ClientPool.join()
    connection, leases = pool.connection(url.rstrip("/"), spec, timeout_s), list[Lease]()
    found = Probe()
    try:
        played: list[list[tuple[str, float]]] = []
        for _ in range(2):
            leases.append(await connection.acquire(fresh=True))
            found = replace(found, reachable="yes")
            turns = [(await leases[-1].reset(0), 0.0)]
            found = replace(found, ok=True, tasks="0")
            played.append(turns + await _play(leases[-1], spec))
        found = replace(found, replay=_compare(spec, *played))
        return replace(found, tasks=await _tasks(leases[-1], timeout_s))
    except Fault as fault:
        if not fault.answered:
            return replace(found, ok=False, reachable=f"no: {fault}")
        key = "replay" if found.ok else "tasks"
        return replace(found, ok=False, reachable="yes", **{key: f"no: {fault}"})
    finally:
        await asyncio.gather(*(lease.drop() for lease in leases))
        await pool.leave()


@dataclass(frozen=True, slots=True)
class ServedTasks:
    """Whose tasks a server has.

    Attributes:
        tasks: How many test tasks one of `atlas serve` has, numbered as the built-in ones; None of any other server.
        may_be_agentgyms: Whether AgentGym has the environment, so that any other server's tasks may be AgentGym's.
        fault: Why it does not answer at all, else empty.
    """

    tasks: int | None = None
    may_be_agentgyms: bool = True
    fault: str = ""


async def served_tasks(url: str, name: str, timeout_s: float = 10.0) -> ServedTasks:
    """Asks a server whose it is; ours say so at their root, and AgentGym's are told by saying anything else."""
    agentgyms = registry.get(name).agentgym is not None
    pool = ClientPool.join()
    try:
        answer = await _root(pool, url, timeout_s)
        ours = answer.get(OWN_SERVER) if isinstance(answer, dict) else None
        tasks = ours.get(name) if isinstance(ours, dict) else None
        return ServedTasks(tasks if isinstance(tasks, int) else None, agentgyms)
    except Fault as fault:
        return ServedTasks(None, agentgyms, "" if fault.answered else f"it does not answer: {fault}")
    finally:
        await pool.leave()


async def _root(pool: ClientPool, url: str, timeout_s: float) -> Any:
    """What a server answers at its root; any may fail once.

    Raises:
        Fault: If it fails each time.
    """
    address = url.rstrip("/") + "/"
    for _ in range(_ROOT_TRIES - 1):
        try:
            return await request_json(pool.http, "GET", address, None, timeout_s)
        except Refusal:
            raise
        except Fault:
            await asyncio.sleep(PAUSE_SECONDS)
    return await request_json(pool.http, "GET", address, None, timeout_s)


async def _play(lease: Lease, spec: EnvironmentSpec) -> list[tuple[str, float]]:
    """A few turns of task 0."""
    turns = []
    for reply in _prefix(spec):
        result = await lease.step(spec.take_action(reply) or "")
        turns.append((result.observation, result.reward))
        if result.done:
            break
    return turns


def _compare(spec: EnvironmentSpec, once: list[tuple[str, float]], again: list[tuple[str, float]]) -> str:
    if once == again:
        return "exact"
    found: Replay | None = None
    for turn, ((a, reward), (b, other)) in enumerate(zip(once, again, strict=False)):
        found = worst(found, spec.compare(a, b))
        if found == "differs" or reward != other:
            return f"differs after {turn} actions"
    if len(once) != len(again):
        return "differs in length"
    return "lines in another order" if found == "exact" else "nearly"


async def _tasks(lease: Lease, seconds: float) -> str:
    """Which tasks the server starts, taking them to be numbered from 0 without gaps."""
    until, least, most = time.monotonic() + seconds, 0, 0  # `least` is there; `most` is not, once it is found

    async def has(index: int) -> bool:
        try:
            await lease.reset(index)
        except Fault as fault:
            if not fault.answered:
                raise
            return False
        return True

    while least < MOST_TASKS and most != least + 1 and time.monotonic() < until:
        index = (least + most) // 2 if most else max(1, 2 * least)
        if await has(index):
            least = index
        else:
            most = index
    return f"0 to {least}" + ("" if most == least + 1 else " at least")


def _prefix(spec: EnvironmentSpec) -> list[str]:
    """A few replies that move something where the server plays our own simulator, and that any server answers."""
    try:
        simulator = spec.simulator() if spec.simulator else None
    except UserError:  # its extra is not installed, and the server does without
        simulator = None
    replies = [f"Action: {action}" for action in spec.probe_actions]
    if simulator is None:
        return replies or ["Action: look around", "Action: inventory"]
    simulator.reset(0)
    for _ in range(3):
        replies.append(simulator.expert(random.Random(0)).reply)
        if simulator.step(spec.take_action(replies[-1]) or "").done:
            break
    return replies
