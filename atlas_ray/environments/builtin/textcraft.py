"""TextCraft: gather and craft by a fixed recipe book, in AgentGym's texts.

A task is a target, the recipes on display (those that it needs and a few others, in some order) and sometimes a few
things in hand from the start.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from atlas_ray.environments.builtin.scripted import any_category, errs, habitual, task_at
from atlas_ray.environments.http.dialects import Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

INSTRUCTION = (
    "You craft items. The actions are get, craft and inventory. Get only what no command can craft. "
    "Answer with a Thought: line and an Action: line."
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One command of the book: `makes` of an item from `needs`."""

    makes: int
    needs: Mapping[str, int]

    def command(self, item: str) -> str:
        """The action that crafts it once."""
        return f"craft {self.makes} {item} using " + ", ".join(f"{n} {part}" for part, n in self.needs.items())


# A part that is crafted from another part of the same recipe stands before it, so that making the one never takes
# what the other has already set aside.
RECIPES: dict[str, Recipe] = {
    "plank": Recipe(2, {"log": 1}),
    "stick": Recipe(2, {"plank": 1}),
    "torch": Recipe(4, {"stick": 1, "coal": 1}),
    "lantern": Recipe(1, {"torch": 1, "iron": 8}),
    "ladder": Recipe(3, {"stick": 4}),
    "bow": Recipe(1, {"stick": 3, "string": 3}),
    "arrow": Recipe(4, {"stick": 1, "flint": 2, "feather": 1}),
    "sign": Recipe(3, {"stick": 1, "plank": 3}),
    "shield": Recipe(1, {"plank": 5, "iron": 1}),
    "bed": Recipe(1, {"plank": 3, "wool": 3}),
    "banner": Recipe(1, {"stick": 1, "wool": 6}),
    "rail": Recipe(8, {"stick": 1, "iron": 6}),
    "compass": Recipe(1, {"iron": 4, "ruby": 1}),
    "map": Recipe(1, {"compass": 1, "paper": 8}),
    "book": Recipe(1, {"paper": 3, "leather": 1}),
    "shelf": Recipe(1, {"book": 2, "plank": 4}),
    "cake": Recipe(1, {"milk": 3, "sugar": 2, "egg": 1, "wheat": 3}),
}
BASE = frozenset(part for recipe in RECIPES.values() for part in recipe.needs) - RECIPES.keys()
TARGETS = tuple(item for item in RECIPES if item not in ("plank", "stick", "book", "compass"))

COUNT = 600

_SAY = {
    Category.PLAN_CREATION: (
        "The goal is {target}, so I start with {item}.",
        "The plan for {target} starts with {item}.",
        "To craft {target} I need {item} first.",
    ),
    Category.CRITICAL_OBSERVATION: (
        "The command asks for {n} {item}.",
        "I need {n} {item} for this.",
        "In all I have to get {n} {item}.",
    ),
    Category.CRITICAL_ACTION: (
        "I have what {item} needs.",
        "Now I can craft {item}.",
        "The items for {item} are all here.",
    ),
    Category.SELF_CORRECTION: ("That was wrong, I still need {item}.", "I went wrong and need {n} {item} first."),
    None: ("I go on with {item}.", "The next item is {item}."),
}
_CHECK = ("I check what I have.", "I want to see my items.")

_GET = re.compile(r"get ([1-9][0-9]?) ([a-z]+)")
_CRAFT = re.compile(r"craft ([1-9][0-9]?) ([a-z]+) using ([1-9][0-9]? [a-z]+(?:, ?[1-9][0-9]? [a-z]+){0,7})")


@dataclass(frozen=True, slots=True)
class Job:
    """One step of a plan: get `n` of a base item, or craft an item once."""

    verb: str
    n: int
    item: str

    @property
    def action(self) -> str:
        """Its text."""
        return f"get {self.n} {self.item}" if self.verb == "get" else RECIPES[self.item].command(self.item)


