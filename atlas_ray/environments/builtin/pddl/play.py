"""What a planning problem answers to an action, whoever wrote it.

Flows in: a domain, a problem and actions in words; flows out: observations in words, and the share of the goal reached.
"""

from __future__ import annotations

import functools

from atlas_ray.environments.builtin.pddl import texts
from atlas_ray.environments.builtin.pddl.problem import Problem
from atlas_ray.environments.builtin.pddl.strips import Action, Domain, Fact, State
from atlas_ray.environments.protocol import StepResult

EXTRA = ("check valid actions", "look around")


class PlanningSimulator:
    """The simulator: reward = progress = the largest share of the goal's facts so far; done when all hold."""

    def _begin(self, domain: Domain, problem: Problem) -> None:
        self._problem, self._actions = problem, _ground(domain, problem)
        self._arity = {name: len(schema.parameters) for name, schema in domain.schemas.items()}
        self._state = problem.initial
        self._before: tuple[State, Fact | None] | None = None
        self._progress = problem.satisfied(self._state)

    def step(self, action: str) -> StepResult:
        """Plays one action; an impossible one changes nothing."""
        domain = self._problem.domain
        if self._progress == 1:
            return self._answer(texts.SATISFIED)
        said = action[:1000].lower()
        if "check" in said:
            self._before = (self._state, None)
            return self._answer("Valid actions are: " + ", ".join([*self._valid(), *EXTRA]))
        if "look around" in said:
            self._before = (self._state, None)
            return self._answer(texts.state_text(domain, self._state))
        key = texts.read_action(action, self._arity, self._problem.objects)
        chosen = self._actions.get(key) if key else None
        if chosen is None or not chosen.is_possible(self._state):
            self._before = (self._state, None)
            return self._answer(texts.INVALID)
        self._taken(chosen)
        self._before, self._state = (self._state, chosen.key), chosen.after(self._state)
        self._progress = max(self._progress, self._problem.satisfied(self._state))
        shown = self._state - self._before[0] if domain in texts.DELTAS else self._state
        text = texts.state_text(domain, shown)
        return self._answer(f"{text} {texts.SATISFIED}" if self._progress == 1 else text)

    def _taken(self, action: Action) -> None:
        """An action is about to be played."""

    def _answer(self, text: str) -> StepResult:
        return StepResult(text, self._progress, self._progress == 1, self._progress)

    def _valid(self) -> list[str]:
        return [texts.action_text(key) for key, action in self._actions.items() if action.is_possible(self._state)]


@functools.lru_cache(512)
def _ground(domain: Domain, problem: Problem) -> dict[Fact, Action]:
    return domain.ground(problem.objects, problem.initial)
