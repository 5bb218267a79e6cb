"""TextArena's single-player games as environments: `environments.register.NAME=textarena:ID`.

The task's number is the game's seed. What a game tells between two moves is one observation; its reward is known at the
end, between 0 and 1.
"""

from __future__ import annotations

import random
import threading
from typing import Any

from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult, Unscripted
from atlas_ray.errors import UserError

INSTRUCTION = """\
You play a game by yourself. Every turn you are told how it stands, and answer with a thought and one move in the form \
that the game asks for. Answer in this form:
Thought: your thought
Action: your move, e.g. [1 2]"""
N_TEST, N_TRAIN = 200, 10_000
_ROUNDS = 30  # of a game that has no limit of its own
_drawing = threading.Lock()  # games draw from the one generator of the process


def environment(name: str, game: str) -> EnvironmentSpec:
    """The environment of a game.

    Args:
        name: What it is to be called.
        game: TextArena's name of it, e.g. `Mastermind-v0`.

    Raises:
        UserError: If TextArena is not installed, or has no such game for one player that starts here.
    """
    limit = Game(game).reset_to(0).max_turns
    return EnvironmentSpec(
        *(name, "out", limit or _ROUNDS, "reward", "first"),
        instruction=INSTRUCTION,
        simulator=lambda: Game(game),
        extra="textarena",
        n_train=N_TRAIN,
        n_test=N_TEST,
    )


class Game(Unscripted):
    """The simulator: one game at a time, with its own course of the process's random numbers.

    Raises:
        UserError: As `environment`.
    """

    def __init__(self, game: str) -> None:
        try:
            import textarena
        except ImportError:
            raise UserError("TextArena's games need textarena", "pip install 'atlas-ray[textarena]'") from None
        self._name, self._drawn = game, random.Random(0).getstate()
        self._end: StepResult | None = None
        try:
            with _drawing:
                self._game: Any = textarena.make(f"{game}-raw")  # observations in parts
        except Exception as error:  # noqa: BLE001 (whatever a game needs: words, a key)
            raise UserError(
                f"TextArena's {game} does not start: {_first_line(error)}",
                "get what it needs (a game of words wants NLTK's), or choose another game",
            ) from None

    def reset_to(self, seed: int) -> Any:
        """Starts the game of a seed; TextArena's state of it."""
        self._end = None
        try:
            self._with_own_numbers(lambda: self._game.reset(num_players=1, seed=seed))
        except Exception as error:  # noqa: BLE001 (each game says it in its own way)
            raise UserError(
                f"TextArena's {self._name} is no game for one player: {_first_line(error)}", "choose another game"
            ) from None
        return self._game.state

    def reset(self, index: int) -> Opening:
        """Starts the game of this seed."""
        self.reset_to(index)
        return Opening(INSTRUCTION, self._told())

    def step(self, action: str) -> StepResult:
        """Makes a move; a second one that the game does not understand ends it."""
        if self._end is None:
            done, _ = self._with_own_numbers(lambda: self._game.step(action=action))
            if not done:
                return StepResult(self._told(), 0.0, False)
            rewards, told = self._game.close()
            self._end = StepResult(str(told[0].get("reason", "The game is over.")), float(rewards[0]), True)
        return self._end

    def _told(self) -> str:
        """What was not told yet, but for the player's own moves."""
        _, parts = self._with_own_numbers(self._game.get_observation)
        return "\n\n".join(text.strip() for _, text, kind in parts if kind.name != "PLAYER_ACTION")

    def _with_own_numbers(self, call: Any) -> Any:
        with _drawing:
            others = random.getstate()
            random.setstate(self._drawn)
            try:
                return call()
            finally:
                self._drawn = random.getstate()
                random.setstate(others)


def _first_line(error: Exception) -> str:
    return next((line.strip(" *") for line in str(error).splitlines() if line.strip(" *")), type(error).__name__)
