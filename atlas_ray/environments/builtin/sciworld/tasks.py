"""The tasks of SciWorld, in AgentGym's numbering, and ScienceWorld's own way to solve each.

`paths.txt` holds one line a task: its index, and the actions that solve it; see `paths`. ScienceWorld (Apache-2.0)
found them, see `make_paths`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

N_TEST, N_TRAIN = 200, 2120

# ScienceWorld's kinds of tasks with their variations, less those that AgentGym leaves out: growing, inclined planes
# and genetics take far more than 30 rounds
KINDS = {
    "boil": 30,
    "melt": 30,
    "freeze": 30,
    "change-the-state-of-matter-of": 30,
    "use-thermometer": 540,
    "measure-melting-point-known-substance": 436,
    "measure-melting-point-unknown-substance": 300,
    "power-component": 20,
    "power-component-renewable-vs-nonrenewable-energy": 20,
    "test-conductivity": 900,
    "test-conductivity-of-unknown-substances": 600,
    "find-living-thing": 300,
    "find-non-living-thing": 300,
    "find-plant": 300,
    "find-animal": 300,
    "chemistry-mix": 32,
    "chemistry-mix-paint-secondary-color": 36,
    "chemistry-mix-paint-tertiary-color": 36,
    "lifespan-longest-lived": 125,
    "lifespan-shortest-lived": 125,
    "lifespan-longest-lived-then-shortest-lived": 125,
    "identify-life-stages-1": 14,
    "identify-life-stages-2": 10,
}


@dataclass(frozen=True, slots=True)
class Game:
    """A kind of task, and which of its variations."""

    kind: str
    variation: int


@functools.cache
def games() -> tuple[Game, ...]:
    """All tasks that AgentGym's server has."""
    return tuple(Game(kind, variation) for kind, most in KINDS.items() for variation in range(most))


@functools.cache
def paths() -> dict[int, tuple[str, ...]]:
    """The actions that solve a task, by its index, in the order of the splits: test tasks, then train tasks.

    Only tasks that can be solved well within the cap on rounds, and whose first observation is no other's.
    """
    text = resources.files(__package__).joinpath("paths.txt").read_text("ascii")
    rows = (line.partition(": ") for line in text.splitlines())
    return {int(index): tuple(path.split("; ")) for index, _, path in rows}


def aim(description: str) -> str:
    """What is to be done, within a sentence: "boil water", "find a plant"."""
    first = re.split(r"[.,]", description.removeprefix("Your task is to "), maxsplit=1)[0]
    return " ".join(first.replace("a(n)", "a").split())
