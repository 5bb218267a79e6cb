"""A trajectory's tokens for the eye: those that carry loss are coloured."""

from __future__ import annotations

from itertools import pairwise

from rich.text import Text

from atlas_ray.models.chat import ChatFormat
from atlas_ray.training.masking import Example

LOSS_STYLE = "bold black on green"
CONTEXT_STYLE = "dim"


def render_mask(example: Example, chat: ChatFormat) -> Text:
    """The example's text, run by run: tokens with loss stand out, context is dim."""
    text = Text()
    edges = [
        0,
        *(i for i in range(1, example.length) if example.loss_mask[i] != example.loss_mask[i - 1]),
        example.length,
    ]
    for start, end in pairwise(edges):
        style = LOSS_STYLE if end > start and example.loss_mask[start] else CONTEXT_STYLE
        text.append(chat.tokenizer.decode(example.ids[start:end].tolist(), skip_special_tokens=False), style)
    return text
