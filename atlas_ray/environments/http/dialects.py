"""How each environment's server is spoken to: AgentGym's wire forms as a table, for the client and the server alike.

Three dialects stand behind the rows: (A) `id` with observation, reward and done; (B) the tools, `env_idx` with bare
answers; (C) webshop, like the tools with other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    closes: bool = True
    bare: bool = False
    paged: bool = False
    pays_once: bool = False


# what AgentGym's client of alfworld puts between the first observation and the actions
AVAILABLE_ACTIONS = "\nAVAILABLE ACTIONS: "

# by which our own server tells at its root how many test tasks it has of each environment
OWN_SERVER = "atlas_ray"

GENERIC = Dialect()
_SCORED = ("observation", "reward", "score", "deleted", "done")
_TOOL = Dialect(create_body={"id": 0}, id_key="env_idx", index_key="id", opening="observation", closes=False, bare=True)

DIALECTS: dict[str, Dialect] = {
    "maze": Dialect(prefixed=True, index_key="game", reset_fields=("observation",), closes=False),
    "wordle": Dialect(
        prefixed=True, index_key="seed", reset_fields=("id", "observation"), opening="vocabulary", closes=False
    ),
    "textcraft": Dialect(create_body={}, reset_fields=("id", "observation", "done", "reward")),
    "blocksworld": GENERIC,
    "pddl": GENERIC,
    "jericho": GENERIC,
    "babyai": Dialect(reward_key="score", reset_fields=_SCORED, pays_once=True),
    "sciworld": Dialect(
        reward_key="score",
        opening="description",
        reset_fields=("task_name", "var_num", "task_description", *_SCORED),
    ),
    "alfworld": Dialect(
        index_key="game",
        reset_body={"world_type": "Text"},
        reset_fields=("id", "observation"),
        opening="actions",
        closes=False,
    ),
    "weather": _TOOL,
    "movie": _TOOL,
    "todo": _TOOL,
    "academia": _TOOL,
    "sheet": _TOOL,
    "webshop": Dialect(
        id_key="env_idx",
        index_key="session_id",
        observation_key="state",
        opening="observation",
        closes=False,
        bare=True,
        paged=True,
    ),
}
