"""Episodes as verifiers saves them (0.4, `traces.jsonl`): a line holds an agent's trace, a graph of messages.

A reply that the model did not sample itself is context: the saved `sampled` says which. Rewards are weighted and summed
as verifiers does it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.formats import openai
from atlas_ray.trajectories.formats.protocol import Row
from atlas_ray.trajectories.formats.turns import NO_ENVIRONMENT, Turn
from atlas_ray.trajectories.item_ids import task_of

_NO_NAME = re.compile(r"[^a-z0-9_]+")


def _trace(row: Row) -> dict[str, Any]:
    traces = row["traces"]
    if len(traces) != 1:
        raise DataError(f"the episode holds {len(traces)} traces, and one agent's is read", "leave such rows out")
    trace: dict[str, Any] = traces[0]
    if errors := trace.get("errors"):
        raise DataError(f"the rollout failed: {errors[-1].get('message')}", "leave such rows out")
    return trace


def _turns(row: Row) -> Iterator[Turn]:
    """The messages from the first to the last."""
    nodes = _trace(row)["nodes"]
    ends = set(range(len(nodes))) - {node.get("parent") for node in nodes}
    if len(ends) != 1:
        what = f"the conversation has {len(ends)} ends, as where an agent's context was written anew"
        raise DataError(f"{what}, and one is read", "leave such rows out")
    place, path = ends.pop(), list[dict[str, Any]]()
    while place is not None:
        if len(path) > len(nodes):
            raise DataError("the messages' parents run in a circle")
        path.append(nodes[place])
        place = nodes[place].get("parent")
    for node in reversed(path):
        message = node["message"]
        flag = {"train": bool(node.get("sampled"))} if message.get("role") == "assistant" else {}
        yield dict(message) | flag


def _task(row: Row) -> tuple[str, str]:
    data = row["task"]["data"]
    named = (row.get("env") or {}).get("id") or row["task"].get("type") or NO_ENVIRONMENT
    env = _NO_NAME.sub("_", str(named).lower()).strip("_0123456789") or NO_ENVIRONMENT
    own = next((data[key] for key in ("id", "name", "idx") if data.get(key) is not None), row.get("id"))
    return task_of({"env": env, "item_id": f"{env}_{own}"})


def _reward(row: Row) -> float | None:
    given = [reward for reward in (_trace(row).get("rewards") or {}).values() if reward is not None]
    return sum(reward["score"] * reward.get("weight", 1.0) for reward in given) if given else None


FORMAT = replace(
    openai.FORMAT,
    recognises=lambda row: isinstance(row.get("traces"), list) and isinstance(row.get("task"), dict),
    messages=lambda row: openai.FORMAT.messages({"messages": list(_turns(row))}),
    task=_task,
    reward=_reward,
    tools=lambda row: openai.FORMAT.tools({"tools": _trace(row).get("tools")}),
    unused=lambda row: (),  # timings, tokens and settings of the run
)
