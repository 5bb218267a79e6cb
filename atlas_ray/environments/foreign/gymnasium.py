"""Gymnasium's text environments: `environments.register.NAME=gymnasium:ID`, where the ID may begin with its module.

The task's number is the seed of a reset. Observations and actions are texts (`gymnasium.spaces.Text`), rewards are
added up.
"""

from __future__ import annotations

from typing import Any

from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult, Unscripted
from atlas_ray.errors import UserError

INSTRUCTION = "You act in the environment {name}. Answer with a Thought: line and an Action: line."
N_TEST, N_TRAIN = 200, 10_000
_ROUNDS = 30  # of an environment that has no limit of its own


def environment(name: str, number: str) -> EnvironmentSpec:
    """The environment of a Gymnasium ID.

    Args:
        name: What it is to be called.
        number: Gymnasium's ID, e.g. `my_module:Kitchen-v0`.

    Raises:
        UserError: If Gymnasium is not installed, has no such environment, or its observations or actions are no texts.
    """
    first = Wrapped(name, number)
    first.close()
    return EnvironmentSpec(
        *(name, "out", first.rounds or _ROUNDS, "reward", "last"),
        instruction=INSTRUCTION.format(name=name),
        simulator=lambda: Wrapped(name, number),
        n_train=N_TRAIN,
        n_test=N_TEST,
    )


class Wrapped(Unscripted):
    """The simulator.

    Attributes:
        rounds: At which Gymnasium cuts an episode off, if at any.

    Raises:
        UserError: As `environment`.
    """

    def __init__(self, name: str, number: str) -> None:
        try:
            import gymnasium
        except ImportError:
            raise UserError("Gymnasium's environments need gymnasium", "pip install gymnasium") from None
        try:
            self._made: Any = gymnasium.make(number)
        except Exception as error:  # noqa: BLE001 (whatever an environment needs)
            remedy = "the ID of an environment in a module of yours is module:ID"
            raise UserError(f"Gymnasium does not make {number}: {error}", remedy) from None
        text = gymnasium.spaces.Text
        if not isinstance(self._made.observation_space, text) or not isinstance(self._made.action_space, text):
            raise UserError(
                f"observations and actions of {number} are no texts",
                "wrap it in a gymnasium.Wrapper whose spaces are gymnasium.spaces.Text, and register that",
            )
        self._name, self._reward = name, 0.0
        self._end: StepResult | None = None
        made = self._made.spec
        self.rounds: int | None = made.max_episode_steps if made else None

    def reset(self, index: int) -> Opening:
        """Starts the episode of this seed."""
        self._reward, self._end = 0.0, None
        observation, _ = self._made.reset(seed=index)
        return Opening(INSTRUCTION.format(name=self._name), str(observation))

    def step(self, action: str) -> StepResult:
        """Takes an action."""
        if self._end is None:
            observation, reward, terminated, truncated, _ = self._made.step(action)
            self._reward += float(reward)
            found = StepResult(str(observation), self._reward, bool(terminated or truncated))
            if not found.done:
                return found
            self._end = found
        return self._end

    def close(self) -> None:
        """Ends what the environment holds."""
        self._made.close()
