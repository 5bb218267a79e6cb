"""Whose tasks an evaluation plays, where they are not the paper's.

Flows in: environments and how they are reached; flows out: words for tables. The paper plays AgentGym's tasks on
AgentGym's servers, and AgentBoard's Jericho and PDDL, which no server of AgentGym's has. Built-in environments are of
the same kind, with other tasks.
"""

from __future__ import annotations

from collections.abc import Iterable

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.environments.agentgym.agentboard import NAMES


def other_tasks(envs: Iterable[str], config: EnvironmentsConfig) -> dict[str, str]:
    """The environments whose tasks are not those that the paper prints figures of, and whose they are.

    A server is taken for AgentGym's. Beside a server, `agentboard` says what it was given to serve.
    """
    found = {env: _whose(env, config) for env in envs}
    return {env: words for env, words in found.items() if words is not None}


def _whose(env: str, config: EnvironmentsConfig) -> str | None:
    if env not in NAMES:
        return None if env in config.servers else "built in, not AgentGym's"
    if env in config.agentboard:
        return None
    return "a server's, not known to be AgentBoard's" if env in config.servers else "built in, not AgentBoard's"
