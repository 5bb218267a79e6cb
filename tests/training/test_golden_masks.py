"""Golden tokens and masks of the six chat formats: what is in « » carries loss, and nothing else does."""

from __future__ import annotations

from functools import cache

import pytest

from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.data.corpus import tokens_of
from atlas_ray.types import Message, Trajectory
from tests.support.formats import FORMATS, tokenizer_of
from tests.support.training import training_example

CONVERSATION = (
    Message("user", "help"),
    Message("assistant", "OK"),
    Message("user", "see a"),
    Message("assistant", "Thought: b\nAction: go", True),
    Message("user", "see c"),
    Message("assistant", "Action: up", True),
    Message("user", "see d"),
    Message("assistant", "Action: win", True),
)
TRAJECTORY = Trajectory("maze/1", "maze", "1", CONVERSATION)
RULE = Message("system", "Be brief")

# With steps 1 and 3 chosen: step 2 and the untrainable OK are context, like every header.
_HEADER = "|<|start_header_id|>|{}|<|end_header_id|>|\n|\n|"
_USER, _REPLY = _HEADER.format("user"), _HEADER.format("assistant")
GOLDEN = {
    "llama-3.1": (
        "<|begin_of_text|>" + _HEADER.format("system") + "Cutting| |Knowledge| |Date:| |December| |2023|\n"
        "|Today| |Date:| |26| |Jul| |2024|\n|\n|<|eot_id|>"
        f"{_USER}help|<|eot_id|>{_REPLY}OK|<|eot_id|>{_USER}see| |a|<|eot_id|>"
        f"{_REPLY}«Thought:| |b|\n|Action:| |go|<|eot_id|>»{_USER}see| |c|<|eot_id|>"
        f"{_REPLY}Action:| |up|<|eot_id|>{_USER}see| |d|<|eot_id|>{_REPLY}«Action:| |win|<|eot_id|>»"
    ),
    "llama-2": (
        "<s>|[INST]| |help| |[/INST]| |OK| |</s>|<s>|[INST]| |see| |a| |[/INST]|« |Thought:| |b|\n|Action:| |go| |</s>»"
        "|<s>|[INST]| |see| |c| |[/INST]| |Action:| |up| |</s>"
        "|<s>|[INST]| |see| |d| |[/INST]|« |Action:| |win| |</s>»"
    ),
    "mistral-v0.3": (
        "<s>|[INST]| |help|[/INST]| |OK|</s>|[INST]| |see| |a|[/INST]|« |Thought:| |b|\n|Action:| |go|</s>»"
        "|[INST]| |see| |c|[/INST]| |Action:| |up|</s>|[INST]| |see| |d|[/INST]|« |Action:| |win|</s>»"
    ),
    "qwen2.5": (
        "<|im_start|>|system|\n|You| |are| |Qwen,| |created| |by| |Alibaba| |Cloud.| |You| |are| |a| |helpful"
        "| |assistant.|<|im_end|>|\n|<|im_start|>|user|\n|help|<|im_end|>|\n|<|im_start|>|assistant|\n|OK|<|im_end|>|\n"
        "|<|im_start|>|user|\n|see| |a|<|im_end|>|\n"
        "|<|im_start|>|assistant|\n|«Thought:| |b|\n|Action:| |go|<|im_end|>»|\n"
        "|<|im_start|>|user|\n|see| |c|<|im_end|>|\n|<|im_start|>|assistant|\n|Action:| |up|<|im_end|>|\n"
        "|<|im_start|>|user|\n|see| |d|<|im_end|>|\n|<|im_start|>|assistant|\n|«Action:| |win|<|im_end|>»"
    ),
    "gemma-2": (
        "<bos>|<start_of_turn>|user|\n|help|<end_of_turn>|\n|<start_of_turn>|model|\n|OK|<end_of_turn>|\n"
        "|<start_of_turn>|user|\n|see| |a|<end_of_turn>|\n"
        "|<start_of_turn>|model|\n|«Thought:| |b|\n|Action:| |go|<end_of_turn>»|\n"
        "|<start_of_turn>|user|\n|see| |c|<end_of_turn>|\n|<start_of_turn>|model|\n|Action:| |up|<end_of_turn>|\n"
        "|<start_of_turn>|user|\n|see| |d|<end_of_turn>|\n|<start_of_turn>|model|\n|«Action:| |win|<end_of_turn>»"
    ),
    # Its turn tokens take in the line break behind them, which so is no token.
    "phi-3.5": (
        "<|user|>|help|<|end|>|<|assistant|>|OK|<|end|>|<|user|>|see| |a|<|end|>"
        "|<|assistant|>|«Thought:| |b|\n|Action:| |go|<|end|>»|<|user|>|see| |c|<|end|>"
        "|<|assistant|>|Action:| |up|<|end|>|<|user|>|see| |d|<|end|>|<|assistant|>|«Action:| |win|<|end|>»"
    ),
}
every_format = pytest.mark.parametrize("name", FORMATS)


