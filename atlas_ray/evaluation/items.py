"""Which test tasks an evaluation plays, and what keeps it from playing them, found out before anything is run.

Flows in: its settings; flows out: tasks by environment, sentences on what is wrong, and on what a data set of items
names beside them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from typing import Any

from atlas_ray.config import DataConfig, EnvironmentsConfig
from atlas_ray.environments import registry
from atlas_ray.environments.agentgym.agentboard import NAMES, with_agentboard
from atlas_ray.environments.agentgym.task_numbers import numbered, unplayable
from atlas_ray.environments.client import open_session
from atlas_ray.environments.http.probe import ServedTasks, served_tasks
from atlas_ray.errors import UserError, together
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.trajectories.item_ids import NOT_PLAYED
from atlas_ray.trajectories.readers import Items, read_items
from atlas_ray.trajectories.rejected import rejected_figures, skipped_line
from atlas_ray.types import Task

_NAME_THEM = "name them by a data set with their item ids: evaluate.items: {path: AgentGym/AgentEval}"


def test_tasks(config: EvaluateConfig) -> dict[str, list[Task]]:
    """Tasks by environment, in the order of `config.tasks`: those that `config.items` names, else the built-in ones.

    Raises:
        UserError: If an environment is unknown, has too few test tasks, or has none because it is neither built in nor
            named by `config.items`; or if an item's environment has no server, for built-in tasks are others. All of
            that at once.
    """
    found, wrong = _tasks(config)
    if wrong:
        raise together(wrong)
    return found


def problems(config: EvaluateConfig, *, ask: bool = True) -> list[UserError]:
    """Everything that keeps the test tasks from being played; nothing is started or written.

    Args:
        ask: Whether servers are asked whose they are, where built-in tasks are to be played there.
    """
    found, wrong = _tasks(config)
    for env in config.tasks:
        try:
            open_session(registry.get(env), config.environments)
        except UserError as error:
            wrong += [error] if str(error) not in map(str, wrong) else []
    if config.protocol == "tools" and (without := [env for env in config.tasks if not registry.get(env).offers_tools]):
        wrong.append(UserError(f"{', '.join(without)}: no tools to call", "play them as text: protocol: react"))
    wrong += unplayable((task for tasks in found.values() for task in tasks), config.environments)
    return wrong + (wrong_servers(config) if ask else [])


def wrong_servers(config: EvaluateConfig) -> list[UserError]:
    """Servers that do not have the built-in test tasks which are to be played there: AgentGym's have others."""
    found, _ = _tasks(config)
    named = _items_of(config).ids if found else {}
    asked = [(env, server) for env in found if env not in named for server in config.environments.servers.get(env, [])]

    async def ask() -> Sequence[ServedTasks]:
        return await asyncio.gather(*(served_tasks(server, env) for env, server in asked))

    told = list(zip(asked, asyncio.run(ask()) if asked else [], strict=True))
    answering = {env for (env, _), served in told if not served.fault}
    wrong = []
    for (env, server), served in told:
        if served.fault and env in answering:
            continue  # it may be starting, and its episodes go to the others
        if served.fault:
            wrong.append(UserError(f"{env} at {server}: {served.fault}", "start the server, or mend its address"))
        elif served.tasks is None and served.may_be_agentgyms:
            wrong.append(
                UserError(f"{env} at {server}: a server of AgentGym's kind, whose test tasks are its own", _NAME_THEM)
            )
        elif served.tasks is not None and served.tasks < len(found[env]):
            what = f"{env} at {server}: it has {served.tasks} test tasks, {len(found[env])} were asked for"
            wrong.append(UserError(what, "ask for fewer"))
    return wrong


def item_lines(config: EvaluateConfig) -> list[str]:
    """What the data set of items names beside the tasks that are played, in words."""
    named, lines = _items_of(config), []
    if skipped := skipped_line(named.rejected):
        lines.append(f"items: {skipped}")
    if rows := [row for row in named.rejected if row.is_unusable]:
        lines.append(f"items: {len(rows)} rows name no task; the first: {rows[0]}")
    if others := [f"{env} {len(ids)}" for env, ids in named.ids.items() if env not in config.tasks]:
        lines.append(f"items: not asked for in evaluate.tasks: {', '.join(others)}")
    return lines


def unknown_items(config: EvaluateConfig) -> list[UserError]:
    """Items of environments that AgentGym does not have either: they are skipped, and most likely misspelt."""
    rows = [row for row in _items_of(config).rejected if row.unknown is not None and row.unknown not in NOT_PLAYED]
    if not rows:
        return []
    what = f"{skipped_line(rows)}; the first: {rows[0].file}, row {rows[0].row}"
    return [UserError(what, "mend the ids or take them out, or say what is wanted: evaluate.items.envs")]


def item_figures(config: EvaluateConfig) -> dict[str, Any]:
    """The same for the run's record."""
    return {"items": rejected_figures(_items_of(config).rejected)} if config.items else {}


def _tasks(config: EvaluateConfig) -> tuple[dict[str, list[Task]], list[UserError]]:
    """Tasks by environment, and why those of others are not known."""
    try:
        named = _items_of(config).ids
    except UserError as error:
        return {}, [error]
    found, wrong = dict[str, list[Task]](), list[UserError]()
    unserved = [env for env in config.tasks if env in named and env not in config.environments.servers]
    if unserved:
        wrong.append(
            UserError(
                f"evaluate.items names tasks of {', '.join(unserved)}, for which no server is named",
                "name it in environments.servers, or leave the items out to play built-in tasks, which are others",
            )
        )
    for env, limit in config.tasks.items():
        if env in unserved:
            continue
        try:
            found[env] = _chosen(env, limit, named, config.environments)
        except UserError as error:
            wrong.append(error)
    return found, wrong


def _chosen(env: str, limit: int | None, named: dict[str, list[str]], environments: EnvironmentsConfig) -> list[Task]:
    spec = registry.get(env)
    if env not in named:
        if not spec.knows_tasks:
            raise UserError(f"which test tasks {env} has is not known here: its server holds them", _NAME_THEM)
        return with_agentboard(spec, environments).tasks("test", limit)
    ids = named[env]
    if limit is not None and limit > len(ids):
        raise UserError(f"{env} has {len(ids)} test tasks, {limit} were asked for", "ask for fewer")
    return [_told(Task(env, item_id), environments) for item_id in ids[:limit]]


def _told(task: Task, environments: EnvironmentsConfig) -> Task:
    """The task with its number, where that can be told: a report is made of tasks without numbers too."""
    try:
        return numbered(task, environments)
    except UserError:
        return task


def _items_of(config: EvaluateConfig) -> Items:
    return _items(config.items.model_dump_json()) if config.items else Items({}, [])


@cache
def _items(config: str) -> Items:
    return read_items(DataConfig.model_validate_json(config))


def remote_environments(config: EvaluateConfig) -> list[str]:
    """Environments whose test tasks a server holds: those whose tasks are not known here, and all that items name."""
    return [e for e in config.tasks if not registry.get(e).knows_tasks or (config.items and e not in NAMES)]
