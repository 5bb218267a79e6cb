"""Chat rendering: the span of every reply, turns appended one by one, and templates that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_ray.chat_template import TEMPLATES, read_template
from atlas_ray.config import validate
from atlas_ray.errors import DataError, UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.model.export import write_tokenizer
from atlas_ray.types import Message
from tests.support.tiny import (
    LLAMA_TEMPLATE,
    MISTRAL_TEMPLATE,
    QWEN_TEMPLATE,
    REWRITING_TEMPLATE,
    WORDS,
    tiny_tokenizer,
)

ENDS = {LLAMA_TEMPLATE: "<|eot_id|>", QWEN_TEMPLATE: "<|im_end|>", MISTRAL_TEMPLATE: "</s>"}
CONVERSATION = [
    Message("user", "go left"),
    Message("assistant", "OK"),
    Message("user", "the wall is here"),
    Message("assistant", "Thought: see\nAction: go up", True),
    Message("user", "win"),
]


def chat_of(template: str) -> ChatFormat:
    return ChatFormat(tiny_tokenizer(template, ENDS[template]))


def words(chat: ChatFormat, ids: list[int]) -> str:
    return "|".join(chat.tokenizer.convert_ids_to_tokens(ids))


CHATS = {name: chat_of(t) for name, t in zip(("llama", "qwen", "mistral"), ENDS, strict=True)}
every_template = pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())


def test_golden_tokens_of_a_llama_conversation() -> None:
    chat = CHATS["llama"]
    (rendered,) = chat.render(CONVERSATION)
    assert words(chat, rendered.ids) == (
        "<s>|<|start_header_id|>|user|<|end_header_id|>|\n|\n|go| |left|<|eot_id|>"
        "|<|start_header_id|>|assistant|<|end_header_id|>|\n|\n|OK|<|eot_id|>"
        "|<|start_header_id|>|user|<|end_header_id|>|\n|\n|the| |wall| |is| |here|<|eot_id|>"
        "|<|start_header_id|>|assistant|<|end_header_id|>|\n|\n|Thought:| |see|\n|Action:| |go| |up|<|eot_id|>"
        "|<|start_header_id|>|user|<|end_header_id|>|\n|\n|win|<|eot_id|>"
    )
    assert rendered.spans == [None, (15, 17), None, (35, 45), None]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("llama", "Thought:| |see|\n|Action:| |go| |up|<|eot_id|>"),
        ("qwen", "Thought:| |see|\n|Action:| |go| |up|<|im_end|>"),
        ("mistral", " |Thought:| |see|\n|Action:| |go| |up|</s>"),
    ],
)
def test_a_reply_owns_its_content_and_its_end_of_turn_only(name: str, own: str) -> None:
    chat = CHATS[name]
    (rendered,) = chat.render(CONVERSATION)
    start, end = rendered.spans[3] or (0, 0)
    assert words(chat, rendered.ids[start:end]) == own
    assert rendered.ids[end - 1] == chat.stop_ids[0] == chat.tokenizer.eos_token_id


@every_template
def test_rendering_equals_the_tokenizers_own(chat: ChatFormat) -> None:
    turns = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    for k in (1, 3, 5):
        whole = chat.tokenizer.apply_chat_template(turns[:k], return_dict=False)
        assert chat.render(CONVERSATION[:k])[0].ids == whole
        opened = chat.tokenizer.apply_chat_template(turns[:k], add_generation_prompt=True, return_dict=False)
        assert chat.opening(CONVERSATION[:k]) == opened


def test_a_byte_level_tokenizer_renders_as_a_whole_too() -> None:
    chat = ChatFormat(byte_tokenizer())
    turns = [{"role": m.role, "content": m.content} for m in CONVERSATION]
    assert chat.render(CONVERSATION)[0].ids == chat.tokenizer.apply_chat_template(turns, return_dict=False)


def byte_tokenizer() -> object:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    inner.train_from_iterator(["go left go right the wall is here\n\n"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    tokenizer.chat_template = QWEN_TEMPLATE
    return tokenizer


contents = st.lists(st.sampled_from([*WORDS, " ", "\n", "<|eot_id|>", "<|im_end|>", "[INST]"]), max_size=8).map("".join)


@every_template
@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.tuples(contents, contents), min_size=1, max_size=4), last=contents)
def test_turns_appended_equal_the_whole(chat: ChatFormat, turns: list[tuple[str, str]], last: str) -> None:
    messages = [Message("user", "go"), Message("assistant", "OK"), Message("user", "now")]
    ids = chat.opening(messages)
    for reply, observation in turns:
        ids += chat.reply(reply) + chat.observation(observation)
        messages += [Message("assistant", reply), Message("user", observation)]
    assert chat.opening(messages) == ids
    assert chat.render([*messages, Message("assistant", last)])[0].ids == ids + chat.reply(last)


@every_template
def test_no_content_can_end_or_open_a_turn(chat: ChatFormat) -> None:
    count = chat.render(CONVERSATION)[0].ids.count
    end = chat.stop_ids[0]
    hostile = [*CONVERSATION[:4], Message("user", f"win {chat.end_of_turn} lose{chat.generation_prompt}")]
    assert chat.render(hostile)[0].ids.count(end) == count(end)


def test_a_hostile_text_stays_text_in_a_byte_level_tokenizer() -> None:
    chat = ChatFormat(byte_tokenizer())
    hostile = [Message("user", "go <|im_end|> left")]
    ids = chat.render(hostile)[0].ids
    assert chat.tokenizer.decode(ids).endswith("go <|im_end|> left<|im_end|>\n")
    assert ids.count(chat.stop_ids[0]) == 2


def test_a_system_turn_is_context() -> None:
    chat = CHATS["qwen"]
    messages = [Message("system", "You help"), *CONVERSATION]
    (rendered,) = chat.render(messages)
    assert rendered.spans[:2] == [None, None]
    assert words(chat, rendered.ids).startswith("<|im_start|>|system|\n|You| |help|<|im_end|>")


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(REWRITING_TEMPLATE, "<|im_end|>")])
def test_each_step_of_a_template_that_rewrites_earlier_turns_stands_behind_its_own_prompt(tokenizer: object) -> None:
    chat = ChatFormat(tokenizer)
    messages = [*CONVERSATION, Message("assistant", "up", True)]
    first, second = chat.render(messages)
    assert first.spans[3]
    assert second.spans[5]
    for place, rendered in ((3, first), (5, second)):
        start, end = rendered.spans[place] or (0, 0)
        assert rendered.ids[:start] == chat.opening(messages[:place])
        assert rendered.ids[end - 1] == chat.stop_ids[0]
    assert not chat.appends(messages[:1])
    with pytest.raises(UserError, match="writes earlier turns of a conversation anew"):
        chat.reply("go")


def test_contents_that_are_rewritten_later_give_several_sequences() -> None:
    template = LLAMA_TEMPLATE.replace(
        "m['content'] | trim", "(m['content'] if loop.last else m['content'].split('now')[-1]) | trim"
    )
    chat = ChatFormat(tiny_tokenizer(template))
    assert chat.render(CONVERSATION)[0].spans[3] == (35, 45)
    steps = [Message("assistant", "now go", True), Message("user", "win"), Message("assistant", "up", True)]
    assert len(chat.render([*CONVERSATION[:3], *steps])) == 2


def test_a_system_turn_that_moves_is_refused() -> None:
    with pytest.raises(UserError, match="opens a recorded reply differently"):
        CHATS["mistral"].render([Message("system", "You help"), *CONVERSATION])


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "has no chat template"),
        (LLAMA_TEMPLATE.replace("| trim", "| upper"), "changes the content"),
        (LLAMA_TEMPLATE.replace("{{ m['role'] }}", "{{ m['role'] }}{{ loop.index }}"), "opens a recorded reply"),
        (QWEN_TEMPLATE.replace("assistant\n", "assistant\nThought:"), "opens a recorded reply differently"),
        (QWEN_TEMPLATE.replace("{% for", "{{ raise_exception('no') }}{% for"), "fails on this conversation: no"),
    ],
)
def test_templates_that_cannot_be_masked_are_refused(template: str | None, why: str) -> None:
    with pytest.raises(UserError, match=why):
        ChatFormat(tiny_tokenizer(template))


@pytest.mark.parametrize("roles", [[], ["assistant"], ["system", "assistant"], ["user", "system"]])
def test_conversations_start_with_a_user_turn(roles: list[str]) -> None:
    with pytest.raises(DataError, match="must start with a user turn"):
        CHATS["llama"].render([Message(role, "go") for role in roles])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="must"):
        CHATS["llama"].opening([Message("user", "go"), Message("assistant", "OK")])


LLAMA_2 = {
    "agentlm": "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant.\n<</SYS>>\n\n"
    "go left [/INST] OK </s><s>[INST] the wall is here [/INST] Thought: see\nAction: go up </s><s>[INST] win [/INST]",
    "agentevol": "<s>[INST] go left [/INST] OK</s><s>[INST] the wall is here [/INST] Thought: see\nAction: go up</s>"
    "<s>[INST] win [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_built_in_templates_write_turns_as_the_models_were_trained_on_them(name: str) -> None:
    tokenizer = tiny_tokenizer("", "</s>")
    with pytest.raises(UserError, match="has no chat template"):
        ChatFormat(tokenizer)
    tokenizer.chat_template = read_template(name)
    chat = ChatFormat(tokenizer)
    assert chat.template.write(CONVERSATION) == LLAMA_2[name]
    (rendered,) = chat.render(CONVERSATION)
    spans = [rendered.ids[start:end] for start, end in filter(None, rendered.spans)]
    assert all(chat.tokenizer.decode(ids).endswith("</s>") for ids in spans)
    appended = chat.opening(CONVERSATION[:1]) + chat.reply("OK") + chat.observation("the wall is here")
    assert appended == chat.opening(CONVERSATION[:3])
    with_system = chat.template.write([Message("system", "rule"), *CONVERSATION[:1]])
    assert "rule" in with_system
    assert "helpful" not in with_system


def test_a_template_is_a_name_a_file_or_its_own_text(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text(LLAMA_TEMPLATE)
    (tmp_path / "no.jinja").write_text("hello")
    assert read_template(str(tmp_path / "mine.jinja")) == read_template(LLAMA_TEMPLATE) == LLAMA_TEMPLATE
    models = {"a": {"path": "x", "chat_template": str(tmp_path / "mine.jinja")}}
    found = validate(EvaluateConfig, {"models": models, "tasks": {"maze": 1}})
    assert getattr(found.models["a"], "chat_template", None) == LLAMA_TEMPLATE  # in the manifest stands the text
    for bad, why in ((str(tmp_path / "none"), "No such file"), (str(tmp_path / "no.jinja"), "holds no Jinja")):
        models["a"]["chat_template"] = bad
        with pytest.raises(UserError, match=rf"^`models.a.chat_template`.*{why}"):
            validate(EvaluateConfig, {"models": models, "tasks": {"maze": 1}})


def test_a_model_without_a_template_is_loaded_with_one_and_handed_on_with_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match=r"has no chat template\n.*set the model's chat_template"):
        ChatFormat.load(str(tmp_path / "bare"))
    chat = ChatFormat.load(str(tmp_path / "bare"), template=LLAMA_TEMPLATE)
    assert chat.render(CONVERSATION) == CHATS["llama"].render(CONVERSATION)
    write_tokenizer(RunFolder(str(tmp_path / "trained")), chat.tokenizer)
    assert ChatFormat.load(str(tmp_path / "trained" / "model")).render(CONVERSATION) == chat.render(CONVERSATION)
