"""Random conversations of agents: calls of tools, results, thoughts, and texts with signs that are easily lost."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from random import Random
from typing import Any

from atlas_ray.types import Message, ToolCall, Trajectory

_SIGNS = ('"', "\\", "{}", "[]", "<", ">", "é", "日", "\n", "\n\n", "  ", "|", "```", "think>", "<tool_call>", "%}")
_SPECIAL = ("<|im_end|>", "<|eot_id|>", "</s>")
_PARAMETERS = {
    "search": {"type": "object", "properties": {"q": {"type": "string"}, "page": {"type": ["integer", "null"]}}},
    "buy": {"type": "object", "properties": {"what": {"type": "array", "items": {"type": "string"}}}},
}
TOOLS = json.dumps(
    [{"type": "function", "function": {"name": n, "description": n, "parameters": p}} for n, p in _PARAMETERS.items()]
)


def random_text(rng: Random, *, special: bool = False) -> str:
    """Words with signs between them; letters at both ends, for templates trim."""
    signs = [*_SIGNS, *(_SPECIAL if special else ())]
    inside = [rng.choice([*signs, "go", "up", "x "]) for _ in range(rng.randint(0, 5))]
    return "".join(["Go ", *inside, rng.choice(["left", "right", "3"])])


def random_messages(
    rng: Random,
    *,
    tools: bool,
    thoughts: bool,
    system: bool = True,
    ids: bool = True,
    text_beside_calls: bool = False,
    special: bool = True,
) -> list[Message]:
    """A conversation that ends with an answer, which is a step; other replies are steps by chance.

    Args:
        tools: Whether tools are called.
        thoughts: Whether replies may have thoughts.
        system: Whether a system turn may open it.
        ids: Whether calls have ids.
        text_beside_calls: Whether a reply may hold both.
        special: Whether questions and results may spell special tokens.
    """
    messages = [Message("system", random_text(rng))] if system and rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 3)):
        messages.append(Message("user", random_text(rng, special=special)))
        for _ in range(rng.randint(0, 2) if tools else 0):
            made = rng.randint(1, 2)
            calls = tuple(_call(rng, f"id{len(messages):03}{n}xyz" if ids else "") for n in range(made))
            said = random_text(rng) if text_beside_calls and rng.random() < 0.5 else ""
            messages.append(Message("assistant", said, rng.random() < 0.7, _thought(rng, thoughts), calls))
            messages += [Message("tool", random_text(rng, special=special), call_id=call.id) for call in calls]
        messages.append(Message("assistant", random_text(rng), rng.random() < 0.7, _thought(rng, thoughts)))
    last = messages.pop()
    return [*messages, Message("assistant", last.content, True, last.thought)]


def random_trajectory(rng: Random, number: int, **options: Any) -> Trajectory:
    """The same as a trajectory; `options` are those of `random_messages`."""
    env = rng.choice(["kitchen", "maze"])
    item, reward = f"{env}_{number}", rng.choice([None, 0.5, 1.0])
    tools = TOOLS if options["tools"] else None
    return Trajectory(f"{env}/{item}", env, item, tuple(random_messages(rng, **options)), reward, None, tools)


def random_choice(rng: Random, steps: Sequence[Any]) -> Collection[int]:
    """Some steps, from 1; at least one."""
    every = range(1, len(steps) + 1)
    return sorted(rng.sample(every, rng.randint(1, len(every))))


def _thought(rng: Random, thoughts: bool) -> str:
    return random_text(rng) if thoughts and rng.random() < 0.5 else ""


def _call(rng: Random, id_: str) -> ToolCall:
    if rng.random() < 0.5:
        return ToolCall("buy", _json({"what": [random_text(rng) for _ in range(rng.randint(0, 2))]}), id_)
    return ToolCall("search", _json({"q": random_text(rng), "page": rng.choice([None, 1])}), id_)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
