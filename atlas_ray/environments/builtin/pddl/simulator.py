"""PDDL: planning problems of four domains in words, after AgentBoard.

A task's index picks the domain in turn (`ORDER`) and the problem; of six tasks in a row two are gripper, two barman.
"""

from __future__ import annotations

import functools
import random
from types import ModuleType

from atlas_ray.environments.builtin.pddl import barman, blocksworld, gripper, texts, tyreworld
from atlas_ray.environments.builtin.pddl.play import EXTRA, PlanningSimulator
from atlas_ray.environments.builtin.pddl.problem import Advice, Problem
from atlas_ray.environments.builtin.pddl.strips import Action, Fact, load_domain
from atlas_ray.environments.builtin.scripted import errs, task_at
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening
from atlas_ray.types import Category

DOMAINS: dict[str, ModuleType] = {
    "gripper": gripper,
    "blocksworld": blocksworld,
    "barman": barman,
    "tyreworld": tyreworld,
}
ORDER = ("gripper", "barman", "blocksworld", "gripper", "barman", "tyreworld")
COUNT = 360
SHORTEST, LONGEST = 5, 26  # steps of the expert's plan, under the cap of 30

_SAY = {
    Category.PLAN_CREATION: (
        "The plan is to reach {goal} of the goal's conditions one by one. First: {why}, so I {action}.",
        "There are {goal} conditions to satisfy. {Why}, so I start with {action}.",
        "To satisfy the goal I begin here: {why}. I {action}.",
    ),
    Category.CRITICAL_OBSERVATION: (
        "I see that {why}. So I {action}.",
        "{Why}, as the observation says. I have to {action} first.",
        "I note that {why}; the answer is to {action}.",
    ),
    Category.CRITICAL_ACTION: (
        "{Why}, so I {action}. The goal needs it.",
        "The goal asks for this: {why}. I {action}.",
        "Now is the time to {action}: {why}.",
    ),
    Category.SELF_CORRECTION: (
        "That did not help. {Why}, so I {action}.",
        "I went wrong. Let me get back: {why}, so I {action}.",
    ),
    None: ("{Why}, so I {action}.", "I go on: {action}.", "Next I {action}, for {why}."),
}
_CATEGORIES = {"goal": Category.CRITICAL_ACTION, "obstacle": Category.CRITICAL_OBSERVATION, "routine": None}


def plan_length(problem: Problem, cap: int = 60) -> int:
    """Steps that the domain's expert takes, `cap` if it does not arrive before."""
    state, schemas = problem.initial, load_domain(problem.domain).schemas
    for steps in range(cap):
        if problem.satisfied(state) == 1:
            return steps
        key = DOMAINS[problem.domain].advise(state, problem).key
        if key[0] not in schemas:
            break
        state = schemas[key[0]].bind(key[1:]).after(state)
    return cap


@functools.cache
def tasks() -> tuple[Problem, ...]:
    """Distinct problems within reach, in a fixed order."""
    rngs = {domain: random.Random(f"pddl/{domain}") for domain in DOMAINS}
    found: dict[str, Problem] = {}
    while len(found) < COUNT:
        domain = ORDER[len(found) % len(ORDER)]
        problem = DOMAINS[domain].problem(rngs[domain])
        if SHORTEST <= plan_length(problem) <= LONGEST:
            found.setdefault(_first_observation(problem), problem)
    return tuple(found.values())


class Pddl(PlanningSimulator):
    """The simulator of this project's own problems, with an expert for each domain."""

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        problem = task_at(tasks(), index, "pddl")
        self._expert = DOMAINS[problem.domain]
        self._slipped = False
        self._begin(load_domain(problem.domain), problem)
        return Opening(texts.INSTRUCTION, _first_observation(problem))

    def _taken(self, action: Action) -> None:
        """Notes whether the expert would have done otherwise."""
        self._slipped = self._slipped or self._expert.advise(self._state, self._problem).key != action.key

    def expert(self, rng: random.Random) -> Decision:
        """Its domain's expert; in some episodes one wrong step, corrected at once."""
        category, advice = self._situation()
        decisive = category in (Category.CRITICAL_ACTION, Category.CRITICAL_OBSERVATION)
        if decisive and not self._slipped and rng.random() < 0.08:
            wrong = self._wrong(advice, self._expert.SLIPS)
            if wrong:
                return self._decide(rng, Advice(wrong[rng.randrange(len(wrong))], advice.why), None)
        return self._decide(rng, advice, category)

    def novice(self, rng: random.Random) -> Decision:
        """Carries on well; what to do next it gets wrong in many states."""
        category, advice = self._situation()
        decided = self._decide(rng, advice, category)
        if category is None or not errs(rng, 0.25, self._problem.domain, advice.key[:3], len(self._problem.goal)):
            return decided
        wrong = self._wrong(advice, self._arity)
        if not wrong:
            return decided
        mistaken = random.Random(f"{advice.key}/{len(wrong)}").choice(wrong)
        return Decision(decided.thought, texts.action_text(mistaken), category, decided.weight)

    def _wrong(self, advice: Advice, names: object) -> list[Fact]:
        """Other possible actions of some names."""
        return [
            key
            for key, action in self._actions.items()
            if key != advice.key and key[0] in names and action.is_possible(self._state)  # type: ignore[operator]
        ]

    def _situation(self) -> tuple[Category | None, Advice]:
        """What the present state asks for: the category if it is a decision, and the advice."""
        advice = self._expert.advise(self._state, self._problem)
        if self._before is None:
            return Category.PLAN_CREATION, advice
        state, done = self._before
        if self._expert.advise(state, self._problem).key != done:
            return Category.SELF_CORRECTION, advice
        return _CATEGORIES[advice.kind], advice

    def _decide(self, rng: random.Random, advice: Advice, category: Category | None) -> Decision:
        action = texts.action_text(advice.key) if advice.key[0] in self._arity else EXTRA[0]
        why = advice.why[0].upper() + advice.why[1:]
        thought = rng.choice(_SAY[category]).format(
            why=advice.why, Why=why, action=action, goal=len(self._problem.goal)
        )
        # Decisions of every kind reach the top somewhere.
        return Decision(thought, action, category, 0.3 + 0.7 * rng.random() if category else 0.0)


def _first_observation(problem: Problem) -> str:
    """The rules, the goal and the whole state."""
    domain = problem.domain
    return texts.opening_text(domain, texts.goal_text(domain, problem.goal), problem.initial)


SPEC = EnvironmentSpec(
    *("pddl", "out", 30, "progress", "last"),
    instruction=texts.INSTRUCTION,
    simulator=Pddl,
    n_train=300,
    n_test=60,
    custom_data="atlas_ray.environments.builtin.pddl.custom_data",
)
