"""A chat template as token ids: whole conversations with the span of every reply, and turns appended one by one.

Flows in: messages and a Hugging Face tokenizer; flows out: ids. Training, scoring and sampling all go through here, so
that a model is fed in an episode exactly what it was trained on. Where a template only ever appends, each turn is
tokenised by itself: the ids of a conversation are the ids of its turns, whatever comes later. Where it writes earlier
turns anew (thoughts dropped, the last turn marked), each reply is given the prompt that the template writes for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from atlas_ray.errors import DataError, UserError
from atlas_ray.models.source import loading_libraries, local_model, trusted
from atlas_ray.models.templates.template import ChatTemplate
from atlas_ray.types import Message, Role

_GUARD = re.compile("\ue000(\\d+)\ue001")
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens, or as much of it as one sequence holds.

    Attributes:
        ids: Token ids of all turns, without what a template writes behind the last end of turn.
        spans: Per message the half-open range of an assistant turn's own tokens in `ids` (thought, content, calls and
            end of turn, not the header), else None.
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
        template: How it writes conversations.
        generation_prompt: Text that opens a reply, e.g. Llama's assistant header.
        end_of_turn: Text that ends a reply; its last token is one of `stop_ids`.

    Raises:
        UserError: If there is no template, or one that changes contents, or whose replies open otherwise than it asks
            for them, or end without a special token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer)
        added = sorted(tokenizer.added_tokens_decoder.items())
        self._special_ids = {i for i, token in added if token.special}
        anchors = [(i, str(token)) for i, token in added if token.special and not token.rstrip]
        self._anchor = next((a for a in anchors if a[0] == tokenizer.eos_token_id), anchors[0] if anchors else None)
        ends_piece = [str(token) for _, token in added if token.special and not token.rstrip]
        self._pieces = re.compile(f".*?(?:{'|'.join(map(re.escape, ends_piece)) or '$^'})|.+", re.DOTALL)
        self._appended = self._probe(system=False)
        question, answer = Message("user", "turn0"), Message("assistant", "turn1")
        opened, own = self.template.met([question], answer, None)
        self.generation_prompt = opened.removeprefix(self.template.write([question]))
        self.end_of_turn = own.partition("turn1")[2]
        self._carry = self.template.write([question, answer]).rpartition(self.end_of_turn)[2]
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
        with loading_libraries():
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

    def render(self, messages: Sequence[Message], tools: str | None = None) -> list[Rendered]:
        """The whole conversation; several sequences where the template writes earlier turns anew, else one.

        Each step stands in one of them, behind the prompt that the model would be given for it; steps whose prompts
        begin with one another share a sequence.

        Args:
            tools: Schemas, as `Trajectory.tools` holds them.

        Raises:
            DataError: If the conversation does not start with a user turn (behind at most a system turn).
            UserError: If the template leaves out or changes what is to be learnt.
        """
        _check_start(messages)
        if tools is None and self.appends(messages):
            rendered, pending, text = self._join(messages)
            if text == self.template.write(messages):
                if messages[-1].role != "assistant":
                    rendered.ids.extend(self._encode(pending))
                return [rendered]
        return self._as_met(messages, tools)

    def appends(self, messages: Sequence[Message]) -> bool:
        """Whether a conversation that starts so goes on by `reply` and `observation`."""
        is_text = not any(m.role == "tool" or m.calls or m.thought for m in messages)
        alike = messages[0].role != "system" or self._with_system == self._appended
        return is_text and alike and self._appended is not None

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

    def opening(self, messages: Sequence[Message], tools: str | None = None) -> list[int]:
        """Ids of a conversation up to where the next reply starts; `messages` end with a user turn, or a tool's.

        Raises:
            DataError: If they do not, or do not start with one.
        """
        _check_start(messages)
        if messages[-1].role not in ("user", "tool"):
            raise DataError("a conversation to go on from must end with a user turn")
        if tools is None and self.appends(messages):
            rendered, pending, _ = self._join(messages)
            return rendered.ids + self._encode(pending + self.generation_prompt)
        return self._encode_pieces(self.template.write(messages, tools, add_generation_prompt=True), {})

    def reply(self, text: str) -> list[int]:
        """Ids of one reply: what a model writes, and the end of turn."""
        own = self._writers[1].write(self.template.guard(text)).removeprefix(self.generation_prompt)
        return self._encode(own.removesuffix(self._carry))

    def observation(self, text: str) -> list[int]:
        """Ids of one answer of the environment: all between a reply's end of turn and the start of the next reply."""
        return self._encode(self._carried + self._writers[0].write(self.template.guard(text)) + self.generation_prompt)

    @property
    def _writers(self) -> tuple[_Turn, _Turn]:
        """Of user turns and replies."""
        if self._appended is None:
            raise self.template.refused("writes earlier turns of a conversation anew when later ones follow")
        return self._appended

    def _as_met(self, messages: Sequence[Message], tools: str | None) -> list[Rendered]:
        """Each step behind the prompt that the template writes for it."""
        found, known = list[Rendered](), dict[str, list[int]]()
        for place, message in enumerate(messages):
            if not message.trainable:
                continue
            prompt, own = (self._encode_pieces(t, known) for t in self.template.met(messages[:place], message, tools))
            if not found or prompt[: len(found[-1].ids)] != found[-1].ids:
                found.append(Rendered([], [None] * len(messages)))
            ids, spans = found[-1].ids, found[-1].spans
            spans[place] = (len(prompt), len(prompt) + len(own))
            ids[:] = prompt + own
        return found

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
        first = 1 if messages[0].role == "system" else 0
        turns = [(m, "") for m in messages[:first]]
        turns.append((messages[first], self.template.write(messages[: first + 1])))
        rest = messages[first + 1 :]
        return turns + [(m, self._writers[m.role == "assistant"].write(self.template.guard(m.content))) for m in rest]

    @cached_property
    def _with_system(self) -> tuple[_Turn, _Turn] | None:
        return self._probe(system=True)

    def _probe(self, system: bool) -> tuple[_Turn, _Turn] | None:
        """How the template writes user turns and replies, learnt from a short conversation.

        None where a turn's text depends on its place or on what follows, or a recorded reply opens otherwise than one
        to be generated.

        Raises:
            UserError: If it changes contents.
        """
        roles: list[Role] = ["user", "assistant"] * 3
        plain = [Message("system", "rule")] * system + [Message(role, f"turn{i}") for i, role in enumerate(roles)]
        texts = [self.template.write(plain[: k + 1]) for k in range(system, len(plain))]
        if any(not text.startswith(earlier) for earlier, text in pairwise(texts)):
            return None
        padded = self.template.write([Message(m.role, f" \n{m.content} \n") for m in plain])
        users, replies, prompts = [], [], []
        for k, message in enumerate(plain[system + 1 :], start=1):
            before, found, after = texts[k].removeprefix(texts[k - 1]).partition(message.content)
            trims = [t for t in _TRIMS if before + t(f" \n{message.content} \n") + after in padded]
            if not found or not trims:
                raise self.template.refused(f"changes the content of {message.role} turns")
            if message.role == "user":
                users.append(_Turn(before, after, trims[0]))
                opened = self.template.write(plain[: system + k + 1], add_generation_prompt=True)
                prompts.append(opened.removeprefix(texts[k]))
            else:
                replies.append(_Turn(before, after, trims[0]))
        alike = all(len(set(found)) == 1 for found in (users, replies, prompts))
        appends = alike and replies[0].before.startswith(prompts[0]) and self.template.ends_turn(replies[0].after)
        return (users[0], replies[0]) if appends else None

    def _encode_pieces(self, text: str, known: dict[str, list[int]]) -> list[int]:
        """The same ids, put together from those between special tokens, of which most stand in many prompts."""
        ids: list[int] = []
        for piece in self._pieces.findall(text) if self._anchor else [text]:
            if piece not in known:
                known[piece] = self._encode(piece)
            ids += known[piece]
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, piece in enumerate(_GUARD.split(text)):
            if i % 2:
                name = self.template.specials[int(piece)] if int(piece) < len(self.template.specials) else piece
                spelt = self.tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
                ids += [token for token in spelt if token not in self._special_ids]
            elif piece and self._anchor:
                # Behind a special token no tokenizer takes the piece for the start of a text (a SentencePiece space).
                ids += self.tokenizer(self._anchor[1] + piece, add_special_tokens=False)["input_ids"][1:]
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids


def _check_start(messages: Sequence[Message]) -> None:
    roles = [m.role for m in messages]
    first = 1 if roles[:1] == ["system"] else 0
    if roles[first : first + 1] != ["user"] or "system" in roles[1:]:
        raise DataError("a conversation must start with a user turn, behind at most one system turn")
