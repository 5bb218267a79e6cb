"""A chat template of the user's choice, for models whose tokenizer brings none or the wrong one.

Flows in: a setting; flows out: Jinja text, which travels with the settings to every process. It is read where the
settings are, and run by transformers' sandbox alone.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "chat_templates"
_MARKS = ("{{", "{%")
TEMPLATES = tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))


def read_template(given: str) -> str:
    """The text of a chat template.

    Args:
        given: A name of `TEMPLATES`, a file, or the text itself.

    Raises:
        ValueError: If it is none of these.
    """
    if any(mark in given for mark in _MARKS):
        return given
    file = _FOLDER / f"{given}.jinja" if given in TEMPLATES else Path(given)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise ValueError(
            f"no chat template: cannot read the file ({why}); built in are {', '.join(TEMPLATES)}"
        ) from None
    if not any(mark in text for mark in _MARKS):
        raise ValueError("no chat template: the file holds no Jinja, such as {{ messages }}")
    return text
