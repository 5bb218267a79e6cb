"""What the tool environments share: actions as `NAME with Action Input: {json}`, their schemas, the answer check.

Flows in: a model's whole reply; flows out: the tool's result in AgentGym's words. Replies are parsed as JSON within
bounds, never evaluated.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas_ray.environments.protocol import ToolUse
from atlas_ray.types import ToolCall

MAX_INPUT = 10_000  # characters of an action's input
MAX_DEPTH = 6
MAX_NAME = 80
MAX_SHOWN = 8_000  # characters of an observation

FORMAT_ERROR = (
    'Format error, please response in the format of  "Action: [your action] with Action Input: [your action input]'
)
INVALID_INPUT = "Parameters in action input are not valid, please change your action input."
CHECK, FINISH = "check_valid_actions", "finish"

_ACTION = re.compile(
    r"(?:.{0,2000}Action:)?[ \t]{0,9}([^\n]{1,80}?)[ \t]{1,9}with[ \t]{1,9}Action Input:[ \t]{0,9}(.*)"
)
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?", re.ASCII)

Kind = Literal["string", "number", "integer", "array", "value"]
_JSON_SCHEMAS: Mapping[Kind, Mapping[str, Any]] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "integer": {"type": "integer"},
    "array": {"type": "array", "items": {}},
    "value": {"type": ["string", "number", "array"], "items": {}},
}


class ToolError(Exception):
    """What a tool refuses, in words for the agent."""


@dataclass(frozen=True)
class Tool:
    """One action of a toolbox.

    Attributes:
        run: The function behind it: `run(state, **parameters)` gives the result, or raises `ToolError`.
        parameters: Kind of each parameter.
        optional: Those that may be left out.
        changes: Whether it changes the state.
    """

    name: str
    about: str
    run: Callable[..., Any]
    parameters: Mapping[str, Kind] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    changes: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """Its parameters as a JSON schema."""
        return {
            "type": "object",
            "properties": {name: dict(_JSON_SCHEMAS[kind]) for name, kind in self.parameters.items()},
            "required": [name for name in self.parameters if name not in self.optional],
        }

    @property
    def line(self) -> str:
        """Its line in the instruction."""
        shown = ", ".join(f"[{name}]" if name in self.optional else name for name in self.parameters)
        return f"{self.name}({shown}): {self.about}"

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters out of an action's input; numbers may come as text, and text as a number.

        Raises:
            ToolError: If one is missing, or of another kind.
        """
        taken = {}
        for name, kind in self.parameters.items():
            value = given.get(name)
            if value is None:
                if name not in self.optional:
                    raise ToolError(f"Missing parameter: {name}.")
                continue
            taken[name] = _fit(name, kind, value)
        return taken


def _fit(name: str, kind: Kind, value: Any) -> Any:
    wrong = ToolError(f"The parameter {name} must be of type {kind}.")
    if kind == "value":
        return value
    if kind == "array":
        if not isinstance(value, list):
            raise wrong
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong
    if kind == "string":
        return str(value)
    number = as_number(value)
    if number is None or (kind == "integer" and number != int(number)):
        raise wrong
    return int(number) if kind == "integer" else number


def as_number(value: Any) -> float | None:
    """A number, or a text that is one, as a float; None for anything else."""
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e15 else None


def read_action(reply: str) -> tuple[str, dict[str, Any] | None] | None:
    """The action in a reply: what its last line that is not blank names.

    Returns:
        The name and the input, None for an input that is no JSON object within bounds; None where no action is named.
    """
    text = reply[-MAX_INPUT - 4_000 :].rstrip()
    before, marker, given = text[text.rfind("\n") + 1 :].partition("with Action Input:")
    name = before.rsplit("Action:", 1)[-1].strip()
    if not marker or not name or len(name) > MAX_NAME:
        return None
    return name, _read_input(given.strip())


