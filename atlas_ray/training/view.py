"""A trajectory's tokens for the eye: those that carry loss are coloured."""

from __future__ import annotations

from itertools import pairwise

from rich.text import Text

from atlas_ray.chat_template import read_template
from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.text import printable
from atlas_ray.training.data.masking import Example, tokens_of, training_example
from atlas_ray.trajectories.readers import read_trajectories

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
        text.append(printable(chat.tokenizer.decode(example.ids[start:end].tolist(), skip_special_tokens=False)), style)
    return text


def view(
    data: str, model: str, selection: str | None, trajectory: str | None, chat_template: str | None = None
) -> Text:
    """One trajectory of a data set as it would be trained on, uncut.

    Args:
        data: Where the trajectories are.
        model: Whose tokenizer and chat template.
        selection: Run folder of a selection; all steps carry loss where None.
        trajectory: Its id; the first one where None.
        chat_template: Name, file or text of another one than the tokenizer's.

    Raises:
        UserError: If there is no such trajectory, or no selection for it.
    """
    found = {t.id: t for t in read_trajectories(DataConfig(path=data))}
    name = trajectory or next(iter(found), None)
    if name is None or name not in found:
        raise UserError(f"{data} holds no trajectory {name}", f"the first ones are {', '.join(list(found)[:3])}")
    chosen = None
    if selection is not None:
        by_id = {s.trajectory_id: s for s in RunFolder(selection).read(SELECTIONS)}
        if name not in by_id:
            raise UserError(f"{selection} holds no selection for {name}", "name the run folder of `atlas select`")
        chosen = by_id[name].chosen
    try:
        chat = ChatFormat.load(model, template=chat_template and read_template(chat_template))
    except ValueError as error:
        raise UserError(f"--chat-template: {error}", "check the name") from None
    return render_mask(training_example(tokens_of(found[name], chat), chosen, max_length=1 << 30), chat)
