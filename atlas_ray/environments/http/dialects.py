"""How an environment's server is spoken to: AgentGym's wire forms, for the client and the server alike.

There are three families: (A) `id` with observation, reward and done; (B) the tools, `env_idx` with bare
answers; (C) webshop, like the tools with other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Dialect:
    """One environment's wire form.

    Attributes:
        prefixed: AgentGym serves it below `/<name>` rather than at the root.
        create_body: Body that `/create` asks for, or None for none.
        id_key: The episode's key in requests.
        index_key: The task's key in `/reset`; `reset_body` is sent along.
        reset_fields: What our server's `/reset` answers.
        observation_key: The observation's key in the answer to `/step`.
        reward_key: The key of the reward so far.
        opening: Where the first observation comes from: reset's answer; the vocabulary; the task's description and
            reset's observation; reset's observation and the available actions; or a GET of `/observation`.
        compose: The first observation of a vocabulary.
        closes: Whether there is a `/close`.
        bare: As the tools: `/create` answers the id and `/reset` the text alone, `/observation` always the first text,
            it carries on after the end, and what cannot be met is a plain HTTP 500.
        paged: As webshop: `/reset` answers a pair, `/observation` the page at hand, and further GETs tell its state.
        pays_once: The first reward other than 0 ends the episode, whatever `done` says: babyai leaves that false where
            the goal was reached late, and goes on adding.
    """

    prefixed: bool = False
    create_body: Mapping[str, Any] | None = None
    id_key: str = "id"
    index_key: str = "data_idx"
    reset_body: Mapping[str, Any] = field(default_factory=dict)
    reset_fields: tuple[str, ...] = ("observation", "reward", "done", "progress")
    observation_key: str = "observation"
    reward_key: str = "reward"
    opening: Literal["reset", "vocabulary", "description", "actions", "observation"] = "reset"
    compose: Callable[[Any], str] = str
    closes: bool = True
    bare: bool = False
    paged: bool = False
    pays_once: bool = False


# what AgentGym's client of alfworld puts between the first observation and the actions
AVAILABLE_ACTIONS = "\nAVAILABLE ACTIONS: "

# by which our own server tells at its root how many test tasks it has of each environment
OWN_SERVER = "atlas_ray"

GENERIC = Dialect()
SCORED = ("observation", "reward", "score", "deleted", "done")
TOOL = Dialect(create_body={"id": 0}, id_key="env_idx", index_key="id", opening="observation", closes=False, bare=True)
