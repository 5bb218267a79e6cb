"""Text of others (observations, replies, servers' errors): as it may stand on a terminal, and in a table."""

import re

# What moves a terminal's cursor, colours or rewrites it, or turns the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The same with control characters spelt out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def storable(text: str) -> str:
    """The same as UTF-8 can hold it: JSON may carry half a surrogate pair."""
    return text.encode("utf-8", "replace").decode()
