"""The selector's prompt (paper section 3.2, App. D.1): a versioned template, and a conversation with labelled steps.

Flows in: a trajectory and the most steps that may be chosen; flows out: chat messages.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from atlas_ray.errors import UserError
from atlas_ray.models.request import ChatMessages
from atlas_ray.selection.llm.answer import ANSWER
from atlas_ray.types import Trajectory

# The package's own: `paper` carries the paper's instructions (App. D.1) in its order and asks for its three lines;
# `improved` says besides what is no critical step, and may ask for JSON.
_PACKAGED = {"improved": "critical_steps_v2.j2", "paper": "paper.j2"}
# What could pass for our own labels, tags and answers inside a conversation.
_LABEL = re.compile(
    r"[\[\uff3b\u3010]([^\w\[\]]{0,8}(?:step|environment|agent|system|tools?)\b[^\[\]]{0,80})[\]\uff3d\u3011]", re.I
)
_TAG = re.compile(r"<(\s{0,8}/?\s{0,8}(?:conversation|think|thinking)\b[^<>]{0,80})>", re.IGNORECASE)
_MOST_TOOLS, _MOST_SAID = 6_000, 200  # characters of all tools' lines, and of what a tool is for
_SPEAKER = {"user": "Environment", "assistant": "Agent", "system": "System", "tool": "Tool"}


ReplyForm = Literal["text", "json"]  # the paper's three lines, or an object


@dataclass(frozen=True)
class Prompt:
    """A template with the variables `max_steps`, `n_steps`, `conversation` and `form` (of the reply: text or json).

    Its blocks `system` and `user` become the two messages; a template without blocks is one user message.

    Attributes:
        hash: Digest of the template's text; stands in every record.
        wants: What it asks for besides steps: `plan`, `category`. A user's template may leave them out.
    """

    template: Template
    hash: str
    wants: frozenset[str]

    def messages(
        self, trajectory: Trajectory, max_steps: int, form: ReplyForm = "text", longest: int | None = None
    ) -> ChatMessages:
        """The chat messages that ask for at most `max_steps` critical steps of a trajectory.

        Args:
            trajectory: What to choose in.
            max_steps: The budget.
            form: Of the reply.
            longest: Characters that an observation keeps (`conversation`).
        """
        values = {
            "max_steps": max_steps,
            "n_steps": len(trajectory.steps),
            "conversation": conversation(trajectory, longest),
            "form": form,
        }
        try:
            if "user" not in self.template.blocks:
                return [{"role": "user", "content": self.template.render(values)}]
            context = self.template.new_context(values)
            return [
                {"role": role, "content": "".join(self.template.blocks[role](context)).strip()}
                for role in ("system", "user")
                if role in self.template.blocks
            ]
        except TemplateError as error:
            raise _unusable(self.template.filename, error) from None


def load_prompt(file: str | None = None, name: Literal["improved", "paper"] = "improved") -> Prompt:
    """One of the package's prompts, or the user's own.

    Args:
        file: The user's own.
        name: Of the package's, where there is no file.

    Raises:
        UserError: If the file cannot be read, is no valid template, or does not show the conversation.
    """
    try:
        if file is None:
            packaged = resources.files("atlas_ray.selection.llm") / "prompts" / _PACKAGED[name]
            text = packaged.read_text(encoding="utf-8")
        else:
            text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(file, error) from None
    try:
        template = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False).from_string(text)
    except TemplateError as error:
        raise _unusable(file, error) from None
    if not re.search(r"\bconversation\b", text):
        raise UserError(f"the prompt {file} never shows the conversation", "write {{ conversation }} where it belongs")
    wants = frozenset(what for what, word in (("plan", "plan"), ("category", "categor")) if word in text.lower())
    return Prompt(template, hashlib.sha256(text.encode()).hexdigest()[:16], wants)


def disarmed(text: str) -> str:
    """Labels and tags without their brackets, "The critical steps are:" without its colon: quoted, it answers nothing.

    The judge's reply alone is ever read for an answer; this keeps a reply that quotes the conversation from saying
    what the conversation wants.
    """
    text = _TAG.sub(r"(\1)", _LABEL.sub(r"(\1)", text))
    return ANSWER.sub(lambda marker: marker[0][:-1] + ";", text)


def observations(trajectory: Trajectory) -> list[int]:
    """Positions of the messages that may be shortened: what the environment said after the opening instruction."""
    return [i for i, m in enumerate(trajectory.messages) if i and m.role in ("user", "tool")]


def conversation(trajectory: Trajectory, longest: int | None = None) -> str:
    """The trajectory as text, each step labelled `[Step n]`; what its own text imitates is disarmed (`disarmed`).

    The tools that could be called stand before it, a line each.

    Args:
        trajectory: What to show.
        longest: Observations beyond so many characters lose their middle, and say so; None keeps them whole.
    """
    cut = set(observations(trajectory)) if longest is not None else ()
    numbers = {step.position: step.index for step in trajectory.steps}
    parts = [f"[Tools]\n{disarmed(tool_lines(trajectory.tools))}"] if trajectory.tools else []
    for position, message in enumerate(trajectory.messages):
        label = f"Step {numbers[position]}" if position in numbers else _SPEAKER[message.role]
        text = disarmed(message.text)
        parts.append(f"[{label}]\n" + (_shortened(text, longest) if longest is not None and position in cut else text))
    return "\n\n".join(parts)


def tool_lines(tools: str) -> str:
    """Tools in short: name, parameters (`?` behind those that may be left out) and what each is for.

    Many tools lose what they are for, then their parameters; of very many the first are named.
    """
    functions = [tool["function"] for tool in json.loads(tools)]
    named = [str(function["name"]) for function in functions]
    called = [f"{name}({_parameters(function)})" for name, function in zip(named, functions, strict=True)]
    said = [" ".join(str(function.get("description") or "").split()) for function in functions]
    said = [text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]} ..." for text in said]
    whole = [f"{call}: {text}" if text else call for call, text in zip(called, said, strict=True)]
    shown = next((lines for lines in (whole, called) if sum(map(len, lines)) <= _MOST_TOOLS), named)
    while sum(map(len, shown)) > _MOST_TOOLS:
        shown = shown[: len(shown) // 2]
    left_out = len(functions) - len(shown)
    return "\n".join([*shown, *([f"... {left_out} more tools"] if left_out else [])])


def _parameters(function: Mapping[str, Any]) -> str:
    given = function.get("parameters")
    schema: Mapping[str, Any] = given if isinstance(given, dict) else {}
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    kinds = {name: kind.get("type") if isinstance(kind, dict) else None for name, kind in properties.items()}
    return ", ".join(
        f"{name}{'' if name in required else '?'}" + (f": {kind}" if isinstance(kind, str) else "")
        for name, kind in kinds.items()
    )


def _shortened(text: str, longest: int) -> str:
    left_out = len(text) - longest
    if left_out <= 0:
        return text
    head = (longest + 1) // 2
    return f"{text[:head]}\n[... {left_out:,} characters left out ...]\n{text[len(text) - longest // 2 :]}"


def _unusable(file: str | None, error: Exception) -> UserError:
    return UserError(f"the prompt {file or 'of the package'} cannot be used: {error}", "mend selector.prompt_file")