def _read_input(text: str) -> dict[str, Any] | None:
    if len(text) > MAX_INPUT:
        return None
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and _is_shallow(value, MAX_DEPTH) else None


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _is_shallow(value: Any, depth: int) -> bool:
    """Whether a value nests no deeper than `depth` and all its numbers are finite."""
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_shallow(part, depth - 1) for part in parts)
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True)
class Toolbox:
    """An environment's actions.

    Attributes:
        actions: How many the paper counts; it counts `finish` and `check_valid_actions` in some environments only.
    """

    name: str
    about: str
    tools: Mapping[str, Tool]
    actions: int

    @classmethod
    def of(cls, name: str, about: str, actions: int, tools: Sequence[Tool]) -> Toolbox:
        """A toolbox of an environment's own tools and the common ones."""
        return cls(name, about, {tool.name: tool for tool in (*tools, *_COMMON)}, actions)

    @property
    def instruction(self) -> str:
        """What opens a conversation."""
        lines = "\n".join(tool.line for tool in self.tools.values())
        return f"{self.about} The actions, with the parameters of their input, are:\n{lines}\n{_FORM}"

    @property
    def use(self) -> ToolUse:
        """How it is played by native calls; nobody needs to call for the list of actions."""
        functions = [
            {"name": tool.name, "description": tool.about, "parameters": tool.schema}
            for tool in self.tools.values()
            if tool.name != CHECK
        ]
        schemas = json.dumps([{"type": "function", "function": function} for function in functions])
        return ToolUse(schemas, f"{self.about} {_BY_CALLS}", action_of, call_of, result_of)

    def call(self, state: Any, name: str, given: Mapping[str, Any] | None) -> Any:
        """Runs an action on an episode's state.

        Raises:
            ToolError: If there is no such action, its input is wrong, or it refuses.
        """
        if given is None:
            raise ToolError(INVALID_INPUT)
        tool = self.tools.get(name)
        if tool is None:
            raise ToolError(f"Invalid action: {name}.")
        if name == CHECK:
            return f"You can use following valid actions: {list(self.tools)}"
        return tool.run(state, **tool.arguments(given))


def _echo(_: Any, answer: Any = "done") -> Any:
    return answer


def action_of(call: ToolCall) -> str:
    """A call as the text of an action, of one line."""
    try:
        given = json.dumps(json.loads(call.arguments))
    except (ValueError, RecursionError):
        given = " ".join(call.arguments.split())  # the tool refuses it
    return f"Action: {' '.join(call.name.split())} with Action Input: {given}"


def call_of(action: str) -> ToolCall:
    """An action that a scripted agent names, as a call."""
    name, _, given = action.partition(" with Action Input: ")
    return ToolCall(name, given)


def result_of(observation: str) -> str:
    """What an observation says, without what asks for an action as text."""
    text = observation.removeprefix("Observation: ").removeprefix("Now new trial starts.\n")
    return text.removesuffix("\nGive me one action.")


_BY_CALLS = 'Each action is a tool: call them one after the other, and `finish` with the answer (or "done") at the end.'
_COMMON = (
    Tool(CHECK, "list the actions", _echo),
    Tool(FINISH, 'give the answer (or "done") and end the task', _echo, {"answer": "value"}),
)

_FORM = """\
Every round you get an observation and answer with a thought and one action in this form:
Thought: your thought

Action: the action's name with Action Input: its input as JSON, {} where it has no parameters
For example:
Thought: I have found the answer.

Action: finish with Action Input: {"answer": "done"}"""


def shown(result: Any) -> str:
    """A result as an observation."""
    text = str(result).encode("utf-8", "replace").decode()
    if len(text) > MAX_SHOWN:
        text = text[:MAX_SHOWN] + " ..."
    return f"Observation: {text}\nGive me one action."


def agrees(given: Any, expected: Any) -> bool:
    """Whether an answer is the expected one: numbers to a tenth's half, text but for case, lists in any order."""
    if isinstance(given, list) and not isinstance(expected, list) and len(given) == 1:
        given = given[0]
    if isinstance(expected, list):
        if not isinstance(given, list):
            given = [given]
        return sorted(_words(part) for part in given) == sorted(_words(part) for part in expected)
    if isinstance(expected, int | float):
        number = as_number(given)
        return number is not None and abs(number - expected) <= 0.0501
    return _words(given) == _words(expected)


def _words(value: Any) -> str:
    return " ".join(str(value).casefold().split()).rstrip(".")
