"""Random conversations in all families of templates: what is trained on is what play is given, and nothing else."""

from __future__ import annotations

import json
from datetime import date
from random import Random
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import training_examples
from atlas_ray.types import Message, Trajectory, with_call_ids
from tests.support.conversations import random_choice, random_trajectory
from tests.support.tool_formats import HELD, tool_tokenizer

COUNT = 500
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
                assert whole.startswith(chat.tokenizer.decode(ids[:end]))
                behind = whole.removeprefix(chat.tokenizer.decode(ids[:end]))
                assert behind.strip() in ("", chat.tokenizer.eos_token)


def test_a_template_that_ends_no_turn_is_refused() -> None:
    """GLM's: a reply ends where the next turn begins, which is not there yet."""
    with pytest.raises(UserError, match="ends a reply without a special token"):
        ChatFormat(tool_tokenizer("glm-4.5"))


@pytest.mark.parametrize("name", ["smollm2"])
def test_tools_that_a_template_has_no_place_for_are_refused(name: str) -> None:
    conversation = [Message("user", "go"), Message("assistant", "Go up", True)]
    tools = random_trajectory(Random(1), 1, tools=True, thoughts=False).tools
    with pytest.raises(UserError, match="changes the tools, or leaves them out"):
        ChatFormat(tool_tokenizer(name)).render(conversation, tools)
