"""Tools of other libraries' environments in text: what a model is told of them, and the call in its reply.

Flows in: schemas in OpenAI's form, and replies; flows out: an instruction, and a tool's name with its arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_ray.environments.builtin.tools.core import read_action

_FORM = """\
Every round you answer with a thought and one action in this form:
Thought: your thought

Action: the tool's name with Action Input: its input as JSON, {} where it has no parameters"""


def tool_instruction(about: str, tools: Sequence[Mapping[str, Any]]) -> str:
    """How to play with tools, each on a line with the schema of its input."""
    lines = "\n".join(_line(tool["function"]) for tool in tools)
    return f"{about}\nThe tools, with the JSON schema of their input, are:\n{lines}\n{_FORM}"


def _line(function: Mapping[str, Any]) -> str:
    schema = json.dumps(function.get("parameters") or {}, ensure_ascii=False, sort_keys=True)
    about = " ".join(str(function.get("description") or "").split())
    return f"{function['name']} {schema}" + (f": {about}" if about else "")


def read_call(reply: str) -> tuple[str, dict[str, Any]] | None:
    """The tool and the arguments that a reply names; None where it names none, or its input is no JSON object."""
    found = read_action(reply)
    if found is None or found[1] is None:
        return None
    return found[0], found[1]


def schema(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool's schema in OpenAI's form."""
    function = {"name": name, "description": description or "", "parameters": dict(parameters or {"type": "object"})}
    return {"type": "function", "function": function}
