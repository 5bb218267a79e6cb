"""The shortest ways to win in environments that others have made, as actions."""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import gymnasium

from atlas_ray.environments.foreign.textarena import Game
from tests.support.toy_text import ACTIONS

S = TypeVar("S", bound=Hashable)

HANOI = ["[A C]", "[A B]", "[C B]", "[A C]", "[B A]", "[B C]", "[A C]"]
_MOVES = {"[up]": (-1, 0), "[down]": (1, 0), "[left]": (0, -1), "[right]": (0, 1)}


def mastermind(seed: int) -> list[str]:
    """Guesses that agree with all that was told, the first in order each time, until the code is found."""
    game, guesses, left = Game("Mastermind-v0"), list[str](), list(itertools.permutations("123456", 4))
    game.reset(seed)
    while True:
        guess = left[0]
        guesses.append(f"[{' '.join(guess)}]")
        result = game.step(guesses[-1])
        if result.done:
            return guesses
        told = re.search(r"(\d) black peg\(s\), (\d) white", result.observation)
        assert told is not None
        left = [code for code in left if _pegs(guess, code) == (int(told[1]), int(told[2]))]


def _pegs(guess: tuple[str, ...], code: tuple[str, ...]) -> tuple[int, int]:
    black = sum(a == b for a, b in zip(guess, code, strict=True))
    return black, len({*guess} & {*code}) - black


def frozen_lake(seed: int) -> list[str]:
    """Around the holes of the board that is told first."""
    told = Game("FrozenLake-v0").reset(seed).observation
    board = [row.strip("|").split("|") for row in re.findall(r"^\|.*\|$", told, re.MULTILINE)]
    cells = {(r, c): cell.strip() for r, row in enumerate(board) for c, cell in enumerate(row)}

    def onward(at: tuple[int, int]) -> Iterable[tuple[str, tuple[int, int]]]:
        to = ((move, (at[0] + down, at[1] + right)) for move, (down, right) in _MOVES.items())
        return [(move, cell) for move, cell in to if cells.get(cell, "H") != "H"]

    return _shortest((0, 0), onward, lambda cell: cells[cell] == "G")


def taxi(seed: int) -> list[str]:
    """By the environment's own table of what each action does."""
    made = gymnasium.make("Taxi-v4")
    state, _ = made.reset(seed=seed)
    table = made.unwrapped.P  # type: ignore[attr-defined]

    def onward(at: tuple[int, bool]) -> Iterable[tuple[str, tuple[int, bool]]]:
        return [(ACTIONS[number], (to, done)) for number, [(_, to, _, done)] in table[at[0]].items()]

    return _shortest((int(state), False), onward, lambda at: at[1])


def _shortest(start: S, onward: Callable[[S], Iterable[tuple[str, S]]], there: Callable[[S], bool]) -> list[str]:
    seen, waiting = {start}, deque([(start, list[str]())])
    while waiting:
        at, way = waiting.popleft()
        if there(at):
            return way
        for action, to in onward(at):
            if to not in seen:
                seen.add(to)
                waiting.append((to, [*way, action]))
    raise AssertionError("there is no way")
