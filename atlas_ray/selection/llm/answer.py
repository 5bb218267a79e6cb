"""What a selector model answered: plan, step numbers, categories, or what is wrong with the answer.

Only the model's reply is read here, never the conversation. Flows in: text; flows out: a `Judgement` or a `Problem`.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest

from atlas_ray.selection.llm.step_list import MENTION, Unreadable, ascii_digits, expand, read_steps
from atlas_ray.types import Category

PARSER_VERSION = 2  # raised with every change that can change what is read; replies kept are then read anew


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
ANSWER = re.compile(r"critical\s+(?:action\s+)?steps?(?:\s+(?:are|is))?[\s*_`\"]*[:\uff1a]", re.IGNORECASE)
_ANSWER_LEAD = re.compile(_LEAD + r"(?:so,? )?(?:the )?", re.IGNORECASE)
_DENIED = re.compile(r"(?:\b(?:non|not|un|less|least|other|no)[\s-]{0,3})$", re.IGNORECASE)
_PLAN = re.compile(r"high[- ]level\s+plan(?:\s+is)?[\s*_`\"]*:", re.IGNORECASE)
_REASON = re.compile(rf"(?:^{_LEAD}|[0-9][.)][ \t*_`\"-]*)reason(?:s|ing)?[ \t*_`\"]*:", re.IGNORECASE | re.MULTILINE)
_THOUGHT = re.compile(r"\s*<think(?:ing)?\s*>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think(?:ing)?\s*>", re.IGNORECASE)
_FROM_ZERO = re.compile(
    r"\b(?:zero|0)[- ]?(?:based|index(?:ed|ing)?)\b|\b(?:steps?|conversation)\s*\[?\s*#?0(?![\w.:/%])"
    r"|\b(?:count|number|index)\w*\s+(?:\w+\s+)?(?:from|at|with)\s+(?:zero|0)\b",
    re.IGNORECASE,
)

_NAMES = {
    Category.PLAN_CREATION: r"plan[-_ ]?creation|planning",
    Category.CRITICAL_OBSERVATION: r"(?:critical|key)[-_ ]?observations?",
    Category.CRITICAL_ACTION: r"(?:critical|pivotal)[-_ ]?actions?",
    Category.SELF_CORRECTION: r"self[-_ ]?corrections?|recall(?:ing)?",
}
_CATEGORY = re.compile("|".join(rf"(?P<{c.name}>\b(?:{names})\b)" for c, names in _NAMES.items()), re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One "The critical steps are:" of a reply; `steps` is a sentence where none can be read."""

    leading: bool
    start: int
    steps: list[int] | str
    listed: str
    reason: str


def parse_answer(text: str, n_steps: int, k: int) -> Judgement | Problem:
    """Reads the answer in a reply (App. D.1's three lines, tolerant of how models write them).

    A reply that could be meant in two ways is a problem: two answers that differ, steps counted from zero, a list
    whose steps are not those that the reason names.

    Args:
        text: The model's whole reply.
        n_steps: |tau|.
        k: Most steps that may be chosen.
    """
    spoken = without_thoughts(text)
    if isinstance(spoken, Problem):
        return spoken
    answer = _agreed(_answers(spoken, ascii_digits(spoken), n_steps))
    if isinstance(answer, Problem):
        return answer
    assert isinstance(answer.steps, list)
    plans = list(_PLAN.finditer(spoken, 0, answer.start))
    plan = _plain(spoken[plans[-1].end() : answer.start]) if plans else None
    categories = _categories(ascii_digits(answer.reason)) | _categories(answer.listed)
    if _FROM_ZERO.search(ascii_digits(spoken)) or _shifted(answer.steps, set(_categories(ascii_digits(answer.reason)))):
        return Problem(f"it is not plain which steps are meant: use the labels [Step 1] to [Step {n_steps}]")

    def judgement(chosen: list[int]) -> Judgement:
        found = {t: categories[t] for t in sorted(chosen) if t in categories}
        return Judgement(tuple(chosen), plan, _plain(answer.reason), found)

    if len(answer.steps) > k:
        what = f"{len(answer.steps)} steps were chosen where at most {k} are allowed"
        return Problem(what, judgement(answer.steps[:k]))
    return judgement(answer.steps)


def without_thoughts(text: str) -> str | Problem:
    """The reply without the thoughts before it."""
    ends = list(_THOUGHT_END.finditer(text))
    if not ends:
        return Problem("the reply ends within its thoughts") if _THOUGHT.match(text) else text
    before = text[: ends[0].start()]
    # Some templates open the thoughts themselves; but the end of thoughts may also be quoted behind an answer.
    if not _THOUGHT.match(text) and any(_leads(before, m) for m in ANSWER.finditer(before)):
        return text
    return Problem("it is not plain where the thoughts end") if len(ends) > 1 else text[ends[0].end() :]


def _answers(spoken: str, digits: str, n_steps: int) -> list[_Answer]:
    """Every answer, leading a line or within one, each with the text up to its reason or the next answer."""
    markers = [m for m in ANSWER.finditer(digits) if not _DENIED.search(digits, max(0, m.start() - 9), m.start())]
    reasons = [m.span() for m in _REASON.finditer(digits)]
    found: list[_Answer] = []
    first: int | None = None  # where the reason behind the first leading answer begins
    for marker, following in zip_longest(markers, markers[1:]):
        leading = _leads(digits, marker)
        if not leading and first is not None and first < marker.start():
            continue  # within a reason: mentioned or quoted, not given
        end = following.start() if following else len(digits)
        if following and _leads(digits, following):
            end = digits.rfind("\n", 0, end) + 1 or end
        place = bisect_left(reasons, (marker.end(), 0))
        start, told = reasons[place] if place < len(reasons) else (len(digits), len(digits))
        first = start if leading and first is None else first
        listed = digits[marker.end() : min(end, start)]
        try:
            steps: list[int] | str = read_steps(listed, n_steps)
        except Unreadable as error:
            steps = str(error)
        line = digits.rfind("\n", 0, marker.start()) + 1
        found.append(_Answer(leading, line if leading else marker.start(), steps, listed, spoken[told:]))
    return found


def _agreed(answers: list[_Answer]) -> _Answer | Problem:
    """The last answer, if all that lead a line and all others that can be read say the same."""
    leading = [a for a in answers if a.leading]
    unreadable = [a.steps for a in leading or answers if isinstance(a.steps, str)]
    readable = [a for a in answers if isinstance(a.steps, list)]
    if not answers:
        return Problem('the line "The critical steps are: conversation[...]" is missing')
    if unreadable and (leading or not readable):
        return Problem(unreadable[-1])
    if any(a.steps != readable[0].steps for a in readable):
        return Problem("two different lists of critical steps are given")
    return (leading or readable)[-1]


def _leads(text: str, marker: re.Match[str]) -> bool:
    return _ANSWER_LEAD.fullmatch(text, text.rfind("\n", 0, marker.start()) + 1, marker.start()) is not None


def _shifted(steps: list[int], named: set[int]) -> bool:
    """Whether the reason names other steps than the list, as where one of them counts from zero."""
    return bool(named) and (named.isdisjoint(steps) or (named != set(steps) and named == {t + 1 for t in steps}))


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
    for mention in MENTION.finditer(text):
        with suppress(Unreadable):
            yield mention.start(), expand([mention.group()], n_steps=9999)


def _plain(text: str) -> str | None:
    """Without surrounding emphasis and one pair of brackets; None where nothing is left."""
    text = text.strip(" \t\r\n*_`")
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].strip()
    return text or None
