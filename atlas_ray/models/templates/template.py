"""A tokenizer's chat template: conversations as the text that a model reads and writes.

Flows in: messages and the tools' schemas; flows out: text in which what comes from outside can neither open nor end a
turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from atlas_ray.errors import UserError
from atlas_ray.models.templates.turns import THOUGHTS, as_turns
from atlas_ray.types import Message, ToolCall

# Some templates write today's date into the system turn; results must not depend on the day.
_TODAY = date(2024, 7, 26).strftime
_OPENED = re.compile(r"<think>\s*(?:</think>\s*)?$")  # what a prompt may write of the reply's thought


class ChatTemplate:
    """The template of a tokenizer.

    Attributes:
        name: The tokenizer's, for messages to people.
        specials: Names of its special tokens, in the order of their ids.
        tail: The special token that it writes behind whatever conversation it is given (Phi's end of text).

    Raises:
        UserError: If the tokenizer has none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            remedy = "set the model's chat_template (docs/own-model.md), or use an instruction-tuned model"
            raise UserError(f"the tokenizer of {self.name} has no chat template", remedy)
        self.specials = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
        longest_first = sorted(self.specials, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "$^")
        self.tail = ""
        self.tail = self._find_tail()

    def write(self, messages: Sequence[Message], tools: str | None = None, **options: bool) -> str:
        """A conversation as text.

        Args:
            messages: From the first one on.
            tools: Schemas, as `Trajectory.tools` holds them.
            **options: Of the template, e.g. `add_generation_prompt`.

        Raises:
            UserError: If the template fails on it.
        """
        given = json.loads(self.guard(tools)) if tools else None
        try:
            text = self._run(list(self._turns(messages, arguments=json.loads)), tools=given or None, **options)
        except TypeError:  # some join arguments to text (DeepSeek's)
            text = self._run(list(self._turns(messages, arguments=str)), tools=given or None, **options)
        return text if options else text.removesuffix(self.tail)

    def met(self, before: Sequence[Message], reply: Message, tools: str | None) -> tuple[str, str]:
        """The prompt for a reply, and what the model has to write behind it.

        Raises:
            UserError: If the template leaves out or changes what they are made of.
        """
        prompt = self.write(before, tools, add_generation_prompt=True)
        whole = self.write([*before, reply], tools)
        thought, opened = self.guard(reply.thought), _OPENED.search(prompt)
        if whole.startswith(prompt):
            own = whole[len(prompt) :]
        elif opened is None or not whole.startswith(prompt[: opened.start()]):
            raise self.refused("opens a recorded reply differently from one to be generated")
        else:
            own = whole[opened.start() :]
            if own.startswith("<think>"):
                own = own.removeprefix("<think>").lstrip("\n")
            elif "</think>" not in opened[0]:
                own = f"{thought}\n</think>\n\n{own}"
        if not self._special.search(own):
            own += self._call_closer if reply.calls else self._text_closer
        ends = [found.end() for found in self._special.finditer(own)]
        if not ends:
            raise self.refused("ends a reply without a special token, so that no model could learn to stop")
        for what, parts, text in (
            ("content of assistant turns", [reply.content, *(call.name for call in reply.calls)], own),
            ("thoughts of replies", [reply.thought], own),
            ("content of user turns", [m.content for m in before if m.role in ("system", "user")], prompt),
            ("results of tools", [m.content for m in before if m.role == "tool"], prompt),
            ("tools", [tool["function"]["name"] for tool in json.loads(tools or "[]")], prompt),
        ):
            guarded = [self.guard(part).strip() for part in parts]
            if not all(part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text for part in guarded):
                raise self.refused(f"changes the {what}, or leaves them out")
        return prompt, own[: ends[-1]]

    @cached_property
    def _text_closer(self) -> str:
        return self._closer(Message("assistant", "turn1"), Message("user", "turn2"))

    @cached_property
    def _call_closer(self) -> str:
        call = ToolCall("turn1", '{"a": 0}', "call00000")
        return self._closer(Message("assistant", "", calls=(call,)), Message("tool", "turn2", call_id=call.id))

    def _closer(self, reply: Message, answer: Message) -> str:
        """The special token that the turn behind a reply begins with, which is what ends a reply of GLM's template."""
        text = self.write([Message("user", "turn0"), reply, answer])
        found = self._special.search(text.rpartition("turn1")[2].partition("turn2")[0])
        return found[0] if found else ""

    def ends_turn(self, text: str) -> bool:
        """Whether what stands behind a reply holds a token that a model can learn to stop with."""
        return self._special.search(text) is not None

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the prompt begins the reply's thought, so that the reply begins within it."""
        opened = _OPENED.search(self.write([Message("user", "turn0")], add_generation_prompt=True))
        return opened is not None and "</think>" not in opened[0]

    def guard(self, content: str) -> str:
        """Content with the names of special tokens put aside: text from outside must not end or open a turn."""
        return self._special.sub(lambda found: f"\ue000{self.specials.index(found[0])}\ue001", content)

    def refused(self, why: str) -> UserError:
        """The error that says why the template cannot be used."""
        return UserError(
            f"the chat template of {self.name} {why}", "set a plain one: the model's chat_template (docs/own-model.md)"
        )

    def _find_tail(self) -> str:
        first = self.write([Message("user", "turn0")])
        second = self.write([Message("user", "turn0"), Message("assistant", "turn1")])
        tails = [t for t in ("", *self.specials) if first.endswith(t) and second.endswith(t)]
        return next((t for t in tails if second.startswith(first.removesuffix(t))), "")

    @cached_property
    def inlines_thoughts(self) -> bool:
        """Whether the template knows no thoughts, so that they stand in the text as such models write them."""
        asked, replied = {"role": "user", "content": "turn0"}, {"role": "assistant", "content": "turn1"}
        return "turn2" not in self._run([asked, replied | dict.fromkeys(THOUGHTS, "turn2")])

    def _turns(self, messages: Sequence[Message], *, arguments: Any) -> Iterator[dict[str, Any]]:
        inline = any(m.thought for m in messages) and self.inlines_thoughts
        for message, turn in zip(messages, as_turns(messages, arguments, self.guard), strict=True):
            thought = self.guard(message.thought)
            if thought and inline:
                turn["content"] = f"<think>\n{thought}\n</think>\n\n{turn['content']}"
            elif thought:
                turn.update(dict.fromkeys(THOUGHTS, thought))
            yield turn

    def _run(self, turns: list[dict[str, Any]], **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=_TODAY, **options))
        except TemplateError as error:
            raise self.refused(f"fails on this conversation: {error}") from None
