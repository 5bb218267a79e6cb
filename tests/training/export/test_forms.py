"""Rows for other trainers: rows of turns are read back as they were, rows of tokens are the examples of training."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from random import Random
from typing import Any

import numpy as np
import pytest

from atlas_ray.errors import DataError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import Example, training_examples
from atlas_ray.training.export.forms import FORMS, TextForm, TokenForm, checked_row, chosen_only, step_by_step
from atlas_ray.trajectories.formats.registry import FORMATS
from atlas_ray.types import Category, GoldStep, Message, ToolCall, Trajectory, with_call_ids
from tests.support.conversations import TOOLS, random_choice, random_trajectory
from tests.support.tool_formats import TEMPLATES, tool_tokenizer

TEXTS = {name: form for name, form in FORMS.items() if isinstance(form, TextForm)}
every_text_form = pytest.mark.parametrize("name", TEXTS)
CHATS = {name: ChatFormat(tool_tokenizer(name)) for name in TEMPLATES}


def read_back(name: str, trajectory: Trajectory) -> Trajectory:
    form = TEXTS[name]
    return FORMATS.find(form.reads).read(checked_row(form, trajectory))


def as_read(name: str, trajectory: Trajectory) -> Trajectory:
    return TEXTS[name].as_read(trajectory)


def signature(examples: list[Example]) -> list[tuple[list[int], list[bool]]]:
    return [(example.ids.tolist(), example.loss_mask.tolist()) for example in examples]


def cases(count: int, **options: Any) -> Iterator[tuple[Trajectory, Collection[int]]]:
    """Random trajectories, every second with tools, and steps chosen in them."""
    for seed in range(count):
        rng = Random(seed)
        trajectory = random_trajectory(rng, seed, tools=seed % 2 == 0, thoughts=True, **options)
        yield trajectory, random_choice(rng, trajectory.steps)


@every_text_form
@pytest.mark.parametrize("ids", [True, False])
def test_a_row_of_turns_reads_back_as_the_chosen_steps(name: str, ids: bool) -> None:
    for trajectory, chosen in cases(100, ids=ids):
        masked = chosen_only(trajectory, chosen)
        found = read_back(name, masked)
        assert with_call_ids(found.messages) == with_call_ids(as_read(name, masked).messages)
        assert found.tools == masked.tools
        if name != "openai":  # whose schema has no place for them
            held, wanted = ((t.id, t.env, t.item_id, t.reward) for t in (found, masked))
            assert held == wanted


@pytest.mark.parametrize("name", [name for name, form in TEXTS.items() if not form.last_only])
@pytest.mark.parametrize("family", TEMPLATES)
def test_training_on_what_is_read_back_is_training_on_the_selection(name: str, family: str) -> None:
    chat = CHATS[family]
    for trajectory, chosen in cases(12):
        expected = training_examples(tokens_of(trajectory, chat), chosen, 1 << 20)
        found = read_back(name, chosen_only(trajectory, chosen))
        assert signature(training_examples(tokens_of(found, chat), None, 1 << 20)) == signature(expected)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_row_for_each_step_holds_the_prompt_that_the_step_is_given(family: str) -> None:
    chat = CHATS[family]
    for trajectory, chosen in cases(12):
        whole = training_examples(tokens_of(trajectory, chat), chosen, 1 << 20)
        expected = [(e.ids[:end].tolist(), [start, end]) for e in whole for start, end in e.spans.tolist()]
        found = []
        for one in step_by_step(chosen_only(trajectory, chosen)):
            (example,) = training_examples(tokens_of(one, chat), None, 1 << 20)
            found.append((example.ids.tolist(), *example.spans.tolist()))
        assert found == expected


def test_what_follows_the_last_chosen_step_and_marks_of_all_steps_are_left_out() -> None:
    turns = [Message("user", "a"), Message("assistant", "b", True)] * 3
    marked = (GoldStep(3, 1, Category.PLAN_CREATION),)
    trajectory = Trajectory("maze/maze_1", "maze", "maze_1", tuple(turns), gold=marked)
    found = chosen_only(trajectory, [2])
    assert [m.trainable for m in found.messages] == [False, False, False, True]
    assert (found.gold, chosen_only(trajectory, None).gold) == (None, marked)


BOTH = (Message("user", "go"), Message("assistant", "I look.", True, calls=(ToolCall("search", '{"q": "X"}'),)))


@pytest.mark.parametrize(
    ("name", "messages", "why"),
    [
        ("sharegpt", BOTH, "a text beside its calls"),
        ("agenttraj", BOTH, "a text beside its calls"),
        ("openai", (Message("user", "go"), Message("assistant", "<think>b</think>c", True)), "turn 2: the form has no"),
        ("axolotl", (Message("user", "go"), Message("assistant", "<think>c", True)), "<think> has no end"),
        ("openai", (Message("user", "go"), Message("assistant", "c", True, "a</think>b")), "turn 2: the form has no"),
        ("llamafactory", (Message("user", "a"), Message("user", "b"), Message("assistant", "c", True)), "take turns"),
    ],
)
def test_what_a_form_has_no_place_for_is_refused(name: str, messages: tuple[Message, ...], why: str) -> None:
    with pytest.raises(DataError, match=why):
        checked_row(TEXTS[name], Trajectory("maze/maze_1", "maze", "maze_1", messages, tools=TOOLS))


def test_openais_rows_hold_no_key_that_its_schema_does_not_know() -> None:
    rng = Random(3)
    for number in range(50):
        trajectory = random_trajectory(rng, number, tools=True, thoughts=True, ids=False, text_beside_calls=True)
        row = checked_row(TEXTS["openai"], chosen_only(trajectory, None))
        assert row.keys() == {"messages", "tools"}
        assert row["messages"][-1]["weight"] == 1
        keys = {"assistant": {"role", "content", "weight", "tool_calls"}, "tool": {"role", "content", "tool_call_id"}}
        for turn in row["messages"]:
            assert turn.keys() <= keys.get(turn["role"], {"role", "content"})
            assert all(call["id"] for call in turn.get("tool_calls", ()))


def an_example() -> Example:
    ids, spans = np.arange(10, 18, dtype=np.int32), np.array([[2, 4], [5, 8]], np.int32)
    return Example("maze/maze_1", ids, spans, 3, 2, 0, 6)


def token_row(name: str, objective: Any = "token") -> dict[str, Any]:
    form = FORMS[name]
    assert isinstance(form, TokenForm)
    return form.write(an_example(), objective)


def test_labels_are_the_tokens_with_loss() -> None:
    row = token_row("trl")
    assert row["input_ids"].tolist() == [10, 11, 12, 13, 14, 15, 16, 17]
    assert row["labels"].tolist() == [-100, -100, 12, 13, -100, 15, 16, 17]


def test_weights_follow_the_objective() -> None:
    third, half = np.float32(1 / 3), 0.5
    assert token_row("parquet")["weights"].tolist() == [0, 0, 1, 1, 0, 1, 1, 1]
    assert token_row("parquet", "step")["weights"].tolist() == [0, 0, half, half, 0, third, third, third]
    assert token_row("parquet")["loss_mask"].tolist() == [False, False, True, True, False, True, True, True]


def test_a_datum_weighs_the_next_token() -> None:
    row = token_row("tinker")
    assert row["model_input"] == [10, 11, 12, 13, 14, 15, 16]
    assert row["target_tokens"] == [11, 12, 13, 14, 15, 16, 17]
    assert row["weights"] == [0, 1, 1, 0, 1, 1, 1]
