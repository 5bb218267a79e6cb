"""A tokenizer and a model small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help .<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for m in turns %}{% if m['role'] == 'user' %}"
    "[INST] {% if loop.last %}{{ system }}{% endif %}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}</s>{% endif %}{% endfor %}"
)
# As reasoning models do: the last reply keeps its thoughts, earlier ones lose them.
REWRITING_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think> </think>{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]")
SPECIALS = ("<|pad|>", "<s>", "</s>", *TURNS)
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz.0123456789")
ROLES = ("system", "user", "assistant", "Thought:", "Action:", "OK", "You", "help")
PLACES = ("go", "left", "right", "up", "down", "now", "the", "wall", "is", "here", "see", "win", "lose")
WORDS = (*ROLES, *PLACES, *LETTERS)


def tiny_tokenizer(template: str = LLAMA_TEMPLATE, eos: str = "<|eot_id|>") -> Any:
    """One token a word and a white-space character; ids are places in `<unk>`, specials, white space, words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<unk>", *SPECIALS, " ", "\n", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token=eos,
        unk_token="<unk>",
        pad_token="<|pad|>",
        additional_special_tokens=[s for s in SPECIALS if s not in ("<s>", eos, "<|pad|>")],
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_llama(vocab: int, hidden: int = 64, layers: int = 2, heads: int = 2, seed: int = 0, **options: Any) -> Any:
    """A Llama with head size `hidden / heads` (32: the least that vLLM takes on CPU), weights drawn from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **shape | options))


def json_model(folder: str, texts: Iterable[str], context: int, vocabulary: int = 2000) -> None:
    """Writes an untrained Llama with a tokenizer (byte-level BPE learnt from `texts`) that can spell ASCII, so JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from atlas_ray.models.tiny import BOS, CHAT_TEMPLATE, EOT, HEAD, HEAD_END, PAD, build_model

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, HEAD, HEAD_END, EOT],
        # As byte-level BPE writes line break, space, and the rest: nobody draws letters byte by byte.
        initial_alphabet=["\u010a", "\u0120", *map(chr, range(33, 127))],
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        additional_special_tokens=[HEAD, HEAD_END],
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    shape = {"hidden_size": 96, "layers": 2, "heads": 3}
    build_model(tokenizer, context=context, seed=0, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
