"""The tiny model: a Llama architecture in Hugging Face format, small enough to train on a laptop in minutes.

Its tokenizer is word-level (words, single digits, punctuation, each with or without a space before it): copying words
piece by piece is what so small a model cannot learn. Flows in: trajectories; flows out: an untrained model folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_ray.types import Trajectory

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, BOS, HEAD, HEAD_END, EOT, UNKNOWN = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|unk|>",
)
# Llama 3's layout, with the blank line after the header kept as one token; tools and calls as Hermes writes them.
CHAT_TEMPLATE = (
    "{{ '<|begin_of_text|>' }}"
    "{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{% for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson + '}</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_CALL = '<think>\n</think>\n\n<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'
# One token: a word, a digit, a punctuation mark, each with one space before it if there is one; or white space.
_PIECES = r"\n\n| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]|\s"


def build_tokenizer(texts: Iterable[str], context: int) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is what the texts use, and every digit.

    Args:
        texts: Everything the model will have to read and write.
        context: Longest sequence, in tokens.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    special = [PAD, BOS, HEAD, HEAD_END, EOT, UNKNOWN]
    seen = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    # A count may stand in play where no text shows it, such as "(6" in an inventory.
    digits = {before + digit for before in ("", " ") for digit in "0123456789"}
    words = special + sorted(seen | digits | {"system", "user", "assistant", "tool", "\n\n", "\n", " "})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOT,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[HEAD, HEAD_END],
        model_max_length=context,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, layers: int, heads: int, context: int, seed: int
) -> LlamaForCausalLM:
    """An untrained Llama of the given shape, its weights drawn from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write_untrained(
    folder: str | Path,
    trajectories: Iterable[Trajectory],
    *,
    hidden_size: int,
    layers: int,
    heads: int,
    context: int,
    seed: int,
) -> int:
    """Writes an untrained model and its tokenizer in Hugging Face format.

    Returns:
        Number of parameters.
    """
    from transformers.utils.logging import disable_progress_bar

    texts = set[str]()
    for trajectory in trajectories:
        calls = [call for message in trajectory.messages for call in message.calls]
        texts |= {message.text for message in trajectory.messages} | {trajectory.tools or ""}
        texts |= {
            _CALL.format(name=call.name, arguments=json.dumps(json.loads(call.arguments), ensure_ascii=False))
            for call in calls
        }
    tokenizer = build_tokenizer(texts, context)
    model = build_model(tokenizer, hidden_size=hidden_size, layers=layers, heads=heads, context=context, seed=seed)
    disable_progress_bar()  # this process writes other things on the screen
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model.num_parameters()
