"""What a selector model answered: plan, step numbers, categories, or what is wrong with the answer.

Only the model's reply is read here, never the conversation. Flows in: text; flows out: a `Judgement` or a `Problem`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from atlas_ray.types import Category

PARSER_VERSION = 1  # raised with every change that can change what is read; replies kept are then read anew


@dataclass(frozen=True, slots=True)
class Judgement:
    """A usable answer.

    Attributes:
        steps: Chosen steps from 1, without repeats, in the reply's order.
        categories: Category by chosen step, where the reply names one.
    """

    steps: tuple[int, ...]
    plan: str | None = None
    reason: str | None = None
    categories: Mapping[int, Category] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """An answer that breaks the rules.

    Attributes:
        what: What is wrong, in words for the model and for people.
        judgement: The answer cut to the budget, where too many steps are all that is wrong.
    """

    what: str
    judgement: Judgement | None = None


# No pattern may have two unbounded runs side by side: replies can be long runs of anything.
_LEAD = r"[ \t>#*_`\"-]*(?:[0-9]+[.)][ \t*_`\"-]*)?"
_ANSWER = re.compile(r"critical\s+(?:action\s+)?steps?(?:\s+(?:are|is))?[\s*_`\"]*:", re.IGNORECASE)
_ANSWER_LEAD = re.compile(_LEAD + r"(?:so,? )?(?:the )?", re.IGNORECASE)
_PLAN = re.compile(r"high[- ]level\s+plan(?:\s+is)?[\s*_`\"]*:", re.IGNORECASE)
_REASON = re.compile(rf"^{_LEAD}reason(?:s|ing)?[ \t*_`\"]*:", re.IGNORECASE | re.MULTILINE)

_NUMBER = r"#?[0-9]{1,9}(?![0-9]|\.[0-9])"
_DASH = "(?:-|\u2013|\u2014|\\.\\.+|\\bto\\b|\\bthrough\\b)"
_ITEM = rf"(?:steps?\s*)?{_NUMBER}(?:\s*{_DASH}\s*(?:steps?\s*)?{_NUMBER})?"
_LIST = re.compile(rf"{_ITEM}(?:(?:\s*(?:[,;&/]|\band\b))*\s*{_ITEM})*", re.IGNORECASE)
_RANGE = re.compile(rf"({_NUMBER})(?:\s*{_DASH}\s*(?:steps?\s*)?({_NUMBER}))?", re.IGNORECASE)
_MENTION = re.compile(rf"\bsteps?\s*{_LIST.pattern}", re.IGNORECASE)
_LINE_MENTION = re.compile(rf"{_LEAD}({_MENTION.pattern})", re.IGNORECASE)
_CONVERSATION = re.compile(r"conversation\s*\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", re.IGNORECASE)
_BETWEEN = re.compile(r"[ \t]*(?:[,;&]\s*)?(?:and\s*)?")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")

_NAMES = {
    Category.PLAN_CREATION: r"plan[-_ ]?creation|planning",
    Category.CRITICAL_OBSERVATION: r"(?:critical|key)[-_ ]?observations?",
    Category.CRITICAL_ACTION: r"(?:critical|pivotal)[-_ ]?actions?",
    Category.SELF_CORRECTION: r"self[-_ ]?corrections?|recall(?:ing)?",
}
_CATEGORY = re.compile("|".join(rf"(?P<{c.name}>\b(?:{names})\b)" for c, names in _NAMES.items()), re.IGNORECASE)


def parse_answer(text: str, n_steps: int, k: int) -> Judgement | Problem:
    """Reads the last answer in a reply (App. D.1's three lines, tolerant of how models write them).

    Args:
        text: The model's whole reply.
        n_steps: |tau|.
        k: Most steps that may be chosen.
    """
    text = text.rsplit("</think>", 1)[-1]
    place = _last_answer(text)
    if place is None:
        return Problem('the line "The critical steps are: conversation[...]" is missing')
    before, after = text[: place[0]], text[place[1] :]
    reasoned = _REASON.search(after)
    listed = after[: reasoned.start()] if reasoned else after
    reason = _plain(after[reasoned.end() :]) if reasoned else None
    steps = _steps(listed, n_steps)
    if isinstance(steps, Problem):
        return steps
    plans = list(_PLAN.finditer(before))
    plan = _plain(before[plans[-1].end() :]) if plans else None
    categories = _categories(reason or "") | _categories(listed)

    def judgement(chosen: list[int]) -> Judgement:
        return Judgement(tuple(chosen), plan, reason, {t: categories[t] for t in sorted(chosen) if t in categories})

    if len(steps) > k:
        return Problem(f"{len(steps)} steps were chosen where at most {k} are allowed", judgement(steps[:k]))
    return judgement(steps)


def _last_answer(text: str) -> tuple[int, int] | None:
    """Where the last "The critical steps are:" begins and ends; one that opens a line goes before one within it."""
    anywhere = leading = None
    for marker in _ANSWER.finditer(text):
        line = text.rfind("\n", 0, marker.start()) + 1
        if _ANSWER_LEAD.fullmatch(text, line, marker.start()):
            leading = (line, marker.end())
        anywhere = marker.span()
    return leading or anywhere


def _steps(listed: str, n_steps: int) -> list[int] | Problem:
    """Distinct steps in the order given, of the text between the marker and the reason."""
    lines = [line for line in listed.splitlines() if _strip(line)] or [""]
    lists = _conversation_lists(listed) or _BRACKET.findall(lines[0]) or [lines[0]]
    stripped = [text for text in map(_strip, lists) if text]
    if not stripped:
        return Problem("the list of critical steps is empty")
    if all(_LIST.fullmatch(text) for text in stripped):
        return _expand(stripped, n_steps)
    # Prose around the numbers: only those called steps count, in a list of lines the one that opens each line.
    if lists != [lines[0]]:
        mentions = [m.group() for text in stripped for m in _MENTION.finditer(text)]
    elif len(lines) > 1:
        mentions = [m[1] for line in lines if (m := _LINE_MENTION.match(_strip(line)))]
    else:
        mentions = _MENTION.findall(stripped[0])
    if not mentions:
        return Problem("the critical steps are not given as a list of step numbers, such as conversation[2, 5]")
    return _expand(mentions, n_steps)


def _conversation_lists(listed: str) -> list[str]:
    """What stands in `conversation[...]`, several only where they follow each other directly."""
    lists: list[str] = []
    end = 0
    for found in _CONVERSATION.finditer(listed):
        if lists and not _BETWEEN.fullmatch(listed, end, found.start()):
            break
        lists.append(found[1])
        end = found.end()
    return lists


def _expand(lists: list[str], n_steps: int) -> list[int] | Problem:
    """The numbers of lists such as "2, 5-7 and step 9", without repeats."""
    steps: dict[int, None] = {}
    for first, last in (found for text in lists for found in _RANGE.findall(text)):
        start, end = int(first.strip("#")), int((last or first).strip("#"))
        if not 1 <= start <= end <= n_steps:
            shown = start if start == end else f"{start}-{end}"
            return Problem(f"step {shown} does not exist: the steps are 1 to {n_steps}")
        steps |= dict.fromkeys(range(start, end + 1))
    return list(steps)


def _categories(text: str) -> dict[int, Category]:
    """Category by step: lines that start with a step say it best, then reading order in the whole text."""
    found: dict[int, Category] = {}
    for part in [*text.splitlines(), text]:
        tokens = [token for _, token in sorted(_tokens(part), key=lambda token: token[0])]
        if tokens and (part is text or isinstance(tokens[0], list)):
            found = _paired(tokens) | found
    return found


def _paired(tokens: list[Category | list[int]]) -> dict[int, Category]:
    """Steps with the category right behind them ("Step 3 (Critical Action)"), or before if a category comes first."""
    found: dict[int, Category] = {}
    step_first = isinstance(tokens[0], list)
    categories: list[Category | list[int] | None] = [*tokens[1:], None] if step_first else [*_latest(tokens)]
    for steps, category in zip(tokens, categories, strict=True):
        if isinstance(steps, list) and isinstance(category, Category):
            found |= {t: category for t in steps if t not in found}
    return found


def _latest(tokens: list[Category | list[int]]) -> Iterator[Category | None]:
    """At each token the last category up to it."""
    current = None
    for token in tokens:
        current = token if isinstance(token, Category) else current
        yield current


def _tokens(text: str) -> Iterator[tuple[int, Category | list[int]]]:
    for name in _CATEGORY.finditer(text):
        yield name.start(), Category[str(name.lastgroup)]
    for mention in _MENTION.finditer(text):
        steps = _expand([mention.group()], n_steps=9999)
        if isinstance(steps, list):
            yield mention.start(), steps


def _strip(text: str) -> str:
    """Without what surrounds a list: brackets, quotes, emphasis, a full stop."""
    return re.sub(r"[\[\](){}*_`\"']|\bconversation\b", "", text).strip(" \t\r\n.:,;")


def _plain(text: str) -> str | None:
    """Without surrounding emphasis and one pair of brackets; None where nothing is left."""
    text = text.strip(" \t\r\n*_`")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    return text or None
