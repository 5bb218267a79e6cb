"""Tools and thoughts by the model's own template: each step behind the prompt that the model would be given for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.conversation import EngineConversation
from atlas_ray.models.protocol import Sampling
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import training_examples
from atlas_ray.types import Message, ToolCall, Trajectory, Usage
from tests.support.tool_formats import TEMPLATES, tool_tokenizer

PARAMETERS = {"type": "object", "properties": {"q": {"type": "string"}}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "search", "parameters": PARAMETERS}}])
CONVERSATION = (
    Message("user", "Find X"),
    Message("assistant", "", True, "Look.", (ToolCall("search", '{"q": "X"}'),)),
    Message("tool", "3"),
    Message("assistant", "X is 3.", True, "Done."),
    Message("user", "And Y?"),
    Message("assistant", "No idea.", True, "Hm."),
)
every_family = pytest.mark.parametrize("name", TEMPLATES)


@cache
def chat_of(name: str) -> ChatFormat:
    return ChatFormat(tool_tokenizer(name))


def marked(name: str, chosen: list[int] | None = None) -> list[str]:
    """The text of each sequence, what carries loss in « »."""
    chat, found = chat_of(name), []
    trajectory = Trajectory("kitchen/1", "kitchen", "1", CONVERSATION, tools=TOOLS)
    for example in training_examples(tokens_of(trajectory, chat), chosen, 10_000):
        pieces, at = [], 0
        for start, end in example.spans:
            pieces += [(at, start, "{}"), (start, end, "«{}»")]
            at = end
        found.append("".join(form.format(chat.tokenizer.decode(example.ids[a:b].tolist())) for a, b, form in pieces))
    return found


_QWEN = "<|im_start|>system\n# Tools\n<tools>\n" + json.dumps(json.loads(TOOLS)[0]) + "\n</tools><|im_end|>\n"
_CALL = '<tool_call>\n{"name": "search", "arguments": {"q": "X"}}\n</tool_call><|im_end|>'
_RESULT = "\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


def test_qwen3_keeps_thoughts_within_a_question_and_drops_them_behind_the_next() -> None:
    ask = "<|im_start|>user\nFind X<|im_end|>\n<|im_start|>assistant\n"
    assert marked("qwen3") == [
        f"{_QWEN}{ask}«<think>\nLook.\n</think>\n\n{_CALL}»{_RESULT}«<think>\nDone.\n</think>\n\nX is 3.<|im_end|>»",
        f"{_QWEN}{ask}{_CALL}{_RESULT}X is 3.<|im_end|>\n<|im_start|>user\nAnd Y?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\nHm.\n</think>\n\nNo idea.<|im_end|>»",
    ]
    # what is not chosen is context, and a sequence without a chosen step is left out
    assert marked("qwen3", [2]) == [
        f"{_QWEN}{ask}<think>\nLook.\n</think>\n\n{_CALL}{_RESULT}«<think>\nDone.\n</think>\n\nX is 3.<|im_end|>»"
    ]


def test_llama_has_tool_turns_in_one_sequence_and_thoughts_in_the_text() -> None:
    (text,) = marked("llama-3.1")
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    call = '{"name": "search", "parameters": {"q": "X"}}<|eot_id|>'
    assert f"{header}«<think>\nLook.\n</think>\n\n{call}»<|start_header_id|>ipython<|end_header_id|>" in text
    assert text.endswith(f"And Y?<|eot_id|>{header}«<think>\nHm.\n</think>\n\nNo idea.<|eot_id|>»")
    assert text.count("«") == 3


def test_a_thought_that_the_prompt_opens_is_gone_on_with() -> None:
    texts = marked("deepseek-r1")
    assert "\n<|User|>Find X<|Assistant|><think>\n«Look.\n</think>\n\n<|call|>search\n```json" in texts[0]
    assert texts[1].endswith("<|output|>3<|Assistant|><think>\n«Done.\n</think>\n\nX is 3.</s>»")
    assert len(texts) == 3


def test_gpt_oss_ends_a_call_a_reply_and_a_recorded_reply_each_in_its_way() -> None:
    texts = marked("gpt-oss")
    assert "«<|channel|>analysis<|message|>Look.<|end|><|start|>assistant to=search<|channel|>commentary" in texts[0]
    assert texts[0].endswith('<|message|>{"q": "X"}<|call|>»')
    assert texts[1].endswith("<|end|><|start|>assistant<|channel|>final<|message|>X is 3.<|return|>»")
    assert "X is 3.<|end|>" in texts[2]


WORDS = st.text(st.sampled_from("ab <>{}\"'\n|é"), min_size=1, max_size=8).map(lambda text: f"x{text}y")
SPECIAL = st.sampled_from(["x<|im_end|>y", "x<|eot_id|>y", "x</s>y"])
CALLS = st.lists(st.builds(lambda q: ToolCall("search", json.dumps({"q": q})), WORDS), min_size=1, max_size=2)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    messages = [Message("system", draw(WORDS))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(WORDS | SPECIAL)))
        for _ in range(draw(st.integers(0, 2))):
            calls = tuple(draw(CALLS))
            messages.append(Message("assistant", "", draw(st.booleans()), draw(st.just("") | WORDS), calls))
            messages += [Message("tool", draw(WORDS | SPECIAL)) for _ in calls]
        messages.append(Message("assistant", draw(WORDS), True, draw(st.just("") | WORDS)))
    return messages


@every_family
@settings(max_examples=40, deadline=None)
@given(messages=conversations(), tools=st.sampled_from([None, TOOLS]))
def test_what_is_trained_is_what_the_engine_is_given(name: str, messages: list[Message], tools: str | None) -> None:
    chat = chat_of(name)
    sequences = chat.render(messages, tools)
    for place, message in enumerate(messages):
        if not message.trainable:
            continue
        ((ids, (start, end)),) = [(s.ids, span) for s in sequences if (span := s.spans[place])]
        assert ids[:start] == chat.opening(messages[:place], tools)
        own = chat.tokenizer.decode(ids[start:end])
        assert message.content.strip() in own
        assert message.thought in own
        assert ids[end - 1] in chat._special_ids
    spans = [span for s in sequences for span in s.spans if span]
    assert len(spans) >= sum(m.trainable for m in messages)


@every_family
def test_a_prompt_is_the_tokenizers_own(name: str) -> None:
    chat, turns = chat_of(name), [{"role": "user", "content": "go"}, {"role": "assistant", "content": "OK"}]
    turns.append({"role": "user", "content": "now"})
    given: Any = {"tools": json.loads(TOOLS), "add_generation_prompt": True, "return_dict": False}
    own = chat.tokenizer.apply_chat_template(turns, **given)
    assert chat.opening([Message(t["role"], t["content"]) for t in turns], TOOLS) == own  # type: ignore[arg-type]


async def test_play_gives_the_engine_the_prompts_of_training() -> None:
    chat, given = chat_of("qwen3"), list[list[int]]()

    class Scripted:
        async def generate(self, ids: Sequence[int], sampling: Sampling, seed: int) -> tuple[Any, Usage]:
            given.append(list(ids))
            return SimpleNamespace(text="<think>\nHm.\n</think>\n\nup", finish_reason="stop"), Usage()

    conversation = EngineConversation(Scripted(), chat, [Message("user", "go")], Sampling())
    for seen in ("wall", "door"):
        reply = (await conversation.generate(0)).message
        assert (reply.thought, reply.content) == ("Hm.", "up")
        conversation.append(Message("user", seen))
    step = Message("assistant", "up", True, "Hm.")
    sequences = chat.render([Message("user", "go"), step, Message("user", "wall"), step])
    trained = [s.ids[: span[0]] for s in sequences for span in s.spans if span]
    assert given == trained
    assert len(sequences) == 2


def test_a_template_without_a_place_for_what_is_learnt_is_refused() -> None:
    tokenizer = tool_tokenizer.__wrapped__("qwen3")
    tokenizer.chat_template = TEMPLATES["qwen3"][0].replace("m.tool_calls or []", "[]")
    with pytest.raises(UserError, match="changes the content of assistant turns, or leaves them out"):
        ChatFormat(tokenizer).render(CONVERSATION, TOOLS)
    tokenizer.chat_template = TEMPLATES["qwen3"][0].replace("if tools", "if false")
    with pytest.raises(UserError, match="changes the tools, or leaves them out"):
        ChatFormat(tokenizer).render(CONVERSATION, TOOLS)
