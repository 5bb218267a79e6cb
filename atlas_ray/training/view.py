"""A trajectory's tokens on the screen: those that carry loss are coloured, or stand in >> <<."""

from __future__ import annotations

from itertools import pairwise

from rich.console import Console
from rich.text import Text

from atlas_ray.chat_template import read_template
from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of
from atlas_ray.runs.progress import console, output
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.text import printable
from atlas_ray.training.data.corpus import Corpus, unknown_words
from atlas_ray.training.data.examples import Example, ExampleSet, training_examples, trajectories_of
from atlas_ray.trajectories.readers import read_trajectories

LOSS_STYLE = "bold black on green"
CONTEXT_STYLE = "dim"


def render_mask(example: Example, chat: ChatFormat, *, marks: bool = False) -> Text:
    """The example's text, run by run: tokens with loss stand out, context is dim.

    Args:
        marks: Puts them between `>>` and `<<` as well, for where there are no colours.
    """
    text = Text()
    mask = example.loss_mask
    changes = [i for i in range(1, example.length) if mask[i] != mask[i - 1]]
    for start, end in pairwise([0, *changes, example.length]):
        loss = end > start and bool(mask[start])
        words = printable(chat.tokenizer.decode(example.ids[start:end].tolist(), skip_special_tokens=False))
        text.append(f">>{words}<<" if loss and marks else words, LOSS_STYLE if loss else CONTEXT_STYLE)
    return text


def _colourless(screen: Console) -> bool:
    return screen.no_color or screen.color_system is None


def show(prepared: ExampleSet, chat: ChatFormat, unknown: str, *, sample: bool) -> None:
    """Prints what carries loss or is left out, and the warning of unknown words.

    Args:
        sample: Shows the first example with its mask before.
    """
    statistics = prepared.statistics
    if sample:
        first, marks = prepared.examples[0], _colourless(console)
        where = "between >> and <<" if marks else "in colour"
        console.print(f"{printable(first.trajectory_id)} as the model reads it; the loss falls on what stands {where}:")
        console.print(render_mask(first, chat, marks=marks))
    count = trajectories_of(prepared.examples)
    anew = f" as {len(prepared.examples)} sequences" if count < len(prepared.examples) else ""
    console.print(
        f"{count} trajectories{anew}, {statistics.step_fraction:.1%} of steps and "
        f"{statistics.loss_token_fraction:.1%} of step tokens carry loss"
    )
    for count, why in (
        (prepared.unselected, "left out: no selection"),
        (statistics.dropped, "left out: no step is chosen, or none within max_length"),
        (statistics.steps_lost, "chosen steps lost: behind max_length"),
    ):
        if count:
            console.print(f"{count} {why}", style="yellow")
    if unknown:
        console.print(unknown, style="yellow")


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
            why = f": {failed}" if (failed := failure_of(RunFolder(selection))) else ""
            raise UserError(f"{selection} holds no selection for {name}{why}", "name the run folder of `atlas select`")
        if error := by_id[name].error:
            raise UserError(f"{selection} chose no step of {name}: {error}", "mend that and select again")
        chosen = by_id[name].chosen
    try:
        chat = ChatFormat.load(model, template=chat_template and read_template(chat_template))
    except ValueError as error:
        raise UserError(f"--chat-template: {error}", "check the name") from None
    corpus = Corpus.of([found[name]], chat)
    if unknown := unknown_words(corpus, [found[name]], chat):
        console.print(unknown, style="yellow")
    examples = training_examples(corpus[name], chosen, max_length=1 << 30)
    return Text("\n\n").join(render_mask(example, chat, marks=_colourless(output)) for example in examples)
