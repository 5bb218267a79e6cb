"""Blocksworld (one of AgentBoard's PDDL domains): four blocks, one hand, goals of one or two towers' joints.

A state names what each block stands on: another block, "table", or "hand". A task is a state and a goal.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections import deque
from dataclasses import replace

from atlas_ray.environments.builtin.scripted import any_category, errs, habitual, task_at
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

INSTRUCTION = (
    "You stack blocks. The actions are pickup red, putdown red, stack red on blue and unstack red from blue. "
    "Answer with a Thought: line and an Action: line."
)

BLOCKS = ("red", "blue", "green", "yellow")
SHORTEST, LONGEST = 2, 4
COUNT = 600

State = tuple[str, ...]
Goal = tuple[tuple[str, str], ...]

_SAY = {
    Category.PLAN_CREATION: ("The plan is to start with {block}.", "To reach the goal I start with {block}."),
    Category.CRITICAL_OBSERVATION: ("I see that {block} is in the way.", "{block} is in the way of the goal."),
    Category.CRITICAL_ACTION: ("The goal needs {block} now.", "Now I need {block} for the goal."),
    Category.SELF_CORRECTION: ("That was wrong, so I need {block}.", "I went wrong with {block}."),
    None: ("I go on with {block}.", "The next block is {block}."),
}


def legal(state: State) -> dict[str, State]:
    """Every possible action in a state, and the state after it."""
    held = next((block for block, below in zip(BLOCKS, state, strict=True) if below == "hand"), None)
    clear = [block for block in BLOCKS if block not in state and block != held]

    def put(block: str, below: str) -> State:
        return tuple(below if b == block else old for b, old in zip(BLOCKS, state, strict=True))

    if held:
        after = {f"stack {held} on {block}": put(held, block) for block in clear}
        return {f"putdown {held}": put(held, "table"), **after}
    below = dict(zip(BLOCKS, state, strict=True))
    return {
        f"pickup {block}" if below[block] == "table" else f"unstack {block} from {below[block]}": put(block, "hand")
        for block in clear
    }


@functools.cache
def states() -> tuple[State, ...]:
    """All states that can be reached, those with an empty hand and those without."""
    start: State = ("table",) * len(BLOCKS)
    found, queue = {start: None}, deque([start])
    while queue:
        for after in legal(queue.popleft()).values():
            if after not in found:
                found[after] = None
                queue.append(after)
    return tuple(found)


def satisfied(state: State, goal: Goal) -> float:
    """Share of the goal's joints that hold."""
    below = dict(zip(BLOCKS, state, strict=True))
    return sum(below[block] == under for block, under in goal) / len(goal)


@functools.cache
def distances(goal: Goal) -> dict[State, int]:
    """Actions to the goal from every state; every action can be undone, so the search runs from the goal."""
    found = {state: 0 for state in states() if satisfied(state, goal) == 1}
    queue = deque(found)
    while queue:
        state = queue.popleft()
        for after in legal(state).values():
            if after not in found:
                found[after] = found[state] + 1
                queue.append(after)
    return found


@functools.cache
def tasks() -> tuple[tuple[State, Goal], ...]:
    """Distinct (start, goal) pairs with an empty hand, in a fixed random order."""
    goals: list[Goal] = [(joint,) for joint in itertools.permutations(BLOCKS, 2)]
    pairs = [
        (state, goal)
        for goal in goals
        for state, far in distances(goal).items()
        if "hand" not in state and SHORTEST <= far <= LONGEST
    ]
    random.Random("blocksworld").shuffle(pairs)
    return tuple(pairs[:COUNT])


class BlocksWorld:
    """The simulator: reward = progress = the largest share of goal joints reached so far; done when all hold."""

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        self._state, self._goal = task_at(tasks(), index, "blocksworld")
        self._before: State | None = None
        self._met: set[State] = set()
        self._slipped = False
        self._progress = satisfied(self._state, self._goal)
        goal = ", ".join(f"{block} on {under}" for block, under in self._goal)
        return Opening(INSTRUCTION, f"Goal: {goal}.\n{self._observe()}")

    def step(self, action: str) -> StepResult:
        """Plays one action; an impossible one changes nothing."""
        after = legal(self._state).get(" ".join(action.split()))
        if self._progress < 1 and after:
            far = distances(self._goal)
            self._slipped = self._slipped or far[after] > far[self._state]
            self._met.add(self._state)
            self._before, self._state = self._state, after
            self._progress = max(self._progress, satisfied(after, self._goal))
        done = self._progress == 1
        text = "Success" if done else self._observe() if after else f"This is not possible. {self._observe()}"
        return StepResult(text, self._progress, done, self._progress)

    def expert(self, rng: random.Random) -> Decision:
        """A shortest plan; in some episodes one wrong block, put back at once."""
        category, right, wrong = self._situation()
        if wrong and category is Category.CRITICAL_ACTION and not self._slipped and rng.random() < 0.1:
            return self._decide(rng, rng.choice(wrong), None)
        return self._decide(rng, right, category)

    def detour(self, rng: random.Random, share: float) -> Decision | None:
        """A wrong block taken up, in a state that was not met before."""
        category, _, wrong = self._situation()
        lost = category is Category.SELF_CORRECTION or self._state in self._met
        if lost or not wrong or "hand" in self._state or not habitual(rng, share, 1, self._state, self._goal):
            return None
        return self._decide(rng, wrong[0], None)

    def novice(self, rng: random.Random) -> Decision:
        """Moves a wrong block in many states where there is a choice."""
        category, right, wrong = self._situation()
        if wrong and category is not None and errs(rng, 0.3, right, self._goal):
            right = wrong[0]
        return replace(self._decide(rng, right, category), thought=_say(rng, any_category(rng, category), right))

    def _observe(self) -> str:
        return ", ".join(f"{b} {_place(below)}" for b, below in zip(BLOCKS, self._state, strict=True)) + "."

    def _situation(self) -> tuple[Category | None, str, list[str]]:
        """What the state asks for: the category if it is a decision, the right action, the wrong ones.

        What to do with a block just taken for a reason is no decision.
        """
        far, options = distances(self._goal), legal(self._state)
        right = min(options, key=lambda action: far[options[action]])
        wrong = [action for action, after in options.items() if far[after] > far[self._state]]
        if not wrong:
            return None, right, wrong
        if self._before is None:
            return Category.PLAN_CREATION, right, wrong
        if far[self._state] > far[self._before]:
            return Category.SELF_CORRECTION, right, wrong
        if "hand" in self._state:
            return None, right, wrong
        in_goal = any(right.split()[1] == block for block, _ in self._goal)
        return (Category.CRITICAL_ACTION if in_goal else Category.CRITICAL_OBSERVATION), right, wrong

    def _decide(self, rng: random.Random, action: str, category: Category | None) -> Decision:
        thought = _say(rng, category, action)
        scale = 0.5 if category is Category.CRITICAL_OBSERVATION else 1.0
        return Decision(thought, action, category, scale * (0.3 + 0.7 * rng.random()))


def _place(below: str) -> str:
    return "in hand" if below == "hand" else f"on {below}"


def _say(rng: random.Random, category: Category | None, action: str) -> str:
    return rng.choice(_SAY[category]).format(block=action.split()[1])


SPEC = EnvironmentSpec(
    *("blocksworld", "out", 20, "progress", "last"),
    instruction=INSTRUCTION,
    simulator=BlocksWorld,
    quick=True,
    n_train=284,
    n_test=100,
)
