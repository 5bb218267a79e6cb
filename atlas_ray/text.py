"""Text of others (observations, replies, servers' errors): as it may stand on a terminal, in a table, or be played."""

import re

# What moves a terminal's cursor, colours or rewrites it, or turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_THOUGHT = re.compile(r"<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think(?:ing)?>", re.IGNORECASE)


def printable(text: str) -> str:
    """The same with control characters spelt out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def storable(text: str) -> str:
    """The same as UTF-8 can hold it: JSON may carry half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def split_thoughts(reply: str) -> tuple[str, str]:
    """Splits what a model thinks, in `<think>`, from what it says.

    A thought without an end takes the rest of the reply; one without a beginning was begun by the prompt. What thinks
    nothing is left as it is.
    """
    if "<" not in reply:  # at every turn, so the usual case is quick
        return "", reply
    *begun, said = _THOUGHT_END.split(_THOUGHT.sub("", reply))
    thoughts = [*_THOUGHT.findall(reply), *begun]
    return "\n".join(filter(None, map(str.strip, thoughts))), said.lstrip() if thoughts else said
