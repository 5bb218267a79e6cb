"""ALFWorld: household tasks in text, on ALFWorld's rules in TextWorld's engine, with AgentGym's names of actions.

A task is a seeded house and one of six types of errand in it; see `house`.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from atlas_ray.environments.builtin.alfworld.game import Engine, require
from atlas_ray.environments.builtin.alfworld.house import N_TEST, N_TRAIN, TYPES, houses
from atlas_ray.environments.builtin.alfworld.search import Errand, Memory, Stage, plan
from atlas_ray.environments.builtin.scripted import any_category, errs, task_at
from atlas_ray.environments.http.dialects import AVAILABLE_ACTIONS, Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

INSTRUCTION = """\
You are in a household and solve a task there. At the start you are told what you see around you and what your task \
is. Every round you get an observation and answer with a thought and one action. The first observation lists \
the actions that are possible at the start. The actions are:
- go to {recep}
- take {obj} from {recep}
- put {obj} in/on {recep}
- open {recep}
- close {recep}
- toggle {obj} {recep}: the same as use {obj}
- clean {obj} with {recep}
- heat {obj} with {recep}
- cool {obj} with {recep}
- look, inventory, examine {obj}
where {obj} and {recep} are numbered things and places, like apple 1 and fridge 1. Things may lie in closed places; \
you can hold one thing at a time. The answer "Nothing happens." means that the action was not possible: try another.
Answer in this form:
Thought: your thought
Action: your action"""

MAX_ROUNDS = 30
_SAME = (
    (re.compile(r"(?:put|move) (\w+ \d+) (?:in/on|in|on|into|onto|to) (\w+ \d+)"), r"put \1 in/on \2"),
    (re.compile(r"(?:toggle|use) (\w+ \d+)(?: \w+ \d+)?"), r"use \1"),
)

PLAN, SEEN = Category.PLAN_CREATION, Category.CRITICAL_OBSERVATION
ACT, MEND = Category.CRITICAL_ACTION, Category.SELF_CORRECTION

_PLANS = (
    "My task is to {task}. First I have to find a {what}. I look at {place} first.",
    "The plan: find a {what}, then do what is asked for with the {where}. A {what} may well be at {place}.",
    "To {task} I need a {what}. It is likely to be at {place}, so I begin there.",
)
_SAY: dict[Stage, tuple[str, ...]] = {
    "seek": (
        "There is no {thing} here. I look at {place} next.",
        "I still need a {thing}. It may be at {place}.",
        "Not here. The next place where a {thing} could be is {place}.",
    ),
    "open": (
        "The {place} is closed, so I open it.",
        "I have to open {place} first.",
        "I open {place} and look inside.",
    ),
    "fetch": (
        "I saw {thing} at {place}. I go there.",
        "I remember {thing} at {place}.",
        "Back to {place} for {thing}.",
    ),
    "take": (
        "Here is {thing}, which I was looking for. I take it.",
        "I see {thing} at {place}: this is what the task asks for, so I take it.",
        "Now I have found a {what}. I take {thing}.",
    ),
    "carry": ("With it in my hands I go to {place}.", "Next I go to {place}.", "I have it, now on to {place}."),
    "treat": (
        "I am at {place} with {thing}: this is the place to do what the task asks for.",
        "The task is to {task}, so before I put it anywhere I use {place}.",
        "Now I use {place} on {thing}.",
    ),
    "use": (
        "I hold the {what} and here is {thing}. I turn it on.",
        "Both are together now: I use {thing} to look at the {what}.",
        "To {task} all that is left is to turn on {thing}.",
    ),
    "put": (
        "I put {thing} in or on {place}, as the task asks.",
        "This is where the {what} has to go: {place}.",
        "I am at {place} with {thing}, so I put it there to {task}.",
    ),
    "back": ("I do not need {thing}. I put it back at {place}.", "This is not a {what}. Back with it to {place}."),
    "lost": ("I have looked everywhere. I look around once more.", "I am not sure where a {what} is. I look around."),
}
_MENDING = (
    "That was not right. To {task} I have to go on otherwise.",
    "I made a mistake, which did not help. I set it right.",
    "That did not bring me closer. What I need now is {thing}, at {place}.",
)
_CATEGORIES: dict[Stage, Category] = {"take": SEEN, "treat": ACT, "use": ACT, "put": ACT}
# what a novice errs
_SHARE: dict[Stage, float] = {"seek": 0.25, "take": 0.3, "carry": 0.3, "treat": 0.45, "use": 0.5, "put": 0.4}


def known(action: str) -> str:
    """An action in the engine's own words, where it is one."""
    action = " ".join(action[:200].split())
    for pattern, named in _SAME:
        if found := pattern.fullmatch(action):
            return found.expand(named)
    return action


