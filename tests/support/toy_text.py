"""Gymnasium's taxi in words: an environment of others, in the wrapper that one whose observations are numbers needs."""

from __future__ import annotations

from typing import Any

import gymnasium

ACTIONS = ("south", "north", "east", "west", "pickup", "dropoff")
_STANDS = ("R", "G", "Y", "B")


class InWords(gymnasium.Wrapper[str, str, int, int]):
    """Says where the taxi, its passenger and the destination are, and takes the action's name."""

    observation_space = action_space = gymnasium.spaces.Text(200)

    def __init__(self) -> None:
        super().__init__(gymnasium.make("Taxi-v4"))
        self._told = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Starts where the seed says."""
        state, info = self.env.reset(seed=seed, options=options)
        return self._tell(state), info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Drives; what is no action costs nothing."""
        if action not in ACTIONS:
            return self._told, 0.0, False, False, {}
        state, reward, *others = self.env.step(ACTIONS.index(action))
        return self._tell(state), float(reward), *others  # type: ignore[return-value]

    def _tell(self, state: int) -> str:
        row, column, passenger, destination = self.env.unwrapped.decode(state)  # type: ignore[attr-defined]
        where = "in the taxi" if passenger == len(_STANDS) else f"at {_STANDS[passenger]}"
        self._told = f"Taxi: row {row}, column {column}. Passenger: {where}. Destination: {_STANDS[destination]}."
        return self._told


gymnasium.register("TaxiInWords-v0", entry_point=InWords, max_episode_steps=40, disable_env_checker=True)
