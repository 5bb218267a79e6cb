"""Tool calls and tools' schemas, in whichever of the field's forms a row holds them."""

from __future__ import annotations

import json
from typing import Any

from atlas_ray.errors import DataError
from atlas_ray.trajectories.checks import check_json, check_text, kind
from atlas_ray.types import ToolCall

_PARAMETERS = ("parameters", "input_schema", "inputSchema")


def calls_of(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Calls as OpenAI (`id`, `function`), or with `name` and `arguments` at once: one, a list, or JSON text of these.

    Raises:
        DataError: If they are of no such form, or the arguments are no object.
    """
    is_text = isinstance(value, str)
    value = check_json(value, where) if is_text else value
    found = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(_call(call, where, is_text) for call in found)


def _call(call: Any, where: str, is_text: bool) -> ToolCall:
    if not isinstance(call, dict) or call.get("type") not in (None, "function", "function_call", "tool_use"):
        raise DataError(f"{where}: a tool call is not of a function", "leave such rows out")
    named = call["function"] if isinstance(call.get("function"), dict) else call
    name = check_text(named.get("name"), f"{where}: the name of a tool call")
    given: Any = next((named[key] for key in ("arguments", "parameters", "input") if named.get(key) is not None), {})
    arguments = check_json(given or "{}", f"{where}: the arguments of {name}") if isinstance(given, str) else given
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: the arguments of {name} are not an object but {kind(arguments)}")
    arguments = arguments if is_text else without_nulls(arguments)
    text = given if isinstance(given, str) and given else json.dumps(arguments, ensure_ascii=False)
    id_ = check_text(call.get("call_id") or call.get("id") or "", f"{where}: the id of {name}")
    return ToolCall(name, check_text(text, f"{where}: the arguments of {name}"), id_)


def tools_of(value: Any) -> str | None:
    """Schemas of tools as a JSON list of OpenAI's form: from this form, OpenAI's flat one, Anthropic's, or JSON text.

    Raises:
        DataError: If they are of no such form.
    """
    value = check_json(value, "tools") if isinstance(value, str) and value else value
    if not value:
        return None
    if not isinstance(value, list):
        raise DataError(f"tools is not a list but {kind(value)}")
    return json.dumps([_schema(tool, number) for number, tool in enumerate(value, 1)], ensure_ascii=False)


def _schema(tool: Any, number: int) -> dict[str, Any]:
    tool = check_json(tool, f"tool {number}") if isinstance(tool, str) else tool
    held = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(held, dict) or not isinstance(held.get("name"), str):
        raise DataError(f"tool {number} is no schema of a function with a name", "leave such rows out")
    parameters = next((held[key] for key in _PARAMETERS if held.get(key) is not None), None)
    function = {key: value for key, value in held.items() if key not in (*_PARAMETERS, "type")}
    if parameters is not None:
        function["parameters"] = check_json(parameters, f"tool {number}") if isinstance(parameters, str) else parameters
    return {"type": "function", "function": without_nulls(function)}


def without_nulls(value: Any) -> Any:
    """JSON without keys that are null: tables give every object all keys that any other has."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return {k: without_nulls(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value
