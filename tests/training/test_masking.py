"""The mask: loss on the chosen steps' own tokens, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_ray.errors import DataError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.training.data.examples import Example, MaskStatistics
from atlas_ray.training.view import CONTEXT_STYLE, LOSS_STYLE, render_mask
from atlas_ray.types import Message, Trajectory
from tests.support.tiny import LLAMA_TEMPLATE, MISTRAL_TEMPLATE, QWEN_TEMPLATE, tiny_tokenizer
from tests.support.training import training_example

LLAMA = ChatFormat(tiny_tokenizer(LLAMA_TEMPLATE))
QWEN = ChatFormat(tiny_tokenizer(QWEN_TEMPLATE, "<|im_end|>"))
MISTRAL = ChatFormat(tiny_tokenizer(MISTRAL_TEMPLATE, "</s>"))

TRAJECTORY = Trajectory(
    "maze/1",
    "maze",
    "1",
    (
        Message("user", "help"),
        Message("assistant", "OK"),
        Message("user", "see a"),
        Message("assistant", "Thought: a\nAction: go b", True),
        Message("user", "see c"),
        Message("assistant", "Action: up", True),
        Message("user", "see d"),
        Message("assistant", "Thought: d\nAction: win", True),
        Message("user", "win"),
    ),
)


def with_loss(example: Example, chat: ChatFormat) -> str:
    """Tokens joined by `|`; runs that carry loss in « »."""
    tokens = chat.tokenizer.convert_ids_to_tokens(example.ids.tolist())
    return "|".join(f"«{t}»" if m else t for t, m in zip(tokens, example.loss_mask, strict=True)).replace("»|«", "|")


LLAMA_CONTEXT = (
    "<s>|<|start_header_id|>|user|<|end_header_id|>|\n|\n|help|<|eot_id|>"
    "|<|start_header_id|>|assistant|<|end_header_id|>|\n|\n|OK|<|eot_id|>"
    "|<|start_header_id|>|user|<|end_header_id|>|\n|\n|see| |a|<|eot_id|>"
)
LLAMA_HEADER = "|<|start_header_id|>|assistant|<|end_header_id|>|\n|\n|"
LLAMA_GOLDEN = (
    LLAMA_CONTEXT
    + LLAMA_HEADER
    + "«Thought:| |a|\n|Action:| |go| |b|<|eot_id|>»"
    + "|<|start_header_id|>|user|<|end_header_id|>|\n|\n|see| |c|<|eot_id|>"
    + LLAMA_HEADER
    + "Action:| |up|<|eot_id|>"
    + "|<|start_header_id|>|user|<|end_header_id|>|\n|\n|see| |d|<|eot_id|>"
    + LLAMA_HEADER
    + "«Thought:| |d|\n|Action:| |win|<|eot_id|>»"
)
QWEN_GOLDEN = (
    "<|im_start|>|system|\n|You| |help| |.|<|im_end|>|\n|<|im_start|>|user|\n|help|<|im_end|>|\n"
    "|<|im_start|>|assistant|\n|OK|<|im_end|>|\n|<|im_start|>|user|\n|see| |a|<|im_end|>|\n"
    "|<|im_start|>|assistant|\n|Thought:| |a|\n|Action:| |go| |b|<|im_end|>|\n"
    "|<|im_start|>|user|\n|see| |c|<|im_end|>|\n|<|im_start|>|assistant|\n|«Action:| |up|<|im_end|>»"
)
MISTRAL_GOLDEN = (
    "<s>|[INST]| |help|[/INST]| |OK|</s>|[INST]| |see| |a|[/INST]"
    "|« |Thought:| |a|\n|Action:| |go| |b|</s>»|[INST]| |see| |c|[/INST]|« |Action:| |up|</s>»"
)


@pytest.mark.parametrize(
    ("chat", "chosen", "golden"),
    [(LLAMA, {1, 3}, LLAMA_GOLDEN), (QWEN, {2}, QWEN_GOLDEN), (MISTRAL, {1, 2}, MISTRAL_GOLDEN)],
    ids=["llama", "qwen", "mistral"],
)
def test_golden_masks(chat: ChatFormat, chosen: set[int], golden: str) -> None:
    assert with_loss(training_example(tokens_of(TRAJECTORY, chat), chosen, 500), chat) == golden


@pytest.mark.parametrize("chat", [LLAMA, QWEN, MISTRAL], ids=["llama", "qwen", "mistral"])
def test_each_step_alone_carries_exactly_what_a_model_would_have_to_write(chat: ChatFormat) -> None:
    for step in TRAJECTORY.steps:
        example = training_example(tokens_of(TRAJECTORY, chat), [step.index], 500)
        assert example.ids[example.loss_mask].tolist() == chat.reply(step.reply)
        first = int(example.loss_mask.argmax())
        assert example.ids[:first].tolist() == chat.opening(TRAJECTORY.messages[: step.position])
        assert example.loss_mask[first:].all()


def test_steps_outside_the_selection_and_untrainable_turns_carry_no_loss() -> None:
    example = training_example(tokens_of(TRAJECTORY, LLAMA), None, 500)
    assert example.loss_tokens == example.step_tokens == 10 + 4 + 8
    spans = LLAMA.render(TRAJECTORY.messages)[0].spans
    for chosen in ([1], [2], [3], [1, 3]):
        mask = training_example(tokens_of(TRAJECTORY, LLAMA), chosen, 500).loss_mask
        carrying = {p for p, span in enumerate(spans) if span and mask[slice(*span)].any()}
        assert carrying == {TRAJECTORY.steps[i - 1].position for i in chosen}


def test_nothing_follows_the_last_chosen_step() -> None:
    whole = training_example(tokens_of(TRAJECTORY, LLAMA), None, 500)
    early = training_example(tokens_of(TRAJECTORY, LLAMA), [1], 500)
    assert early.loss_mask[-1]
    assert early.ids.tolist() == whole.ids[: early.length].tolist()
    assert (early.steps, early.steps_chosen, early.steps_lost, early.step_tokens) == (3, 1, 0, whole.step_tokens)


def test_a_long_trajectory_is_cut_behind_the_last_whole_step_that_fits() -> None:
    ends = [training_example(tokens_of(TRAJECTORY, LLAMA), [i], 500).length for i in (1, 2, 3)]
    whole = training_example(tokens_of(TRAJECTORY, LLAMA), None, ends[2])
    assert (whole.length, whole.steps_lost) == (ends[2], 0)
    for limit, kept in ((ends[2] - 1, 2), (ends[1], 2), (ends[1] - 1, 1), (ends[0], 1), (ends[0] - 1, 0)):
        example = training_example(tokens_of(TRAJECTORY, LLAMA), None, limit)
        assert (example.length, example.steps_lost) == (ends[kept - 1] if kept else 0, 3 - kept)


def test_no_chosen_step_leaves_nothing() -> None:
    example = training_example(tokens_of(TRAJECTORY, LLAMA), [], 500)
    assert (example.length, example.loss_tokens, example.steps_chosen, example.step_tokens) == (0, 0, 0, 22)


def test_a_step_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(DataError, match=r"maze/1 has 3 steps, but steps \[0, 4\] are chosen"):
        training_example(tokens_of(TRAJECTORY, LLAMA), [0, 2, 4], 500)


def test_statistics_count_everything() -> None:
    limit = training_example(tokens_of(TRAJECTORY, LLAMA), [2], 500).length
    examples = [training_example(tokens_of(TRAJECTORY, LLAMA), chosen, limit) for chosen in ([1], [], [2, 3], [3])]
    assert MaskStatistics.of(examples) == MaskStatistics(
        dropped=2,
        steps_lost=2,
        step_fraction=2 / 12,
        loss_tokens=10 + 4,
        loss_token_fraction=14 / 88,
        tokens=examples[0].length + limit,
    )


def test_the_view_colours_the_loss_tokens() -> None:
    example = training_example(tokens_of(TRAJECTORY, LLAMA), [1, 3], 500)
    text = render_mask(example, LLAMA)
    coloured = [text.plain[s.start : s.end].split() for s in text.spans if s.style == LOSS_STYLE]
    assert coloured == [
        ["Thought:", "a", "Action:", "go", "b", "<|eot_id|>"],
        ["Thought:", "d", "Action:", "win", "<|eot_id|>"],
    ]
    assert [s.style for s in text.spans] == [CONTEXT_STYLE, LOSS_STYLE] * 2
    marked = render_mask(example, LLAMA, marks=True).plain
    assert marked.count(">>") == marked.count("<<") == 2
    assert [part.partition("<<")[0].split() for part in marked.split(">>")[1:]] == coloured
    assert marked.replace(">>", "").replace("<<", "") == text.plain
    empty = Example("x", np.zeros(0, np.int32), np.zeros((0, 2), np.int32), 0, 0, 0, 0)
    assert render_mask(empty, LLAMA).plain == ""
