"""The six chat formats that the paper's models speak, written by hand, on a tokenizer of whole words.

Each is what the model's own template writes for conversations without tools.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
LLAMA_31 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rule = messages[0]['content'] | trim %}"
    "{% set turns = messages[1:] %}{% else %}{% set rule = '' %}{% set turns = messages %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: {{ date_string if date_string is defined else '26 Jul 2024' }}\n\n{{ rule }}<|eot_id|>"
    "{% for m in turns %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
    "{% set rule = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set rule = '' %}{% endif %}{% for m in turns %}"
    + _ALTERNATE
    + "{% if m['role'] == 'user' %}"
    "{{ bos_token }}[INST] {{ ((rule if loop.first else '') + m['content']).strip() }} [/INST]"
    "{% else %} {{ m['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_V03 = (
    "{% if messages[0]['role'] == 'system' %}{% set rule = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set rule = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for m in turns %}" + _ALTERNATE + "{% if m['role'] == 'user' %}"
    "[INST] {{ rule if loop.last else '' }}{{ m['content'] }}[/INST]"
    "{% else %} {{ m['content'] | trim }}{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN_25 = (
    "{% if messages[0]['role'] == 'system' %}<|im_start|>system\n{{ messages[0]['content'] }}<|im_end|>\n"
    "{% else %}<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "{% endif %}{% for m in messages %}{% if not (loop.first and m['role'] == 'system') %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}" + _ALTERNATE + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else "
    "m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Behind all turns it writes the end of the text, which no longer conversation has there.
PHI_35 = (
    "{% for m in messages %}{% if m['content'] %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Format:
    """A chat template and its special tokens.

    Attributes:
        swallowing: Special tokens that take in the white space behind them, as Phi's do.
    """

    template: str
    bos: str | None
    eos: str
    turns: tuple[str, ...] = ()
    swallowing: tuple[str, ...] = ()


FORMATS = {
    "llama-3.1": Format(LLAMA_31, "<|begin_of_text|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "llama-2": Format(LLAMA_2, "<s>", "</s>"),
    "mistral-v0.3": Format(MISTRAL_V03, "<s>", "</s>", ("[INST]", "[/INST]")),
    "qwen2.5": Format(QWEN_25, None, "<|im_end|>", ("<|im_start|>", "<|endoftext|>")),
    "gemma-2": Format(GEMMA_2, "<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
    "phi-3.5": Format(
        PHI_35, "<s>", "<|endoftext|>", swallowing=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    ),
}
_TEXTS = (
    "Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024 system user assistant model [INST] [/INST] <<SYS>> "
    "<</SYS>> You are Qwen, created by Alibaba Cloud. You are a helpful assistant. Be brief help OK see a b c d "
    "Thought: Action: go up win"
)


def tokenizer_of(name: str) -> Any:
    """One token a word and a white-space character; special tokens as the format has them."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    form = FORMATS[name]
    words = dict.fromkeys(["<unk>", " ", "\n", *_TEXTS.split()])
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=form.bos,
        eos_token=form.eos,
        unk_token="<unk>",
        additional_special_tokens=[
            *(AddedToken(t, special=True, normalized=False) for t in form.turns),
            *(AddedToken(t, special=True, normalized=False, rstrip=True) for t in form.swallowing),
        ],
        name_or_path=f"test/{name}",
    )
    tokenizer.chat_template = form.template
    return tokenizer
