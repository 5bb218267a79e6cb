"""Random conversations in all families of templates: what is trained on is what play is given, and nothing else."""

from __future__ import annotations

import json
from copy import copy
from datetime import date
from random import Random
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import training_examples
from atlas_ray.types import Message, ToolCall, Trajectory, with_call_ids
from tests.support.conversations import random_choice, random_trajectory
from tests.support.tool_formats import HELD, tool_tokenizer

COUNT = 500
GLM = "glm-4.5"
DEEPSEEK = "deepseek-r1"  # whose prompt begins a reply otherwise than it is recorded, and whose arguments are text


def written(chat: ChatFormat, trajectory: Trajectory, end: int, **options: Any) -> str:
    """The first messages as the tokenizer's own template writes them."""
    turns, names = list[dict[str, Any]](), dict[str, str]()
    for m in with_call_ids(trajectory.messages[:end]):
        inline = m.thought and chat.template.inlines_thoughts
        content = f"<think>\n{m.thought}\n</think>\n\n{m.content}" if inline else m.content
        turn: dict[str, Any] = {"role": m.role, "content": content}
        if m.thought and not inline:
            turn |= {"reasoning_content": m.thought, "thinking": m.thought}
        if m.calls:
            names = {call.id: call.name for call in m.calls}
            read = str if chat.tokenizer.name_or_path == f"test/{DEEPSEEK}" else json.loads
            functions = [{"name": call.name, "arguments": read(call.arguments)} for call in m.calls]
            turn["tool_calls"] = [{"id": c.id, "function": f} for c, f in zip(m.calls, functions, strict=True)]
        if m.role == "tool":
            turn |= {"tool_call_id": m.call_id, "name": names[m.call_id]}
        turns.append(turn)
    tools = None if trajectory.tools is None else json.loads(trajectory.tools)
    today = date(2024, 7, 26).strftime
    return str(chat.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, strftime_now=today, **options))


@pytest.mark.parametrize("name", HELD)
def test_a_step_is_trained_on_behind_the_prompt_of_play_with_its_own_tokens_and_end_of_turn(name: str) -> None:
    chat = ChatFormat(tool_tokenizer(name))
    for seed in range(COUNT // len(HELD)):
        rng = Random(f"{name}{seed}")
        trajectory = random_trajectory(rng, seed, **HELD[name])
        chosen = random_choice(rng, trajectory.steps)
        examples = training_examples(tokens_of(trajectory, chat), chosen, 1 << 20)
        spans = [(e.ids.tolist(), start, end) for e in examples for start, end in e.spans.tolist()]
        assert len(spans) == len(chosen)
        assert sum(e.loss_tokens for e in examples) == sum(end - start for _, start, end in spans)
        for step, (ids, start, end) in zip(chosen, spans, strict=True):
            place = trajectory.steps[step - 1].position
            assert ids[:start] == chat.opening(trajectory.messages[:place], trajectory.tools)
            text = chat.tokenizer.decode(ids[:start])
            assert text == written(chat, trajectory, place, add_generation_prompt=True)
            assert ids[end - 1] in chat._special_ids
            assert not set(ids[start : end - 1]) & set(chat.stop_ids)
            if name != DEEPSEEK:
                whole = written(chat, trajectory, place + 1)
                if name == GLM:  # whose next turn begins with the token that ends the reply
                    whole += "<|observation|>" if trajectory.messages[place].calls else "<|user|>"
                assert whole.startswith(chat.tokenizer.decode(ids[:end]))
                behind = whole.removeprefix(chat.tokenizer.decode(ids[:end]))
                assert behind.strip() in ("", chat.tokenizer.eos_token)


def test_a_reply_may_end_with_the_token_that_begins_the_next_turn() -> None:
    """GLM's: what a user says next, or a tool, begins with it; the last reply of all has it too."""
    chat = ChatFormat(tool_tokenizer("glm-4.5"))
    (rendered,) = chat.render([Message("user", "go"), Message("assistant", "Go up", True), Message("user", "You win")])
    assert (
        chat.tokenizer.decode(rendered.ids) == "[gMASK]<sop><|user|>\ngo<|assistant|>\n<think></think>\nGo up<|user|>"
    )
    [span] = [s for s in rendered.spans if s]
    assert chat.tokenizer.decode(rendered.ids[slice(*span)]) == "\n<think></think>\nGo up<|user|>"
    call = Message("assistant", "", True, calls=(ToolCall("look", "{}", "a"),))
    (rendered,) = chat.render([Message("user", "go"), call])
    assert chat.tokenizer.decode(rendered.ids).endswith("<tool_call>look\n</tool_call><|observation|>")


def test_a_template_that_ends_no_turn_is_refused() -> None:
    tokenizer = copy(tool_tokenizer("glm-4.5"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(UserError, match="ends a reply without a special token"):
        ChatFormat(tokenizer)


@pytest.mark.parametrize("name", ["smollm2"])
def test_tools_that_a_template_has_no_place_for_are_refused(name: str) -> None:
    conversation = [Message("user", "go"), Message("assistant", "Go up", True)]
    tools = random_trajectory(Random(1), 1, tools=True, thoughts=False).tools
    with pytest.raises(UserError, match="changes the tools, or leaves them out"):
        ChatFormat(tool_tokenizer(name)).render(conversation, tools)