@cache
def chat_of(name: str) -> ChatFormat:
    return ChatFormat(tokenizer_of(name))


def parse(golden: str) -> tuple[list[str], list[bool]]:
    """Tokens, and whether each stands within « »."""
    tokens, mask, inside = list[str](), list[bool](), False
    for piece in golden.split("|"):  # a special token such as <|end|> comes in pieces
        if tokens and tokens[-1].startswith("<") and not tokens[-1].endswith(">"):
            tokens[-1] += "|" + piece
        else:
            inside = inside or piece.startswith("«")
            tokens.append(piece.lstrip("«"))
            mask.append(inside)
        if tokens[-1].endswith("»"):
            tokens[-1], inside = tokens[-1].rstrip("»"), False
    return tokens, mask


@every_format
def test_golden_ids_and_mask(name: str) -> None:
    chat = chat_of(name)
    tokens, mask = parse(GOLDEN[name])
    example = training_example(tokens_of(TRAJECTORY, chat), [1, 3], 500)
    assert chat.tokenizer.convert_ids_to_tokens(example.ids.tolist()) == tokens
    assert example.ids.tolist() == chat.tokenizer.convert_tokens_to_ids(tokens)
    assert chat.tokenizer.unk_token_id not in example.ids
    assert example.loss_mask.tolist() == mask


@every_format
def test_turn_by_turn_equals_whole(name: str) -> None:
    chat = chat_of(name)
    turns = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    for k in range(2, len(turns) + 1, 2):
        whole = chat.tokenizer.apply_chat_template(turns[:k], return_dict=False)
        ids = chat.render(CONVERSATION[:k])[0].ids
        assert whole[: len(ids)] == ids
        # Behind the last end of turn a template writes at most white space and an end of the text.
        assert chat.tokenizer.decode(whole[len(ids) :]).strip() in ("", chat.tokenizer.eos_token)
        opened = chat.tokenizer.apply_chat_template(turns[: k - 1], add_generation_prompt=True, return_dict=False)
        assert chat.opening(CONVERSATION[: k - 1]) == opened
        assert opened + chat.reply(CONVERSATION[k - 1].content) == ids


@every_format
def test_an_episode_is_fed_what_was_trained_on(name: str) -> None:
    chat = chat_of(name)
    ids = chat.opening(CONVERSATION[:3])
    for reply, seen in ((3, 4), (5, 6)):
        ids += chat.reply(CONVERSATION[reply].content) + chat.observation(CONVERSATION[seen].content)
    assert ids + chat.reply(CONVERSATION[7].content) == chat.render(CONVERSATION)[0].ids


@every_format
def test_a_reply_ends_with_the_token_that_stops_generation(name: str) -> None:
    chat = chat_of(name)
    end = {"gemma-2": "<end_of_turn>", "phi-3.5": "<|end|>"}.get(name, chat.tokenizer.eos_token)
    expected = [chat.tokenizer.convert_tokens_to_ids(end), chat.tokenizer.eos_token_id]
    assert chat.stop_ids == tuple(dict.fromkeys(expected))


@pytest.mark.parametrize("name", ["llama-3.1", "llama-2", "qwen2.5", "phi-3.5"])
def test_a_system_turn_is_context(name: str) -> None:
    chat = chat_of(name)
    (rendered,) = chat.render([RULE, *CONVERSATION])
    tokens = chat.tokenizer.convert_ids_to_tokens(rendered.ids)
    assert tokens.index("brief") < tokens.index("help")
    assert rendered.spans[0] is None
    (plain,) = chat.render(CONVERSATION)
    for (start, end), (first, last) in zip(rendered.spans[2::2], plain.spans[1::2], strict=True):  # type: ignore[misc]
        assert rendered.ids[start:end] == plain.ids[first:last]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gemma-2", "the chat template of test/gemma-2 fails on this conversation: System role not supported"),
        ("mistral-v0.3", "the chat template of test/mistral-v0.3 opens a recorded reply differently"),
    ],
)
def test_a_format_without_a_place_for_a_system_turn_says_so(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        chat_of(name).render([RULE, *CONVERSATION])
