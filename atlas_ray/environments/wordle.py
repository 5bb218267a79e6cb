"""Wordle: find the hidden word of a small vocabulary in six guesses, in AgentGym's manner.

Guesses are spelled ("c r a n e"); the answer is a colour per letter: g in place, y elsewhere in the word, b absent.
A task is a vocabulary, shown in the first observation, and the hidden word in it.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

from atlas_ray.environments.protocol import Decision, Opening, StepResult
from atlas_ray.environments.tasks import pick
from atlas_ray.types import Category

INSTRUCTION = (
    "You guess a hidden word of the list, letter by letter. Each letter gets g in place, y elsewhere, b not in the "
    "word. Answer with a Thought: line and an Action: line."
)

# In the order in which they are listed and tried: early words share letters with many others.
BANK = (
    *("arise", "crane", "stone", "diner", "heart", "tiger", "plane", "bread", "lemon", "river", "grape", "water"),
    *("ocean", "night", "flame", "under", "earth", "mango", "jelly", "voice", "knife", "young", "quiet", "zebra"),
)
SHOWN = 14
GUESSES = 6
COUNT = 600

_SAY = {
    Category.PLAN_CREATION: ("I start with a word of many letters.", "The plan is to start with this word."),
    Category.CRITICAL_OBSERVATION: (
        "The letters {known} are in the word.",
        "I see that {known} are in the word.",
    ),
    Category.CRITICAL_ACTION: ("From here {n} words can be right.", "Now {n} words are left."),
    Category.SELF_CORRECTION: ("That was wrong in all letters.", "I went wrong, no letter is in the word."),
    None: ("I go on with this word.", "The next word can be right."),
}


def vocabulary_text(words: Sequence[str]) -> str:
    """The first observation for a vocabulary of whole words."""
    return "Words: " + ", ".join(map(_spell, words)) + "."


def feedback(guess: str, hidden: str) -> str:
    """Colours of a guess, e.g. "b y b b g"; a letter is yellow only as often as the hidden word still has it."""
    left = [h for g, h in zip(guess, hidden, strict=True) if g != h]
    colours = []
    for g, h in zip(guess, hidden, strict=True):
        if g == h:
            colours.append("g")
        elif g in left:
            left.remove(g)
            colours.append("y")
        else:
            colours.append("b")
    return " ".join(colours)


def _spell(word: str) -> str:
    return " ".join(word)


@functools.cache
def tasks() -> tuple[tuple[tuple[str, ...], str], ...]:
    """(vocabulary in the bank's order, hidden word) per task; all vocabularies differ."""
    rng, found = random.Random("wordle"), dict[tuple[str, ...], str]()
    while len(found) < COUNT:
        chosen = set(rng.sample(BANK, SHOWN))
        found.setdefault(tuple(word for word in BANK if word in chosen), rng.choice(sorted(chosen)))
    return tuple(found.items())


class Wordle:
    """The simulator: reward 1 and done when solved; done after six guesses, invalid ones included."""

    def __init__(self) -> None:
        self.vocabulary: list[str] = []

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        words, self._hidden = pick(tasks(), index, "wordle")
        self.vocabulary = list(words)
        self._seen: list[tuple[str, str]] = []
        self._guesses = 0
        self._end: StepResult | None = None
        return Opening(INSTRUCTION, vocabulary_text(words))

    def step(self, action: str) -> StepResult:
        """Plays a guess, spelled or whole."""
        if self._end:
            return self._end
        self._guesses += 1
        guess = "".join(action.split()).lower()
        text = "invalid word"
        if guess in self.vocabulary:
            text = feedback(guess, self._hidden)
            self._seen.append((guess, text))
        solved = guess == self._hidden
        result = StepResult(text, float(solved), solved or self._guesses >= GUESSES)
        self._end = result if result.done else None
        return result

    def expert(self, rng: random.Random) -> Decision:
        """Guesses the first listed word that fits all answers so far."""
        return self._decide(rng, self._fitting()[0])

    def novice(self, rng: random.Random) -> Decision:
        """Mostly guesses any listed word, again and again, where the answers should have decided."""
        fitting = self._fitting()
        right = self._decide(rng, fitting[0])
        if right.category is None or rng.random() >= 0.75:
            return right
        return self._decide(rng, rng.choice(self.vocabulary))

    def _fitting(self) -> list[str]:
        """The listed words that every answer so far allows; the hidden word is always among them."""
        return [w for w in self.vocabulary if all(feedback(guess, w) == colours for guess, colours in self._seen)]

    def _situation(self) -> Category | None:
        """The category of the guess that is due, if it is a decision."""
        if not self._seen:
            return Category.PLAN_CREATION
        colours = [colours for _, colours in self._seen]
        if set(colours[-1]) <= {"b", " "}:
            return Category.SELF_CORRECTION
        if all(set(earlier) <= {"b", " "} for earlier in colours[:-1]):
            return Category.CRITICAL_OBSERVATION
        return Category.CRITICAL_ACTION if len(self._fitting()) > 1 else None

    def _decide(self, rng: random.Random, guess: str) -> Decision:
        category = self._situation()
        known = sorted({g for word, colours in self._seen for g, c in zip(word, colours.split(), strict=True) if c != "b"})
        n = len(self._fitting())
        thought = rng.choice(_SAY[category]).format(known=" and ".join(known), n=n if n < 10 else "many")
        return Decision(thought, _spell(guess), category, rng.random())
