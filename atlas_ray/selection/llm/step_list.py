"""The step numbers behind "The critical steps are:", in the many ways in which models write them.

Read strictly: what could be meant in two ways is refused, for a wrong step is worse than one more question. Flows in:
text; flows out: distinct steps in the order given.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# No pattern may have two unbounded runs side by side: replies can be long runs of anything.
_NUMBER = r"#?[0-9]{1,9}(?!\w|[.:/][0-9]|\s?%|\s?/\s?[0-9])"
_DASH = "(?:[-\u2010-\u2015]|\\.\\.+|\u2026|\\bto\\b|\\bthrough\\b)"
_SPAN = rf"{_NUMBER}(?:(?:\s{_DASH}\s|{_DASH})(?:steps?\s?)?{_NUMBER})?"
_ITEM = rf"(?:steps?\s?)?{_SPAN}"
_COMMA = "(?:\\s?(?:[,;&\uff0c\u3001\uff1b]\\s?(?:and\\s)?|\\band\\b\\s?))"
_WRAPPED = rf"[\[(]?\s?{_ITEM}\s?[\])]?"
_SERIES = re.compile(rf"{_WRAPPED}(?:{_COMMA}{_WRAPPED})*|{_ITEM}(?:\s{_ITEM})+", re.IGNORECASE)
_RANGE = re.compile(rf"({_NUMBER})(?:\s?{_DASH}\s?(?:steps?\s?)?({_NUMBER}))?", re.IGNORECASE)
MENTION = re.compile(rf"\bsteps?\s*{_SPAN}(?:{_COMMA}{_ITEM})*", re.IGNORECASE)

_CONVERSATION = re.compile(r"conversation\s*\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", re.IGNORECASE)
_BRACKET = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]")
_BEFORE = re.compile(r"[\s>*_`\"'-]*")
_BETWEEN = re.compile("[ \\t]*(?:[,;&\uff0c\u3001\uff1b]\\s*)?(?:and\\s*)?")
_MORE = re.compile(
    r"(?:[^\w.(]|_)*(?:(?:and|or|to|through|conversation|steps?)\b(?:[^\w.(]|_)*){0,4}[0-9]", re.IGNORECASE
)
_TAKEN_BACK = re.compile(r"\b(?:except|excluding|without|not|minus|other than|apart from)\b", re.IGNORECASE)
_DOTS = re.compile(r"[0-9]\.\.+[0-9]")
_FENCE = re.compile(r"^[ \t]*```\w*[ \t]*$", re.MULTILINE)
_EMPHASIS = re.compile("(?<![0-9A-Za-z])[*_`\"'\u2018-\u201d]+|[*_`\"'\u2018-\u201d]+(?![0-9A-Za-z])")
_LABEL = re.compile(rf"((?:steps?\s?)?)({_SPAN})(?:\s?[:\u2013\u2014-]\s?(?P<said>[^0-9#].*))?", re.IGNORECASE)
_LINE = re.compile(r"([ \t]*)((?:[-*+\u2022>]|[0-9]{1,3}[.)])(?=\s))?[ \t]*(.*)")
_LINE_LABEL = re.compile(
    rf"(steps?\s?{_SPAN}(?:{_COMMA}{_ITEM})*)(?:\s?$|\s?[:(|\u2013\u2014-]\s?(?![0-9]))", re.IGNORECASE
)

_BEGINS_A_STEP = re.compile(r"[ \t]*(?:[-*+\u2022>]\s|[*_`\"'\[#]{0,9}(?:steps?\b|[0-9]))", re.IGNORECASE)

_NO_LIST = "the critical steps are not given as a list of step numbers, such as conversation[2, 5]"


class Unreadable(ValueError):
    """No list of steps, or one that could be meant otherwise; the message says what is wrong."""


def ascii_digits(text: str) -> str:
    """Decimal digits of any script as 0 to 9, character by character; superscripts and fractions stay as they are."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def read_steps(listed: str, n_steps: int) -> list[int]:
    """Distinct steps in the order given.

    Args:
        listed: What stands between the marker and the reason.
        n_steps: |tau|.

    Raises:
        Unreadable: If it is no list of existing steps, or not plainly one.
    """
    text = _FENCE.sub("", listed)
    lists = _bracketed(text)
    if lists is None:
        if _DOTS.search(text):
            raise Unreadable("dots between numbers that stand in no brackets may be a range, or end a sentence")
        return expand(_lines(text), n_steps)
    if not any(map(_bare, lists)):
        raise Unreadable("the list of critical steps is empty")
    return expand([part for content in lists for part in _content(content)], n_steps)


def expand(lists: list[str], n_steps: int) -> list[int]:
    """The numbers of lists such as "2, 5-7 and step 9", without repeats.

    Raises:
        Unreadable: If a step does not exist.
    """
    steps: dict[int, None] = {}
    for first, last in (found for text in lists for found in _RANGE.findall(text)):
        start, end = int(first.strip("#")), int((last or first).strip("#"))
        if not 1 <= start <= end <= n_steps:
            shown = start if start == end else f"{start}-{end}"
            raise Unreadable(f"step {shown} does not exist: the steps are 1 to {n_steps}")
        steps |= dict.fromkeys(range(start, end + 1))
    return list(steps)


