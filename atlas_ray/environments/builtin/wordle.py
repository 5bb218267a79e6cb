"""Wordle: find the hidden word of a small vocabulary in six guesses, in AgentGym's manner.

Guesses are spelled ("c r a n e"); the answer is a colour per letter: g in place, y elsewhere in the word, b absent.
A task is a vocabulary, shown in the first observation, and the hidden word in it.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace

from atlas_ray.environments.builtin.scripted import any_category, habitual, task_at
from atlas_ray.environments.http.dialects import Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

INSTRUCTION = (
    "You guess a hidden word of the list, letter by letter. Each letter gets g in place, y elsewhere, b not in the "
    "word. Answer with a Thought: line and an Action: line."
)

# Families that differ in the first letter alone, so that a guess tells first the family and then the letter.
FAMILIES = (
    ("light", "night", "right", "sight", "might", "fight", "tight", "eight"),
    ("sound", "round", "found", "bound", "hound", "mound", "pound", "wound"),
    ("catch", "match", "patch", "watch", "hatch", "latch", "batch"),
    ("hills", "bills", "fills", "pills", "mills", "wills", "kills", "tills"),
)
SHOWN = (6, 5)  # words of a task's two families: who opens with the larger always solves it in time
GUESSES = 6
FEW = 3  # fitting words, up to which going on decides nothing
COUNT = 600

_SAY = {
    Category.PLAN_CREATION: ("I start with this word.", "The plan is to start with this word."),
    Category.CRITICAL_OBSERVATION: ("I see {known} in the word.", "The letters {known} are in the word."),
    Category.CRITICAL_ACTION: ("Many words are left, so I go on here.", "I can still choose, so I go on here."),
    Category.SELF_CORRECTION: ("That was wrong, I need another word.", "I went wrong and have to go on."),
    None: ("I go on with this word.", "The next word can be right."),
}


def vocabulary_text(words: Sequence[str]) -> str:
    """The first observation for a vocabulary of whole words."""
    return "Words: " + ", ".join(map(_spell, words)) + "."


def vocabulary_lines(text: str) -> str:
    """The words of such a first observation as they were given, one a line; any other text as it is."""
    if not (text.startswith("Words: ") and text.endswith(".")):
        return text
    return "\n".join(spelt[::2] for spelt in text[len("Words: ") : -1].split(", "))


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
    """(vocabulary, hidden word) per task; all vocabularies differ."""
    rng, found = random.Random("wordle"), dict[tuple[str, ...], str]()
    while len(found) < COUNT:
        pair = zip(rng.sample(FAMILIES, 2), rng.sample(SHOWN, 2), strict=True)
        words = tuple(word for family, n in pair for word in rng.sample(family, n))
        found.setdefault(words, rng.choice(words))
    return tuple(found.items())


class Wordle:
    """The simulator: reward 1 and done when solved; done after six guesses, invalid ones included."""

    def __init__(self) -> None:
        # AgentGym's client asks once, before any task, and shows that in front of each
        self.vocabulary = [word for family in FAMILIES for word in family]

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        words, self._hidden = task_at(tasks(), index, "wordle")
        self.vocabulary = list(words)
        self._seen: list[tuple[str, str]] = []
        self._guesses, self._wasted = 0, 0
        self._lost = False
        self._end: StepResult | None = None
        return Opening(INSTRUCTION, vocabulary_text(words))

    def step(self, action: str) -> StepResult:
        """Plays a guess, spelled or whole."""
        if self._end:
            return self._end
        guess = "".join(action.split()).lower()
        self._guesses += 1
        self._lost = guess not in self._fitting()
        self._wasted += self._lost
        text = "invalid word"
        if guess in self.vocabulary:
            text = feedback(guess, self._hidden)
            self._seen.append((guess, text))
        solved = guess == self._hidden
        result = StepResult(text, float(solved), solved or self._guesses >= GUESSES)
        self._end = result if result.done else None
        return result

    def expert(self, rng: random.Random) -> Decision:
        """Guesses a word that fits all answers; in some episodes forgets them once, with time to spare."""
        category, right = self._situation()
        spare = GUESSES - self._guesses - len(self._fitting())
        if self._seen and spare > 0 and not self._wasted and rng.random() < 0.1:
            return self._decide(rng, self._seen[-1][0], None)
        return self._decide(rng, right, category)

    def detour(self, rng: random.Random, share: float) -> Decision | None:
        """The guess before once more, where there is time to spare; never two in a row."""
        spare = GUESSES - self._guesses - len(self._fitting())
        if not self._seen or self._lost or spare < 1 or not habitual(rng, share, 1, *self._seen[-1]):
            return None
        return self._decide(rng, self._seen[-1][0], None)

    def novice(self, rng: random.Random) -> Decision:
        """Finishes well once few words are left, but mostly guesses again or anyhow where an answer has to be read."""
        category, guess = self._situation()
        if category is not None and rng.random() < 0.9:
            guess = self._seen[-1][0] if self._seen and rng.random() < 0.7 else rng.choice(self.vocabulary)
        return replace(self._decide(rng, guess, category), thought=self._say(rng, any_category(rng, category)))

    def _fitting(self) -> list[str]:
        """The listed words that every answer so far allows; the hidden word is always among them."""
        return [w for w in self.vocabulary if all(feedback(guess, w) == colours for guess, colours in self._seen)]

    def _situation(self) -> tuple[Category | None, str]:
        """The category of the guess that is due, if it is a decision, and the right guess: the first that fits.

        The first guess comes from the larger family, and so is a decision where that is not listed first. Going on
        when only a few words are left is none.
        """
        fitting = self._fitting()
        if self._lost:
            return Category.SELF_CORRECTION, fitting[0]
        if not self._seen:
            endings = [word[1:] for word in self.vocabulary]
            opener = max(self.vocabulary, key=lambda word: endings.count(word[1:]))
            return (None if opener == fitting[0] else Category.PLAN_CREATION), opener
        blank = [set(colours) <= {"b", " "} for _, colours in self._seen]
        if blank[-1]:
            return Category.SELF_CORRECTION, fitting[0]
        if all(blank[:-1]) and len(fitting) > 1:
            return Category.CRITICAL_OBSERVATION, fitting[0]
        return (Category.CRITICAL_ACTION if len(fitting) > FEW else None), fitting[0]

    def _decide(self, rng: random.Random, guess: str, category: Category | None) -> Decision:
        return Decision(self._say(rng, category), _spell(guess), category, rng.random())

    def _say(self, rng: random.Random, category: Category | None) -> str:
        known = {g for word, colours in self._seen for g, c in zip(word, colours.split(), strict=True) if c != "b"}
        return rng.choice(_SAY[category]).format(known=" ".join(sorted(known)) or "none")


SPEC = EnvironmentSpec(
    *("wordle", "in", 8, "success", "first"),
    instruction=INSTRUCTION,
    simulator=Wordle,
    quick=True,
    n_train=500,
    n_test=100,
    # the hidden word stays hidden; AgentGym shows every task the same words
    names_task=r"Words: .*",
    plain=vocabulary_lines,
    dialect=Dialect(
        prefixed=True,
        index_key="seed",
        reset_fields=("id", "observation"),
        opening="vocabulary",
        compose=vocabulary_text,
        closes=False,
    ),
    agentgym="lmrlgym",
)
