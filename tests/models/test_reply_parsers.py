"""Calls in an engine's replies: the parser that fits the chat template is found, and what it reads is written alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.conversation import EngineConversation
from atlas_ray.models.protocol import Sampling
from atlas_ray.models.templates.parser import ReplyParser
from atlas_ray.types import Message, ToolCall, Usage
from tests.support.tool_formats import TEMPLATES, tool_tokenizer

PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer"}}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "search", "parameters": PARAMETERS}}])
OPENING = (Message("system", "Help."), Message("user", "Find X"))
CALLING = Message("assistant", "", True, "Look.", (ToolCall("search", '{"q": "X \\"<y>\\" é", "n": 3}'),))
PARSERS = {"qwen3": "hermes", "llama-3.1": "llama3_json"}
both = pytest.mark.parametrize("name", PARSERS)


@cache
def parser_of(name: str) -> tuple[ChatFormat, ReplyParser]:
    chat = ChatFormat(tool_tokenizer(name))
    return chat, ReplyParser(chat)


def written(chat: ChatFormat, before: Sequence[Message], reply: Message) -> tuple[str, list[int]]:
    """What a model writes that gives a reply, without its end."""
    _, own = chat.template.met(before, reply, TOOLS)
    ids = chat._encode_pieces(own, {})
    return chat.tokenizer.decode(ids[:-1]), ids


@both
def test_the_parser_is_the_one_that_reads_what_the_template_writes(name: str) -> None:
    assert parser_of(name)[1].name == PARSERS[name]


def test_a_template_that_no_parser_reads_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"none of vLLM's parsers of tool calls reads what the chat template of test/gpt-oss"
    ):
        ReplyParser(ChatFormat(tool_tokenizer("gpt-oss")))


@both
@pytest.mark.parametrize("text", ["", "I do not know.", "a { b", "<tool_call>\n{broken\n</tool_call>", '{"name": "x"}'])
def test_what_cannot_be_read_as_calls_is_text(name: str, text: str) -> None:
    assert parser_of(name)[1].parse(text, TOOLS) == (text, ())


@both
async def test_the_engine_is_given_what_is_trained_on_call_by_call(name: str) -> None:
    chat, parser = parser_of(name)
    replies = [CALLING, Message("assistant", "X is 3.", True, "Done."), CALLING]
    answers = [[Message("tool", "3")], [Message("user", "And Y?")], [Message("tool", "4")]]
    whole, given = list(OPENING), list[list[int]]()
    for reply, answer in zip(replies, answers, strict=True):
        whole += [reply, *answer]

    class Scripted:
        async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
            given.append(list(ids))
            at = [i for i, m in enumerate(whole) if m.role == "assistant"][seed]
            text, own = written(chat, whole[:at], whole[at])
            return SimpleNamespace(text=text, token_ids=own, finish_reason="stop", stop_reason=None), Usage()

    conversation = EngineConversation(Scripted(), chat, OPENING, Sampling(tools=TOOLS), parser)
    for seed, (reply, answer) in enumerate(zip(replies, answers, strict=True)):
        found = (await conversation.generate(seed)).message
        assert (found.thought, found.content) == (reply.thought, reply.content)
        assert [call.key for call in found.calls] == [call.key for call in reply.calls]
        for message in answer:
            conversation.append(message)
    sequences = chat.render(whole, TOOLS)
    trained = [s.ids[: span[0]] for place in range(len(whole)) for s in sequences if (span := s.spans[place])]
    assert given == trained


async def test_a_thought_that_the_prompt_begins_and_nobody_ends_is_no_action() -> None:
    chat = ChatFormat(tool_tokenizer("deepseek-r1"))
    assert chat.template.opens_thought

    class Cut:
        async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
            return SimpleNamespace(text="Maybe.\nAction: stop", token_ids=[1], finish_reason="length"), Usage()

    reply = await EngineConversation(Cut(), chat, [Message("user", "go")], Sampling()).generate(0)
    assert (reply.finish, reply.message.thought, reply.message.content) == ("length", "Maybe.\nAction: stop", "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_such_prompts_begin_a_thought(name: str) -> None:
    assert ChatFormat(tool_tokenizer(name)).template.opens_thought == (name == "deepseek-r1")
