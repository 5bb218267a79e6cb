"""Rows, servers and checkouts with the openings that AgentGym's clients give, for the tests of openings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from atlas_ray.config import validate
from atlas_ray.evaluation.settings import EvaluateConfig
from tests.support.agentgym import AgentGym
from tests.support.serving import recorded

TWELVE = ("alfworld", "babyai", "maze", "wordle", "sciworld", "textcraft", "webshop")
TWELVE += ("weather", "movie", "todo", "academia", "sheet")
TRAINED, TESTED = (0, 17, 23, 31), (17, 42)  # tasks with rows; one with a row, and one without


def server(env: str) -> AgentGym:
    """A server with the texts that AgentGym's own server of the environment told, where they were recorded."""
    found = AgentGym(env)
    if env in ("maze", "babyai", "textcraft", "weather"):
        for one in recorded(env):
            told = one["response"].get("json")
            text = told.get("observation") if isinstance(told, dict) else told
            if one["request"]["path"].endswith("/reset") and isinstance(text, str):
                found.told.setdefault(one["request"]["json"][found.index_key], text)
    if env == "wordle":
        found.vocabulary = recorded("wordle")[1]["response"]["json"]
    return found


def third_turn(server: AgentGym, index: int, reference: Mapping[str, Any]) -> str:
    """What AgentGym's client shows first of a task on this server."""
    told = server.told.get(index, f"task {index}, step 0")
    if server.tool and index not in server.told:
        asked = f"You should perform actions to accomplish the goal: {index}"
        told = f"Now new trial starts.\n{asked}\nGive me one action."
    told = reference.get("first_observation_prefix", "") + told
    if "first_observation" not in reference:
        return told
    parts = {
        "{observation}": told,
        "{task_description}": f"Task Description: {index}",
        "{available_actions joined by ','}": "go 1,look",
        "{{vocab}}": "\n".join(server.vocabulary),
    }
    text = reference["first_observation"]
    for name, part in parts.items():
        text = text.replace(name, part)
    return text


def row(item_id: str, instruction: str, acknowledgement: str, observation: str) -> dict[str, Any]:
    """A trajectory as AgentTraj-L has them."""
    said = (instruction, acknowledgement, observation, "Thought: so\nAction: go 1", "task 0, step 1")
    turns = [{"from": ("human", "gpt")[i % 2], "loss": (None, i == 3)[i % 2], "value": s} for i, s in enumerate(said)]
    return {"item_id": item_id, "conversations": turns}


def written(file: Path, rows: Iterable[object]) -> str:
    file.write_text(json.dumps(list(rows)))
    return str(file)


def rows_like(env: str, reference: Mapping[str, Any], trained: Iterable[int] = TRAINED) -> list[dict[str, Any]]:
    instruction, acknowledgement = (turn["value"] for turn in reference["react"])
    known = server(env)
    return [row(f"{env}_{i}", instruction, acknowledgement, third_turn(known, i, reference)) for i in trained]


def settings(tmp_path: Path, envs: Iterable[str], tested: Iterable[int] = TESTED, **given: Any) -> EvaluateConfig:
    items = written(tmp_path / "items.json", [{"item_id": f"{env}_{i}"} for env in envs for i in tested])
    values = {"run": str(tmp_path / "run"), "models": {"base": "x"}, "tasks": dict.fromkeys(envs), "retries": 0}
    return validate(EvaluateConfig, values | {"items": {"path": items}} | given)


_CLIENT = """
import nothing_of_this_name
raise SystemExit("this file was run")

class {env}EnvClient(BaseEnvClient):
    conversation_start = (
        ConversationMessage({{"from": "human", "loss": None, "value": {0!r}}}),
        ConversationMessage({{"from": "gpt", "loss": False, "value": {1!r}}}),
    )
"""
_WITH_RULES = """
    _long_first_observation = {rules!r}.strip()
    _short_first_observation = "Find out."

    def reset(self, idx=0):
        response = self._post("reset", {{"game": idx}})
        self.first_observation = self._long_first_observation
        response["observation"] = (
            self.first_observation + "\\n" + response["observation"]
        )
        return response
"""
_WITH_WORDS = """
    first_observation = {rules!r}.strip()

    def reset(self, idx=0):
        self.info["observation"] = self.first_observation.replace("{{{{vocab}}}}", "\\n".join(self.info["vocab"]))
        return self._post("reset", {{"seed": idx}})
"""
_WITH_ADAPTER = """
ASKED = {0!r}

class {env}Adapter(BaseAdapter):
    conversation_start_dict = {{
        ActionFormat.FUNCTION_CALLING: (
            ConversationMessage({{"from": "human", "loss": None, "value": f"{{format_functions(FUNCTIONS)}}"}}),
            ConversationMessage({{"from": "gpt", "loss": False, "value": "Ok."}}),
        ),
        ActionFormat.REACT: (
            ConversationMessage({{"from": "human", "loss": None, "value": ASKED}}),
            ConversationMessage({{"from": "gpt", "loss": False, "value": {1!r}}}),
        ),
    }}

class {env}EnvClient(BaseEnvClient):
    adapter_cls = {env}Adapter

    def __init__(self, *args):
        self.conversation_start = self.adapter_cls.conversation_start_dict[self.action_format]

    def reset(self, idx):
        response = self._post("reset", {{"session_id": idx}})
        response[0] = self.observe()
        return response
"""


def checkout(folder: Path, texts: Mapping[str, Any]) -> str:
    """A folder with some clients in the shape of AgentGym's, saying these texts."""
    clients = folder / "agentenv" / "agentenv" / "envs"
    clients.mkdir(parents=True)
    names = {"academia": "Academia", "sheet": "Sheet", "maze": "Maze", "wordle": "Wordle", "webshop": "Webshop"}
    for env, name in names.items():
        said = [turn["value"] for turn in texts[env]["react"]]
        rules = texts[env].get("first_observation", texts[env].get("first_observation_prefix", ""))
        more = {"maze": _WITH_RULES, "wordle": _WITH_WORDS}.get(env, "")
        shape = _WITH_ADAPTER if env == "webshop" else _CLIENT + more
        (clients / f"{env}.py").write_text(shape.format(*said, env=name, rules=rules))
    return str(folder)


TEXTS = {
    env: {"react": [{"value": f"Play {env}."}, {"value": "Yes."}]}
    for env in ("academia", "sheet", "maze", "wordle", "webshop")
}
