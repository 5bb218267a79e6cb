"""Prompt tokens before they are paid for: by the model's own tokenizer, or by a rule for English.

Flows in: chat messages; flows out: counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from atlas_ray.errors import UserError
from atlas_ray.models.request import ChatMessages
from atlas_ray.models.source import local_model, trusted

Counter = Callable[[ChatMessages], int]

# As GPT tokenizers split text; what a piece comes to was fitted to o200k_base on trajectories (within 2 %), on replies
# of AgentGym's servers and on the paper (within 8 %).
_PIECES = re.compile(r"[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{1,3}| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s")
_AROUND, _REPLY_HEAD = 4, 3  # tokens that OpenAI's chat format puts around each message, and before the reply
_COUNTED = 200  # prompts that are all counted; half of as many more, a quarter of twice as many, and so on


def counter(tokenizer: str | None, model: str) -> Counter:
    """How a model's prompt tokens are counted.

    Args:
        tokenizer: Folder or Hugging Face id of a tokenizer with a chat template, or the name of a tiktoken encoding
            (which tiktoken may have to download); None takes the model's own where that is a local folder, and else
            the rule.
        model: The model's name.

    Raises:
        UserError: If the tokenizer cannot be loaded.
    """
    if tokenizer is None:
        if "://" not in model and not (Path(model) / "tokenizer_config.json").exists():
            return by_rule
        tokenizer = model
    try:
        return _encoding(tokenizer) or _chat_template(tokenizer)
    except Exception as error:  # noqa: BLE001 (whatever a tokenizer file may raise)
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        remedy = "name a folder that holds a tokenizer with a chat template in selector.tokenizer, or leave it out"
        raise UserError(f"the tokenizer {tokenizer} cannot be used: {why}", remedy) from None


def by_rule(messages: ChatMessages) -> int:
    """About as many tokens as OpenAI counts."""
    return _REPLY_HEAD + sum(_AROUND + text_tokens(m["content"]) for m in messages)


def text_tokens(text: str) -> int:
    """About as many tokens as o200k_base makes of a text: a word is one to its seventh letter, then one each four."""
    return sum(map(_piece, _PIECES.findall(text)))


def total(prompts: Iterable[ChatMessages], count: Counter) -> int:
    """Tokens of all prompts: every one of the first, then ever fewer are counted; the rest by their characters."""
    everything = seen = tokens = 0
    for i, messages in enumerate(prompts):
        characters = sum(len(m["content"]) for m in messages)
        everything += characters
        if i % (1 << (i // _COUNTED).bit_length()) == 0:
            seen += characters
            tokens += count(messages)
    return round(tokens * everything / seen) if seen else 0


def _piece(piece: str) -> int:
    text = piece.strip()
    if not text:
        return 1
    if not text.isascii():
        return -(-len(text.encode()) // 3)
    if text[-1].isalpha():
        return 1 + max(0, len(text) - 7) // 4
    return 1 if text[0].isdigit() else 1 + (len(text) - 1) // 2


def _encoding(name: str) -> Counter | None:
    try:
        import tiktoken
    except ImportError:
        return None
    if name not in tiktoken.list_encoding_names():
        return None
    encoding = tiktoken.get_encoding(name)

    def count(messages: ChatMessages) -> int:
        texts = [encoding.encode(m["content"], disallowed_special=()) for m in messages]
        return _REPLY_HEAD + sum(_AROUND + len(text) for text in texts)

    return count


def _chat_template(folder: str) -> Counter:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_model(folder, whole=False), trust_remote_code=trusted())

    def count(messages: ChatMessages) -> int:
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    return count