class AlfWorld:
    """The simulator: reward 1 and done at the goal, 0 before it.

    Raises:
        UserError: If alfworld or textworld is not installed.
    """

    def __init__(self) -> None:
        require()
        self._engine: Engine | None = None

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        house = task_at(houses(), index, "alfworld")
        self._engine = self._engine or Engine()
        text = self._engine.load(house)
        self._memory = Memory(house)
        self._rounds, self._mistakes, self._failed = 0, 0, False
        self._end: StepResult | None = None
        return Opening(INSTRUCTION, text + AVAILABLE_ACTIONS + ",".join(self.available_actions))

    def step(self, action: str) -> StepResult:
        """Plays one action; one that is not possible changes nothing."""
        if self._end:
            return self._end
        engine = self._ready()
        action = known(action)
        due = plan(self._memory)
        place = self._memory.at
        text, won = engine.play(action)
        self._memory.hear(action, text)
        self._failed = action != due.action and not self._is_as_good(action, due, place)
        self._mistakes += self._failed
        self._rounds += 1
        result = StepResult(text, float(won), won)
        if won:
            self._end = result
        return result

    @property
    def available_actions(self) -> list[str]:
        """What can be done now."""
        return self._ready().commands

    @property
    def task_type(self) -> str:
        """The task's type in AgentGym's names."""
        return TYPES[self._memory.house.type]

    def close(self) -> None:
        """Frees the engine's memory; a reset takes a new one."""
        if self._engine:
            self._engine.close()
        self._engine = None

    def expert(self, rng: random.Random) -> Decision:
        """Searches the likeliest places first; in some episodes it does something useless and corrects that at once."""
        errand, category = self._situation()
        spare = MAX_ROUNDS - self._rounds
        slips = category in (SEEN, ACT) and not self._mistakes and spare >= 12
        if slips and errand.wrong and rng.random() < 0.12:
            return replace(self._decide(rng, errand, None), action=errand.wrong[rng.randrange(len(errand.wrong))])
        return self._decide(rng, errand, category)

    def novice(self, rng: random.Random) -> Decision:
        """Knows how to move; it often passes by what it looks for, and forgets what the task asks for."""
        errand, category = self._situation()
        decided = self._decide(rng, errand, category, any_category(rng, category))
        house = self._memory.house
        if not errand.wrong or not errs(rng, _SHARE.get(errand.stage, 0.0), errand.stage, house.type, house.what):
            return decided
        mistaken = random.Random(f"{errand.action}/{house.what}").choice(errand.wrong)  # the same mistake each time
        return replace(decided, action=mistaken)

    def _ready(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the simulator was not reset")
        return self._engine

    def _is_as_good(self, action: str, due: Errand, place: str) -> bool:
        """Whether another action than the one due still looks for what was not seen."""
        return due.stage == "seek" and action.startswith("go to ") and self._memory.at != place

    def _situation(self) -> tuple[Errand, Category | None]:
        """The errand that is due and, if it is a decision, its category."""
        errand = plan(self._memory)
        if self._rounds == 0:
            return errand, PLAN
        if self._failed:
            return errand, MEND
        return errand, _CATEGORIES.get(errand.stage)

    def _decide(
        self, rng: random.Random, errand: Errand, category: Category | None, spoken: Category | None = None
    ) -> Decision:
        choices = _SAY[errand.stage]
        if MEND in (category, spoken):
            choices = _MENDING
        elif PLAN in (category, spoken):
            choices = _PLANS
        thought = rng.choice(choices).format(**errand.words)
        # decisions of every kind reach the top somewhere
        return Decision(thought, errand.action, category, 0.3 + 0.7 * rng.random() if category else 0.0)


SPEC = EnvironmentSpec(
    *("alfworld", "in", MAX_ROUNDS, "success", "last"),
    instruction=INSTRUCTION,
    simulator=AlfWorld,
    n_train=N_TRAIN,
    n_test=N_TEST,
    extra="alfworld",
    dialect=Dialect(
        index_key="game",
        reset_body={"world_type": "Text"},
        reset_fields=("id", "observation"),
        opening="actions",
        closes=False,
    ),
    item_prefixes=(
        "look_at_obj_in_light",
        *("pick_and_place", "pick_clean_then_place", "pick_cool_then_place", "pick_heat_then_place", "pick_two_obj"),
    ),
    custom_data="atlas_ray.environments.builtin.alfworld.custom_data",
    agentgym="alfworld",
)
