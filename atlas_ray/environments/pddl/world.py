"""PDDL: planning problems of four domains in words, after AgentBoard.

A task's index picks the domain in turn (`ORDER`) and the problem; of six tasks in a row two are gripper, two barman.
"""

from __future__ import annotations

import functools
import random
from types import ModuleType

from atlas_ray.environments.pddl import barman, blocksworld, gripper, texts, tyreworld
from atlas_ray.environments.pddl.problem import Advice, Problem
from atlas_ray.environments.pddl.strips import Action, Fact, State, load_domain
from atlas_ray.environments.protocol import Decision, Opening, StepResult
from atlas_ray.environments.tasks import errs, pick
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


INSTRUCTION = texts.INSTRUCTION


@functools.lru_cache(512)
def _ground(problem: Problem) -> dict[Fact, Action]:
    return load_domain(problem.domain).ground(problem.objects, problem.initial)


class Pddl:
    """The simulator: reward = progress = the largest share of the goal's facts so far; done when all hold."""

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        self._problem = pick(tasks(), index, "pddl")
        domain = load_domain(self._problem.domain)
        self._expert = DOMAINS[domain.name]
        self._arity = {name: len(schema.parameters) for name, schema in domain.schemas.items()}
        self._state = self._problem.initial
        self._before: tuple[State, Fact | None] | None = None
        self._slipped = False
        self._progress = self._problem.satisfied(self._state)
        return Opening(INSTRUCTION, _first_observation(self._problem))

    def step(self, action: str) -> StepResult:
        """Plays one action; an impossible one changes nothing."""
        domain = self._problem.domain
        if self._progress == 1:
            return self._answer(texts.SATISFIED)
        said = action[:1000].lower()
        if "check" in said:
            self._before = (self._state, None)
            return self._answer("Valid actions are: " + ", ".join([*self._valid(), *_EXTRA]))
        if "look around" in said:
            self._before = (self._state, None)
            return self._answer(texts.state_text(domain, self._state))
        key = texts.read_action(action, self._arity, self._problem.objects)
        chosen = self._actions.get(key) if key else None
        if chosen is None or not chosen.is_possible(self._state):
            self._before = (self._state, None)
            return self._answer(texts.INVALID)
        self._slipped = self._slipped or self._expert.advise(self._state, self._problem).key != chosen.key
        self._before, self._state = (self._state, chosen.key), chosen.after(self._state)
        self._progress = max(self._progress, self._problem.satisfied(self._state))
        shown = self._state - self._before[0] if domain in texts.DELTAS else self._state
        text = texts.state_text(domain, shown)
        return self._answer(f"{text} {texts.SATISFIED}" if self._progress == 1 else text)

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

    @property
    def _actions(self) -> dict[Fact, Action]:
        return _ground(self._problem)

    def _answer(self, text: str) -> StepResult:
        return StepResult(text, self._progress, self._progress == 1, self._progress)

    def _valid(self) -> list[str]:
        return [texts.action_text(key) for key, action in self._actions.items() if action.is_possible(self._state)]

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
        action = texts.action_text(advice.key) if advice.key[0] in self._arity else _EXTRA[0]
        why = advice.why[0].upper() + advice.why[1:]
        thought = rng.choice(_SAY[category]).format(
            why=advice.why, Why=why, action=action, goal=len(self._problem.goal)
        )
        # Decisions of every kind reach the top somewhere.
        return Decision(thought, action, category, 0.3 + 0.7 * rng.random() if category else 0.0)


_EXTRA = ("check valid actions", "look around")


def _first_observation(problem: Problem) -> str:
    """The rules, the goal and the whole state."""
    domain = problem.domain
    goal, state = texts.goal_text(domain, problem.goal), texts.state_text(domain, problem.initial)
    return f"{texts.RULES[domain]}\n{goal}\n{state}"
