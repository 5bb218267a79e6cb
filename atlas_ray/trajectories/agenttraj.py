"""What AgentTraj-L is like, for plans made before it is fetched and for benchmarks at its size.

Trajectories per environment are the paper's (App. A). Steps are near the means that AgentGym's authors report, and
texts have about as many words as these environments' observations and instructions.
"""

from __future__ import annotations

from typing import NamedTuple

TOKENS_PER_WORD = 1.35


class Shape(NamedTuple):
    """One environment's trajectories: their number, mean steps and most, and mean words of each kind of text."""

    trajectories: float
    steps: float
    most: int
    opening: int
    observation: int
    reply: int

    @property
    def read(self) -> float:
        """Tokens that an engine reads in a mean trajectory; the prefix cache holds what was read before."""
        return TOKENS_PER_WORD * (self.opening + self.steps * self.observation)

    @property
    def written(self) -> float:
        """Tokens that a policy writes in a mean trajectory."""
        return TOKENS_PER_WORD * self.steps * self.reply

    @property
    def tokens(self) -> float:
        """Of a mean trajectory."""
        return self.read + self.written


SHAPES = {
    "webshop": Shape(3930, 5.1, 10, 300, 170, 45),
    "alfworld": Shape(2420, 13.3, 30, 350, 35, 35),
    "sciworld": Shape(2120, 19.9, 30, 500, 70, 35),
    "wordle": Shape(955, 4.3, 8, 250, 10, 60),
    "babyai": Shape(810, 5.7, 20, 250, 50, 40),
    "textcraft": Shape(374, 8.0, 20, 450, 25, 40),
    "weather": Shape(311, 5.5, 10, 700, 60, 40),
    "maze": Shape(215, 4.3, 15, 350, 30, 20),
    "movie": Shape(215, 4.0, 12, 600, 80, 40),
    "todo": Shape(135, 5.6, 15, 600, 60, 40),
}
# Of environments that the data has no trajectories of.
OTHER = Shape(0, 8.0, 20, 500, 60, 40)
