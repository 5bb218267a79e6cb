"""Whether an environment repeats itself: a recorded answer against the one that comes when its action is played again.

Flows in: two texts and a tolerance; flows out: a `Replay`, and counts of starts by it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from atlas_ray.types import Replay

_WORDS = re.compile(r"-?\d+(?:\.\d+)?|\w+")
_DECIMAL = re.compile(r"-?\d+\.\d+")
_CLOSE, _CLOSE_SHARE = 0.5, 0.05  # decimals that differ by no more than either are the same measurement
_ORDER: tuple[Replay, ...] = ("exact", "near", "differs")


def compare(recorded: str, told: str, tolerance: float) -> Replay:
    """How an answer compares with the recorded one.

    Args:
        recorded: The text of old.
        told: The text that comes now.
        tolerance: Share of words and numbers that may differ; 0: none, nor their order in a line.
    """
    if same_answer(recorded, told):
        return "exact"
    return "near" if tolerance > 0 and difference(recorded, told) <= tolerance else "differs"


def same_answer(one: str, other: str) -> bool:
    """Whether two observations agree but for the order of lines: some servers list things in another one each time."""
    return _lines(one) == _lines(other)


def difference(one: str, other: str) -> float:
    """Share of the words and numbers of the longer text that the other lacks, wherever they stand.

    Decimals that are within 0.5 or 5 % of each other count as one: a live service measures anew.
    """
    ours, theirs = (Counter(_WORDS.findall(text)) for text in (one, other))
    most = max(ours.total(), theirs.total())
    alone, alone_there = ours - theirs, theirs - ours
    close = _matched(*([float(w) for w in found.elements() if _DECIMAL.fullmatch(w)] for found in (alone, alone_there)))
    return (max(alone.total(), alone_there.total()) - close) / most if most else 0.0


def _matched(ours: Sequence[float], theirs: Sequence[float]) -> int:
    """How many pairs of close numbers can be made, in their order."""
    left, count = sorted(theirs, reverse=True), 0
    for number in sorted(ours):
        while left and left[-1] < number and not _is_close(left[-1], number):
            left.pop()
        if left and _is_close(left[-1], number):
            left.pop()
            count += 1
    return count


def _is_close(one: float, other: float) -> bool:
    return abs(one - other) <= max(_CLOSE, _CLOSE_SHARE * max(abs(one), abs(other)))


def _lines(text: str) -> list[str]:
    return sorted(line.strip() for line in text.splitlines() if line.strip())


def worst(*found: Replay | None) -> Replay | None:
    """The worst of several; None where nothing was compared."""
    return max((one for one in found if one is not None), key=_ORDER.index, default=None)


def count_starts(found: Iterable[tuple[Hashable, Replay | None]]) -> dict[str, int]:
    """Starts by how they replay, each by its worst episode; those with nothing to compare are left out.

    Args:
        found: A start and how one of its episodes replayed.
    """
    starts: dict[Hashable, Replay | None] = {}
    for start, replay in found:
        starts[start] = worst(starts.get(start), replay)
    counts = Counter(replay for replay in starts.values() if replay is not None)
    return {replay: counts[replay] for replay in _ORDER} if counts else {}


def replay_words(counts: Mapping[str, int]) -> str:
    """Such counts in words, e.g. "12 of 15 starts replay, 2 of them nearly"."""
    near = counts.get("near", 0)
    nearly = f", {near} of them nearly" if near else ""
    return f"{counts.get('exact', 0) + near} of {sum(counts.values())} starts replay{nearly}"
