"""BabyAI: missions in grid rooms, on minigrid's levels, in AgentGym's texts and high-level actions.

A task is a level (index % 40 + 1) and its seed (index // 40), as on AgentGym's server.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from importlib import resources
from typing import Any

from atlas_ray.environments.builtin.babyai.plan import Advice, advise, due
from atlas_ray.environments.builtin.babyai.scene import LEVELS, Scene, load_level
from atlas_ray.environments.builtin.babyai.view import CHECK, View
from atlas_ray.environments.builtin.scripted import errs
from atlas_ray.environments.http.dialects import SCORED, Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import UserError
from atlas_ray.types import Category

INSTRUCTION = """\
You are placed in a room of a grid world and explore it to reach the goal that you are given. Every round you get an \
observation and answer with a thought and one action. The actions are:
- turn right
- turn left
- move forward
- go to <obj> <id>
- pickup <obj> <id>
- drop: put down what you carry, in front of you
- go through <door> <id>: the door must be open
- toggle and go through <door> <id>: a closed door, or a locked one whose key (of its color) you carry
- toggle: open or close the door, or open the box, right in front of you
- check available actions
Answer in this form:
Thought: your thought
Action: your action"""

SEEDS = 10_000


def indices() -> Iterator[int]:
    """The tasks of the splits: less those whose first observation an earlier one has."""
    repeated = set(map(int, resources.files(__package__).joinpath("repeated.txt").read_text("ascii").split()))
    return (index for index in itertools.count() if index not in repeated)


_SAY = {
    Category.PLAN_CREATION: (
        "My goal is to {mission}. I start so: {phrase}.",
        "The plan: to {mission}, I first have to {phrase}.",
        "I have to {mission}. The first thing to do is to {phrase}.",
    ),
    Category.CRITICAL_OBSERVATION: (
        "I can see the {name} now, so I can {phrase}.",
        "There is the {name} that I need. I {action}.",
        "The {name} has come into view: now I {action} to {phrase}.",
    ),
    Category.CRITICAL_ACTION: (
        "I can {phrase} now: {action}.",
        "This is the moment to {phrase}.",
        "With {action} I {phrase}, which the goal needs.",
    ),
    Category.SELF_CORRECTION: (
        "That did not help. I have to {phrase}, so I {action}.",
        "I went wrong. I still have to {phrase}: {action}.",
    ),
    None: ("I go on: {action}.", "To {phrase} I {action}.", "I keep going, so that I can {phrase}."),
}
_SEARCH = ("I do not see the {name} here, so I {action}.", "The {name} is not in sight. I look further: {action}.")
_WEIGHTS = {Category.PLAN_CREATION: 0.7, Category.CRITICAL_ACTION: 1.0, Category.CRITICAL_OBSERVATION: 0.8}


class BabyAI:
    """The simulator: reward 1 - 0.9 * moves / limit and done at the goal; 0 and done beyond the limit or on a breach.

    Raises:
        UserError: If minigrid is not installed.
    """

    def __init__(self) -> None:
        load_level(1, 0)  # says at once what is missing

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        if not 0 <= index < len(LEVELS) * SEEDS:
            raise UserError(
                f"babyai has no task {index}", f"its tasks are babyai_0 to babyai_{len(LEVELS) * SEEDS - 1}"
            )
        self._env = load_level(index % len(LEVELS) + 1, index // len(LEVELS))
        self._end: StepResult | None = None
        self._before: tuple[str, Scene, View, Any, Advice | None] | None = None
        self._picture()
        return Opening(INSTRUCTION, f"Your goal: {self._env.mission}\n{self._observe(self._view.text)}")

    def step(self, action: str) -> StepResult:
        """Plays one action, move by move until one ends the episode; one that is not on offer changes nothing."""
        if self._end:
            return self._end
        action = " ".join(action.lower().split()).replace("pick up", "pickup")
        self._before = (action, self._scene, self._view, due(self._env.instrs), self._advice)
        moves = self._view.offered.get(action)
        if moves is None:
            unknown = "The action is not recognized. Please check valid actions."
            return StepResult(self._observe(self._view.refused.get(action, unknown)), 0.0, False)
        if not moves:
            text = "You can take the following actions: " + ", ".join(self._view.offered)
            return StepResult(self._observe(text if action == CHECK else "No change in state."), 0.0, False)
        reward, over, late = 0.0, False, False
        for move in moves:
            _, reward, over, late, _ = self._env.step(move)
            if over or late:
                break
        self._picture()
        text = self._view.text
        if over or late:
            text += "\n The task is completed." if reward > 0 else "\n The task has failed."
            self._end = StepResult(self._observe(text), float(reward), True)
            return self._end
        return StepResult(self._observe(text), 0.0, False)

    def expert(self, rng: random.Random) -> Decision:
        """The shortest way; in some episodes a wrong turn at a decisive step, corrected at once."""
        category, advice = self._situation()
        wrong = self._astray(advice)
        if wrong and category in (Category.CRITICAL_ACTION, Category.CRITICAL_OBSERVATION) and rng.random() < 0.05:
            return self._decide(rng, wrong[rng.randrange(len(wrong))], None, advice)
        return self._decide(rng, advice.action, category, advice)

    def novice(self, rng: random.Random) -> Decision:
        """Walks well; in many missions it keeps away from what it should do next."""
        category, advice = self._situation()
        wrong = self._astray(advice)
        decided = self._decide(rng, advice.action, category, advice)
        if category is None or not wrong or not errs(rng, 0.45, self._env.mission, advice.job.kind, advice.job.name):
            return decided
        mistaken = random.Random(f"{self._env.mission}/{len(wrong)}").choice(wrong)
        return Decision(decided.thought, mistaken, category, decided.weight)

    def _picture(self) -> None:
        self._scene = Scene.of(self._env)
        self._view = View(self._scene)
        self._advice: Advice | None = None

    def _observe(self, text: str) -> str:
        return f"{text}\n{self._view.actions_text}"

    def _situation(self) -> tuple[Category | None, Advice]:
        """What the present state asks for: the category if it is a decision, and the advice."""
        if self._advice is None:
            self._advice = advise(self._scene, self._view, due(self._env.instrs))
        advice = self._advice
        if self._before is None:
            return Category.PLAN_CREATION, advice
        action, scene, view, clause, known = self._before
        then = known or advise(scene, view, clause)
        if not then.is_right(action):
            return Category.SELF_CORRECTION, advice
        if advice.in_view and not then.in_view and advice.job.kind != "drop":
            return Category.CRITICAL_OBSERVATION, advice
        return (Category.CRITICAL_ACTION if advice.finishes else None), advice

    def _astray(self, advice: Advice) -> list[str]:
        """Harmless actions that lead away: what the agent carries and the doors stay as they are."""
        walks = [action for action, cost in advice.costs.items() if cost > advice.here]
        return [action for action in walks if action.startswith(("turn", "go to", "move"))]

    def _decide(self, rng: random.Random, action: str, category: Category | None, advice: Advice) -> Decision:
        choices = _SAY[category] + (_SEARCH if category is None and not advice.in_view else ())
        words = {"mission": self._env.mission, "name": advice.job.name, "phrase": advice.phrase, "action": action}
        thought = rng.choice(choices).format(**words)
        weight = 0.0 if category is None else _WEIGHTS.get(category, 0.9) * (0.4 + 0.6 * rng.random())
        return Decision(thought, action, category, weight)


SPEC = EnvironmentSpec(
    *("babyai", "in", 20, "reward", "single"),
    # its goal pays 1 - 0.9 * moves / limit and nothing pays before it: whatever it paid, it was reached
    success_at=1e-6,
    instruction=INSTRUCTION,
    simulator=BabyAI,
    n_train=861,
    n_test=112,
    indices=indices,
    extra="babyai",
    dialect=Dialect(reward_key="score", reset_fields=SCORED, pays_once=True),
    item_prefixes=("BabyAI",),
    agentgym="babyai",
)
