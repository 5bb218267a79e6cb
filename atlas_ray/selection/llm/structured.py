"""The selector's reply as JSON, where the endpoint can be held to a schema.

Flows in: a reply; flows out: the same `Judgement` or `Problem` as from a text reply.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ValidationError

from atlas_ray.selection.llm.answer import Judgement, Problem, parse_answer, without_thoughts
from atlas_ray.types import Category

_CONTROL = re.compile(r"[\x00-\x1f]")
_OVERHEAD = 40  # characters of one step's entry besides its reason


class _Step(BaseModel):
    step: Annotated[int, BeforeValidator(lambda value: value if type(value) is int else "no integer")]
    category: str | None = None
    reason: str | None = None


class _Answer(BaseModel):
    plan: str | None = None
    steps: list[_Step]


def reply_schema(n_steps: int, k: int, max_tokens: int | None = None) -> dict[str, Any]:
    """JSON schema of a reply: a plan, and at most k of the steps 1 to `n_steps` with category and reason.

    Args:
        n_steps: |tau|.
        k: Most steps that may be chosen.
        max_tokens: Bounds the texts at two characters a token, so that a reply ends before it is cut off; None leaves
            them open (OpenAI refuses `maxLength`).
    """
    text: dict[str, Any] = {"type": "string"}
    if max_tokens is not None:
        text["maxLength"] = max(20, 2 * max_tokens // (k + 1) - _OVERHEAD)
    step = {"type": "integer", "minimum": 1, "maximum": n_steps}
    entry = {"step": step, "category": {"type": "string", "enum": [str(c) for c in Category]}, "reason": text}
    return _closed({"plan": text, "steps": {"type": "array", "minItems": 1, "maxItems": k, "items": _closed(entry)}})


def parse_structured(text: str, n_steps: int, k: int) -> Judgement | Problem:
    """Reads a reply that was to be JSON; one that turns out to be text is read as text.

    Args:
        text: The model's whole reply.
        n_steps: |tau|.
        k: Most steps that may be chosen.
    """
    spoken = text if text.lstrip().startswith(("{", "```")) else without_thoughts(text)
    if isinstance(spoken, Problem):
        return spoken
    body = spoken.strip()
    body = body.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    # xgrammar lets a string of bounded length hold line breaks as they are, which JSON forbids.
    body = _CONTROL.sub(" ", body)
    if not body.startswith("{"):
        return parse_answer(text, n_steps, k)
    try:
        answer = _Answer.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return Problem("the answer is no JSON of the form asked for" + (f": {place} is wrong" if place else ""))
    steps = [entry.step for entry in answer.steps]
    if not steps:
        return Problem("the list of critical steps is empty")
    if strange := [t for t in steps if not 1 <= t <= n_steps]:
        return Problem(f"step {strange[0]} does not exist: the steps are 1 to {n_steps}")
    first_of = {entry.step: entry for entry in reversed(answer.steps)}
    distinct = list(dict.fromkeys(steps))
    kept = distinct[:k]
    judgement = Judgement(
        tuple(kept),
        (answer.plan or "").strip() or None,
        " ".join(_reason(first_of[t]) for t in kept),
        {t: found for t in sorted(kept) if (found := _category(first_of[t].category))},
    )
    if len(distinct) > k:
        return Problem(f"{len(distinct)} steps were chosen where at most {k} are allowed", judgement)
    if len(distinct) < len(steps):
        twice = next(t for t in distinct if steps.count(t) > 1)
        return Problem(f"step {twice} is given more than once", judgement)
    return judgement


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _category(name: str | None) -> Category | None:
    """A category by its name, in any case, with spaces, dashes or underscores."""
    plain = " ".join((name or "").replace("-", " ").replace("_", " ").split()).title()
    return Category(plain) if plain in Category._value2member_map_ else None


def _reason(entry: _Step) -> str:
    """As the text form writes it: "Step 3 (Critical Action): ..."."""
    category = _category(entry.category)
    return f"Step {entry.step}" + (f" ({category})" if category else "") + f": {(entry.reason or '').strip()}"