def plan(target: str, held: Mapping[str, int]) -> list[Job]:
    """The jobs that make one `target` out of what is held, each base item got in one go per use."""
    stock, jobs = Counter(held), list[Job]()

    def make(item: str, wanted: int) -> None:
        lacking = wanted - stock[item]
        if lacking <= 0:
            return
        if item in BASE:
            jobs.append(Job("get", lacking, item))
            stock[item] += lacking
            return
        recipe = RECIPES[item]
        batches = -(-lacking // recipe.makes)
        for part, n in recipe.needs.items():
            make(part, n * batches)
        for _ in range(batches):
            jobs.append(Job("craft", recipe.makes, item))
            stock.subtract(recipe.needs)
            stock[item] += recipe.makes

    make(target, 1)
    return jobs


def _needed(item: str) -> list[str]:
    """The items whose recipes lead to `item`, itself included."""
    if item in BASE:
        return []
    return list(dict.fromkeys([item, *(more for part in RECIPES[item].needs for more in _needed(part))]))


@dataclass(frozen=True, slots=True)
class Goal:
    """One task: what to craft, the recipes on display in order, what is in hand."""

    target: str
    shown: tuple[str, ...]
    stock: tuple[tuple[str, int], ...]

    def text(self) -> str:
        """The first observation."""
        commands = "\n".join(RECIPES[item].command(item) for item in self.shown)
        hand = "".join(f" You have {n} {item}." for item, n in self.stock)
        return f"Crafting commands:\n{commands}\n\nGoal: craft {self.target}.{hand}"


@functools.cache
def tasks() -> tuple[Goal, ...]:
    """Distinct tasks in a fixed random order."""
    rng, found = random.Random("textcraft"), dict[str, Goal]()
    while len(found) < COUNT:
        target = rng.choice(TARGETS)
        shown = _needed(target)
        shown += rng.sample([item for item in RECIPES if item not in shown], max(1, rng.randint(4, 6) - len(shown)))
        rng.shuffle(shown)
        stock: tuple[tuple[str, int], ...] = ()
        jobs = plan(target, {})
        if rng.random() < 0.3:
            part = rng.choice(sorted({job.item for job in jobs if job.item != target}))
            stock = ((part, rng.randint(1, 3)),)
        goal = Goal(target, tuple(shown), stock)
        if len(plan(target, dict(stock))) >= 3:
            found.setdefault(goal.text(), goal)
    return tuple(found.values())


class TextCraft:
    """The simulator: reward 1 and done when the target is crafted."""

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        self._goal = task_at(tasks(), index, "textcraft")
        self._held = Counter(dict(self._goal.stock))
        self._last: Job | None = None
        self._steps, self._failed, self._mistakes, self._checks, self._done = 0, False, 0, 0, False
        self._wasted = False
        return Opening(INSTRUCTION, self._goal.text())

    def step(self, action: str) -> StepResult:
        """Plays `get N ITEM`, `craft N ITEM using N PART, ...` (the command as displayed) or `inventory`."""
        if self._done:
            return StepResult("The task has finished.", 1.0, True)
        action = " ".join(action.split())
        due = plan(self._goal.target, self._held)[0]
        before = self._last
        self._steps, self._failed, self._last = self._steps + 1, False, None
        self._wasted = action != due.action
        got, crafted = _GET.fullmatch(action), _CRAFT.fullmatch(action)
        if action == "inventory":
            self._checks += 1
            self._last = before
            return StepResult(self._inventory(), 0.0, False)
        if got:
            text = self._get(int(got[1]), got[2])
        elif crafted:
            text = self._craft(int(crafted[1]), crafted[2], crafted[3])
        else:
            text, self._failed = "Could not execute this.", True
        if self._last != due:
            self._mistakes += 1
            self._failed |= self._last is not None and self._last.item == due.item and self._last.n < due.n
        return StepResult(text, float(self._done), self._done)

    def expert(self, rng: random.Random) -> Decision:
        """Follows the plan; sometimes looks at the inventory, and in some episodes gets too few or crafts too soon."""
        job, category = self._situation()
        if category is None and self._checks == 0 and rng.random() < 0.5:
            return Decision(rng.choice(_CHECK), "inventory")
        if category in _SLIPS and not self._mistakes and rng.random() < 0.07:
            return Decision(self._say(rng, job, category), self._wrong(rng, job))
        return self._decide(rng, job, category)

    def detour(self, rng: random.Random, share: float) -> Decision | None:
        """A look at the inventory, an item that nothing needs, or the target too soon; never two in a row."""
        job, category = self._situation()
        if self._wasted or not habitual(rng, share, 1, job.verb, job.item, self._goal.target):
            return None
        kind = random.Random(f"{job.action} for {self._goal.target}")  # the same each time
        needed = {one.item for one in plan(self._goal.target, {})}
        spare = sorted({part for item in self._goal.shown for part in RECIPES[item].needs} & BASE - needed)
        action, drawn = "inventory", kind.random()
        if drawn < 0.4 and spare:
            action = f"get {kind.randint(1, 4)} {kind.choice(spare)}"
        elif drawn < 0.7 and job.item != self._goal.target:
            action = RECIPES[self._goal.target].command(self._goal.target)
        thought = rng.choice(_CHECK) if action == "inventory" else self._say(rng, job, category)
        return Decision(thought, action)

    def novice(self, rng: random.Random) -> Decision:
        """Knows the obvious next jobs; with many items it gets wrong amounts, crafts too soon and checks too often."""
        job, category = self._situation()
        decision = self._decide(rng, job, category)
        decision = replace(decision, thought=self._say(rng, job, any_category(rng, category)))
        if category is None or not errs(rng, 0.3, job.verb, job.item, self._goal.target):
            return decision
        rng = random.Random(job.action)  # the same mistake each time
        if rng.random() < 0.2:
            return Decision(rng.choice(_CHECK), "inventory", category, decision.weight)
        return Decision(decision.thought, self._wrong(rng, job), category, decision.weight)

    def _get(self, n: int, item: str) -> str:
        if item not in BASE:
            self._failed = True
            return f"Could not find {item}" if item in RECIPES else "Could not find this."
        self._held[item] += n
        self._last = Job("get", n, item)
        return f"Got {n} {item}"

    def _craft(self, n: int, item: str, parts: str) -> str:
        recipe = RECIPES[item] if item in self._goal.shown else None
        given = {part: int(count) for count, part in (pair.split() for pair in parts.split(","))}
        self._failed = True
        if recipe is None or n != recipe.makes or given != recipe.needs:
            return "Could not find a command for this."
        if any(self._held[part] < count for part, count in recipe.needs.items()):
            return f"Could not find enough items to craft {item}"
        self._held.subtract(recipe.needs)
        self._held[item] += n
        self._last, self._failed = Job("craft", n, item), False
        self._done = item == self._goal.target
        return f"Crafted {n} {item}"

    def _inventory(self) -> str:
        held = " ".join(f"[{item}] ({n})" for item, n in self._held.items() if n)
        return f"Inventory: {held or 'You have nothing.'}"

    def _situation(self) -> tuple[Job, Category | None]:
        """The job that is due and, if it is a decision, its category.

        Getting a single item is obvious, and so are crafting the same thing again and crafting a part from the only
        item that it needs, just got.
        """
        jobs = plan(self._goal.target, self._held)
        job = jobs[0] if jobs else Job("craft", RECIPES[self._goal.target].makes, self._goal.target)
        if self._failed:
            return job, Category.SELF_CORRECTION
        if not self._steps:
            return job, Category.PLAN_CREATION
        if job == self._last or (job.verb == "get" and job.n == 1):
            return job, None
        is_part = job.verb == "craft" and job.item != self._goal.target
        if is_part and self._last and self._last.verb == "get" and list(RECIPES[job.item].needs) == [self._last.item]:
            return job, None
        return job, Category.CRITICAL_OBSERVATION if job.verb == "get" else Category.CRITICAL_ACTION

    def _wrong(self, rng: random.Random, job: Job) -> str:
        """A mistake in place of a job: too few, another item, or the target too soon."""
        target = RECIPES[self._goal.target].command(self._goal.target)
        if job.verb == "get" and job.n > 1 and rng.random() < 0.5:
            return f"get 1 {job.item}"
        if job.action != target:
            return target
        return f"get 1 {rng.choice(sorted(RECIPES[self._goal.target].needs))}"

    def _decide(self, rng: random.Random, job: Job, category: Category | None) -> Decision:
        # Every kind of job reaches the top somewhere: a policy taught gathering alone would gather for ever.
        return Decision(self._say(rng, job, category), job.action, category, 0.3 + 0.7 * rng.random())

    def _say(self, rng: random.Random, job: Job, category: Category | None) -> str:
        return rng.choice(_SAY[category]).format(target=self._goal.target, n=job.n, item=job.item)


_SLIPS = (Category.PLAN_CREATION, Category.CRITICAL_OBSERVATION, Category.CRITICAL_ACTION)


SPEC = EnvironmentSpec(
    *("textcraft", "in", 20, "success", "single"),
    instruction=INSTRUCTION,
    simulator=TextCraft,
    quick=True,
    n_train=500,
    n_test=100,
    names_task=r"Goal: .*",  # the recipes beside those that lead there are drawn anew by each server
    dialect=Dialect(create_body={}, reset_fields=("id", "observation", "done", "reward")),
    agentgym="textcraft",
)