def _bracketed(text: str) -> list[str] | None:
    """What stands in `conversation[...]` or `[...]` right at the start, several only where they follow each other."""
    begin = _BEFORE.match(text)
    start = begin.end() if begin else 0
    pattern = _CONVERSATION if text[start : start + 12].lower() == "conversation" else _BRACKET
    lists: list[str] = []
    while found := pattern.match(text, start):
        lists.append(found[1])
        end = found.end()
        between = _BETWEEN.match(text, end)
        start = between.end() if between else end
        if start == end:
            break  # nothing between: `[3][7]` says nothing plainly
    if not lists:
        return None
    rest = text[end:].split("\n", 1)[0]
    if _MORE.match(rest) or _TAKEN_BACK.search(rest) or (len(lists) > 1 and _bare(rest)):
        raise Unreadable("more stands behind the list of critical steps, which is then not plain")
    return lists


def _content(text: str) -> list[str]:
    """A list of numbers, or of labels such as "Step 3: plan the way, Step 7: open it"."""
    bare = _bare(text)
    if not bare:
        return []
    if _SERIES.fullmatch(bare):
        return [bare]
    plain = _bare(_without_asides(bare))
    return [plain] if _SERIES.fullmatch(plain) else _labels(plain)


def _lines(text: str) -> list[str]:
    """The list on the marker's own line, or one step or list a line below it."""
    lines = text.split("\n")
    if inline := _bare(re.sub(r"^[\s*_`\"']*conversation\b", "", lines[0], flags=re.IGNORECASE)):
        found = _content(inline)
        following = next((line for line in lines[1:] if line.strip()), "")
        if _item(following) is not None:
            raise Unreadable("the list of critical steps goes on in further lines, which is not plain")
        return found
    return list(_items([line for line in lines if _bare(line)]))


def _items(lines: list[str]) -> Iterator[str]:
    """The steps of lines that begin with them; what is indented below a line explains it."""
    if not lines:
        raise Unreadable("the list of critical steps is empty")
    first = _item(lines[0])
    if first is None:
        raise Unreadable(_NO_LIST)
    ended, number = False, 0
    for line in lines:
        item, indent = _item(line), len(line) - len(line.lstrip())
        if item is None:
            if indent <= len(first[0]) and _BEGINS_A_STEP.match(line):
                raise Unreadable("not every line with critical steps can be read")
            ended |= indent <= len(first[0])
            continue
        number += 1
        numbered = first[1][:1].isdigit()
        alike = item[0] == first[0] and (item[1] == (f"{number}{first[1][-1]}" if numbered else first[1]))
        if ended or not alike:
            raise Unreadable("the lines with critical steps are not plainly one list")
        yield item[2]


def _item(line: str) -> tuple[str, str, str] | None:
    """A line's indentation, bullet or number, and the steps that it begins with; None where it begins with none."""
    found = _LINE.fullmatch(line.rstrip())
    assert found is not None
    body = _plain(found[3])
    label = _LINE_LABEL.match(body)
    steps = label[1] if label else body if _SERIES.fullmatch(body) else None
    return None if steps is None else (found[1], found[2] or "", steps)


def _labels(text: str) -> list[str]:
    """Steps of "Step 3: plan the way, Step 7 (...)"; all labels must be of one kind.

    Raises:
        Unreadable: Where it is not plain which numbers are labels.
    """
    kinds: set[tuple[bool, bool]] = set()
    found: list[str] = []
    for piece in re.split(r"[,;]", text):
        part = re.sub(r"^and\s", "", piece.strip(), flags=re.IGNORECASE)
        label = _LABEL.fullmatch(part.rstrip(". "))
        if label:
            kinds.add((bool(label[1]), label["said"] is not None))
            found.append(label[2])
        elif not kinds or not all(explained for _, explained in kinds) or re.match(r"#?[0-9]|steps?\b", part, re.I):
            raise Unreadable(_NO_LIST)
    if len(kinds) != 1:
        raise Unreadable(_NO_LIST)
    return found


def _without_asides(text: str) -> str:
    """Without what stands in round brackets."""
    depth, kept = 0, []
    for character in text:
        depth += character == "("
        if depth == 0:
            kept.append(character)
        depth -= character == ")"
        if depth < 0:
            break
    if depth:
        raise Unreadable(_NO_LIST)
    return " ".join("".join(kept).split())


def _plain(text: str) -> str:
    """Without emphasis and quotes, white space made single."""
    return " ".join(_EMPHASIS.sub(" ", text).split())


def _bare(text: str) -> str:
    """Without emphasis, white space made single, one pair of enclosing brackets and closing punctuation off."""
    text = _plain(text).strip(" .:,;")
    if len(text) > 1 and text[0] + text[-1] in ("[]", "()", "{}") and not re.search(r"[\[\](){}]", text[1:-1]):
        text = text[1:-1].strip(" .:,;")
    return text
