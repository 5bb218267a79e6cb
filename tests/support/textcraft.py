"""The published TextCraft behind OpenEnv's server: its tasks, and the calls that solve them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiohttp

from atlas_ray.environments.foreign.openenv_servers import Package, addresses

SERVER = "textcraft_many:app"  # tests/support/openenv_package/textcraft_many.py


async def started(place: str) -> str:
    """The address of a package's server, which ends with this process or with all that it has started."""
    return await anext(addresses(Package.of(place)))


async def tasks(url: str, count: int) -> list[dict[str, Any]]:
    """The first tasks, as the server tells them."""
    asked = {"split": "val", "start": 0, "stop": count}
    async with aiohttp.ClientSession() as http, http.post(f"{url}/textcraft_env/task_range", json=asked) as answer:
        return list((await answer.json())["tasks"])


def way_to(task: Mapping[str, Any], wrong: bool) -> list[tuple[str, dict[str, Any]]]:
    """The calls that solve a task, or leave its last craft out."""
    crafts = [
        ("craft", {"ingredients": step["ingredients"], "target": [step["target"][0], step["result_count"]]})
        for step in task["misc"]["gold_trajectory"]
    ]
    return [*(crafts[:-1] if wrong else crafts), ("finish", {"message": "It is made."})]
