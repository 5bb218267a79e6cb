"""Which test tasks an evaluation plays. Flows in: its settings; flows out: tasks by environment."""

from __future__ import annotations

from functools import cache

from atlas_ray.config import DataConfig
from atlas_ray.environments import table
from atlas_ray.environments.agentboard import with_agentboard
from atlas_ray.errors import UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.trajectories.readers import read_items
from atlas_ray.types import Task


def test_tasks(config: EvaluateConfig) -> dict[str, list[Task]]:
    """Tasks by environment, in the order of `config.tasks`: those that `config.items` names, else the built-in ones.

    Raises:
        UserError: If an environment is unknown, has too few test tasks, or has none because it is neither built in nor
            named by `config.items`; or if an item's environment has no server, for a built-in world's tasks are others.
    """
    named = _items(config.items.model_dump_json()) if config.items else {}
    found = {}
    for env, limit in config.tasks.items():
        spec = table.get(env)
        if env not in named:
            if spec.world is None:
                raise UserError(
                    f"which test tasks {env} has is not known here: its server holds them",
                    "name them by a data set with their item ids: evaluate.items: {path: AgentGym/AgentEval}",
                )
            found[env] = with_agentboard(spec, config.environments).tasks("test", limit)
            continue
        if env not in config.environments.servers:
            raise UserError(
                f"evaluate.items names tasks of {env}, which its server holds, and none is named",
                f"name it in environments.servers.{env}, or leave the items out to play built-in tasks",
            )
        ids = named[env]
        if limit is not None and limit > len(ids):
            raise UserError(f"{env} has {len(ids)} test tasks, {limit} were asked for", "ask for fewer")
        found[env] = [Task(env, item_id) for item_id in ids[:limit]]
    return found


@cache
def _items(config: str) -> dict[str, list[str]]:
    return read_items(DataConfig.model_validate_json(config))
