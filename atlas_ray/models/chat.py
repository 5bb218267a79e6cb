"""A chat template as token ids: whole conversations with the span of every reply, and turns appended one by one.

Flows in: messages and a Hugging Face tokenizer; flows out: ids. Training, scoring and sampling all go through here, so
that a model is fed in an episode exactly what it was trained on. Each turn is tokenised by itself: the ids of a
conversation are the ids of its turns, whatever comes later.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from atlas_ray.errors import DataError, UserError
from atlas_ray.models.source import local_model, trusted
from atlas_ray.types import Message, Role

# Some templates write today's date into the system turn; results must not depend on the day.
_TODAY = date(2024, 7, 26).strftime
_GUARD = re.compile("\ue000(\\d+)\ue001")
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: Token ids of all turns, without what a template writes behind the last end of turn.
        spans: Per message the half-open range of an assistant turn's own tokens in `ids` (content and end of turn,
            not the header), else None.
    """

    ids: list[int]
    spans: list[tuple[int, int] | None]


@dataclass(frozen=True, slots=True)
class _Turn:
    """How a template writes one turn: `before` + trimmed content + `after`."""

    before: str
    after: str
    trim: Callable[[str], str]

    def write(self, content: str) -> str:
        return self.before + self.trim(content) + self.after


class ChatFormat:
    """Any tokenizer with a chat template.

    Attributes:
        tokenizer: As given.
        generation_prompt: Text that opens a reply, e.g. Llama's assistant header.
        end_of_turn: Text that ends a reply; its last token is one of `stop_ids`.

    Raises:
        UserError: If there is no template, or one whose turns depend on later turns or on their place, or whose replies
            end without a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if not getattr(tokenizer, "chat_template", None):
            remedy = "set the model's chat_template (docs/own-model.md), or use an instruction-tuned model"
            raise UserError(f"the tokenizer of {self._name} has no chat template", remedy)
        added = sorted(tokenizer.added_tokens_decoder.items())
        self._specials = [str(token) for _, token in added if token.special]
        self._special_ids = {i for i, token in added if token.special}
        self._special = re.compile(
            "|".join(re.escape(s) for s in sorted(self._specials, key=len, reverse=True)) or "$^"
        )
        anchors = [(i, str(token)) for i, token in added if token.special and not token.rstrip]
        self._anchor = next((a for a in anchors if a[0] == tokenizer.eos_token_id), anchors[0] if anchors else None)

        self._tail = self._find_tail()
        self._user, self._reply, self.generation_prompt = self._probe(system=False)
        ends = [found.end() for found in self._special.finditer(self._reply.after)]
        if not ends:
            raise self._refused("ends a reply without a special token, so that no model could learn to stop")
        self.end_of_turn, self._carry = self._reply.after[: ends[-1]], self._reply.after[ends[-1] :]
        # Some special tokens take in the white space behind them (Phi's): none of it becomes a token.
        swallows = any(token.rstrip and self.end_of_turn.endswith(str(token)) for _, token in added)
        self._carried = self._carry.lstrip() if swallows else self._carry
        eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([self._encode(self.end_of_turn)[-1], *eos]))

    @classmethod
    def load(cls, model: str, revision: str | None = None, template: str | None = None) -> ChatFormat:
        """The format of a model folder, URI or hub id.

        Args:
            model: Folder, URI or hub id.
            revision: Of the hub.
            template: Jinja text in place of the tokenizer's own chat template.

        Raises:
            UserError: If no tokenizer can be loaded from there, or the model is not safe to load.
        """
        from transformers import AutoTokenizer

        place = local_model(model, whole=False)
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=trusted())
        except Exception as error:  # noqa: BLE001 (a broken file may raise anything)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if not Path(place).exists() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
                reason = "there is no such folder"  # nor can it be a hub id
            raise UserError(f"cannot load a tokenizer from {model!r}: {reason}", "check the model's name") from None
        tokenizer.name_or_path = model
        if template is not None:
            tokenizer.chat_template = template
        return cls(tokenizer)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """The whole conversation.

        Raises:
            DataError: If the conversation does not start with a user turn (behind at most a system turn).
            UserError: If the template writes this conversation differently turn by turn than as a whole.
        """
        rendered, pending, text = self._join(messages)
        if text != self._template(messages):
            raise self._refused("writes earlier turns of a conversation anew when later ones follow")
        if messages[-1].role != "assistant":
            rendered.ids.extend(self._encode(pending))
        return rendered

    @cached_property
    def unknown_id(self) -> int | None:
        """The token of every word outside the vocabulary; None where each text has tokens of its own."""
        unknown = self.tokenizer.unk_token_id
        return None if unknown in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) else unknown

    def unknown_words(self, text: str) -> list[str]:
        """What that token stands for in a text; nothing where the tokenizer, a slow one, cannot tell."""
        if not self.tokenizer.is_fast:
            return []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [text[start:end].strip() for token, (start, end) in places if token == self.unknown_id]

    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the next reply starts; `messages` end with a user turn.

        Raises:
            DataError: If they do not, or do not start with one.
        """
        if not messages or messages[-1].role != "user":
            raise DataError("a conversation to go on from must end with a user turn")
        rendered, pending, _ = self._join(messages)
        return rendered.ids + self._encode(pending + self.generation_prompt)

    def reply(self, text: str) -> list[int]:
        """Ids of one reply: what a model writes, and the end of turn."""
        own = self._reply.write(self._guard(text)).removeprefix(self.generation_prompt)
        return self._encode(own.removesuffix(self._carry))

    def observation(self, text: str) -> list[int]:
        """Ids of one answer of the environment: all between a reply's end of turn and the start of the next reply."""
        return self._encode(self._carried + self._user.write(self._guard(text)) + self.generation_prompt)

    def _join(self, messages: Sequence[Message]) -> tuple[Rendered, str, str]:
        """Tokens up to the last reply, the text behind it, and the text of it all."""
        done = Rendered([], [])
        text, pending = "", ""
        for message, turn in self._turns(messages):
            text += turn
            if message.role != "assistant":
                done.spans.append(None)
                pending += turn
                continue
            done.ids.extend(self._encode(pending + self.generation_prompt))
            reply = self._encode(turn.removeprefix(self.generation_prompt).removesuffix(self._carry))
            done.spans.append((len(done.ids), len(done.ids) + len(reply)))
            done.ids.extend(reply)
            pending = self._carried
        return done, pending, text

    def _turns(self, messages: Sequence[Message]) -> list[tuple[Message, str]]:
        """Each message with its text; a template's own preamble and the system turn go with the first user turn."""
        roles = [m.role for m in messages]
        if any(m.role == "tool" or m.calls or m.thought for m in messages):
            raise UserError("tool calls, and thoughts apart from replies, are not rendered", "write them as text")
        first = 1 if roles[:1] == ["system"] else 0
        if roles[first : first + 1] != ["user"] or "system" in roles[1:]:
            raise DataError("a conversation must start with a user turn, behind at most one system turn")
        if first and self._with_system != (self._user, self._reply, self.generation_prompt):
            raise self._refused("writes turns differently behind a system turn")
        turns = [(m, "") for m in messages[:first]]
        turns.append((messages[first], self._template(messages[: first + 1])))
        writers = {"user": self._user, "assistant": self._reply}
        return turns + [(m, writers[m.role].write(self._guard(m.content))) for m in messages[first + 1 :]]

    @cached_property
    def _with_system(self) -> tuple[_Turn, _Turn, str]:
        return self._probe(system=True)

    def _probe(self, system: bool) -> tuple[_Turn, _Turn, str]:
        """How the template writes user turns, replies and the generation prompt, learnt from a short conversation.

        Raises:
            UserError: If a turn's text depends on its place or on what follows.
        """
        roles: list[Role] = ["user", "assistant"] * 3
        plain = [Message("system", "rule")] * system + [Message(role, f"turn{i}") for i, role in enumerate(roles)]
        texts = [self._template(plain[: k + 1]) for k in range(system, len(plain))]
        if any(not text.startswith(earlier) for earlier, text in pairwise(texts)):
            raise self._refused("writes earlier turns of a conversation anew when later ones follow")
        padded = self._template([Message(m.role, f" \n{m.content} \n") for m in plain])
        users, replies, prompts = [], [], []
        for k, message in enumerate(plain[system + 1 :], start=1):
            before, found, after = texts[k].removeprefix(texts[k - 1]).partition(message.content)
            trims = [t for t in _TRIMS if before + t(f" \n{message.content} \n") + after in padded]
            if not found or not trims:
                raise self._refused(f"changes the content of {message.role} turns")
            if message.role == "user":
                users.append(_Turn(before, after, trims[0]))
                opened = self._template(plain[: system + k + 1], add_generation_prompt=True)
                prompts.append(opened.removeprefix(texts[k]))
            else:
                replies.append(_Turn(before, after, trims[0]))
        if any(len(set(found)) > 1 for found in (users, replies, prompts)):
            raise self._refused("writes a turn differently depending on its place")
        if not replies[0].before.startswith(prompts[0]):
            raise self._refused("opens a recorded reply differently from one to be generated")
        return users[0], replies[0], prompts[0]

    def _template(self, messages: Sequence[Message], **options: bool) -> str:
        from jinja2 import TemplateError

        turns = [{"role": m.role, "content": self._guard(m.content)} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=_TODAY, **options)
        except TemplateError as error:
            raise self._refused(f"fails on this conversation: {error}") from None
        return text if options else text.removesuffix(self._tail)

    def _find_tail(self) -> str:
        """The special token that a template writes behind whatever conversation it is given (Phi's end of text)."""
        self._tail = ""
        first = self._template([Message("user", "turn0")])
        second = self._template([Message("user", "turn0"), Message("assistant", "turn1")])
        tails = [t for t in ("", *self._specials) if first.endswith(t) and second.endswith(t)]
        return next((t for t in tails if second.startswith(first.removesuffix(t))), "")

    def _guard(self, content: str) -> str:
        """Content with the names of special tokens put aside: text from outside must not end or open a turn."""
        return self._special.sub(lambda found: f"\ue000{self._specials.index(found[0])}\ue001", content)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(_GUARD.split(text)):
            if i % 2:
                name = self._specials[int(piece)] if int(piece) < len(self._specials) else piece
                spelt = self.tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                ids += [token for token in spelt if token not in self._special_ids]
            elif piece and self._anchor:
                # Behind a special token no tokenizer takes the piece for the start of a text (a SentencePiece space).
                ids += self.tokenizer(self._anchor[1] + piece, add_special_tokens=False)["input_ids"][1:]
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _refused(self, why: str) -> UserError:
        return UserError(
            f"the chat template of {self._name} {why}", "set a plain one: the model's chat_template (docs/own-model.md)"
        )
