"""Maze: walk to the goal of one fixed layout, in AgentGym's manner (shortened texts, the same actions).

A cell is (row, column), both 1..8. A task is a start and one of four goals, 4 to 12 moves apart.
"""

from __future__ import annotations

import functools
import random
from collections import deque
from dataclasses import replace

from atlas_ray.environments.builtin.scripted import any_category, errs, habitual, task_at
from atlas_ray.environments.http.dialects import Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

INSTRUCTION = (
    "You walk in a maze. Reach the goal with move up, move down, move left and move right. "
    "Answer with a Thought: line and an Action: line."
)

Cell = tuple[int, int]

LAYOUT = """\
#################
#     #     #   #
# # ##### ##### #
# #   #   #     #
# # ### ### #####
# #         #   #
# # ### ### ### #
# # # #   #   # #
### # # # # # # #
#     # #   #   #
### # # # # # ###
# #   # # # #   #
# # # ### ##### #
# # #   #     # #
# # # # # # ### #
#   #   #   #   #
#################
"""
GOALS: tuple[Cell, ...] = ((6, 4), (1, 5), (2, 7), (5, 1))
SHORTEST, LONGEST = 4, 12
STEP_LIMIT = 50

MOVES: dict[str, Cell] = {"right": (0, 1), "left": (0, -1), "up": (-1, 0), "down": (1, 0)}

_SAY = {
    Category.PLAN_CREATION: (
        "To reach the goal I start {way}.",
        "The plan is to go {way} first.",
        "The goal is far, so I start {way}.",
    ),
    Category.CRITICAL_ACTION: (
        "The way to the goal is {way} here.",
        "I can choose here, the goal is {way}.",
        "From here I have to go {way}.",
    ),
    Category.CRITICAL_OBSERVATION: ("I can see the goal {way}.", "The goal is in sight, so I go {way}."),
    Category.SELF_CORRECTION: ("That was wrong, so I go {way}.", "I went wrong and have to go {way}."),
    None: ("The only way is {way}.", "I can only go {way}.", "I go on {way}."),
}


def _read_layout(drawing: str) -> dict[Cell, dict[str, Cell]]:
    """The ways out of each cell; rooms stand at the odd rows and columns of the drawing, doors between them."""
    rows = drawing.splitlines()
    ways: dict[Cell, dict[str, Cell]] = {}
    for row in range(1, len(rows) // 2 + 1):
        for column in range(1, len(rows[0]) // 2 + 1):
            ways[row, column] = {
                way: (row + down, column + right)
                for way, (down, right) in MOVES.items()
                if rows[2 * row - 1 + down][2 * column - 1 + right] == " "
            }
    return ways


WAYS = _read_layout(LAYOUT)


def _distances(goal: Cell, blocked: Cell | None = None) -> dict[Cell, int]:
    """Moves to `goal` from each cell that reaches it without crossing `blocked`."""
    found, queue = {goal: 0}, deque([goal])
    while queue:
        cell = queue.popleft()
        for neighbour in WAYS[cell].values():
            if neighbour not in found and neighbour != blocked:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


@functools.cache
def distances(goal: Cell) -> dict[Cell, int]:
    """Moves to `goal` from each cell."""
    return _distances(goal)


@functools.cache
def detour(goal: Cell, cell: Cell, way: str) -> int:
    """Extra moves of going `way` from `cell` and not turning round at once: by another route, or out of a dead end."""
    ahead = WAYS[cell][way]
    round_about = _distances(goal, blocked=cell) if cell != goal else {}
    if ahead in round_about:
        return 1 + round_about[ahead] - distances(goal)[cell]
    return 2 * len(_distances(ahead, blocked=cell))


@functools.cache
def _straight(cell: Cell, way: str) -> frozenset[Cell]:
    """The cells seen from `cell` looking one way."""
    seen: set[Cell] = set()
    while way in WAYS[cell]:
        cell = WAYS[cell][way]
        seen.add(cell)
    return frozenset(seen)


@functools.cache
def tasks() -> tuple[tuple[Cell, Cell], ...]:
    """All (start, goal) pairs within reach, in a fixed random order."""
    pairs = [(cell, goal) for goal in GOALS for cell, far in distances(goal).items() if SHORTEST <= far <= LONGEST]
    random.Random("maze").shuffle(pairs)
    return tuple(pairs)


class Maze:
    """The simulator: reward 1 and done at the goal, -1 and done beyond 50 steps, else 0."""

    available_actions = tuple(f"move {way}" for way in MOVES)

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        start, self._goal = task_at(tasks(), index, "maze")
        self._trail, self._steps = [start], 0
        self._end: StepResult | None = None
        return Opening(INSTRUCTION, self._observe())

    def step(self, action: str) -> StepResult:
        """Moves; a wall or nonsense leaves everything as it is (AgentGym's manner)."""
        if self._end:
            return self._end
        self._steps += 1
        verb, _, way = action.strip().lower().partition(" ")
        if verb == "move" and way in WAYS[self._at]:
            self._trail.append(WAYS[self._at][way])
        if self._at == self._goal:
            self._end = StepResult("Success", 1.0, True)
        elif self._steps > STEP_LIMIT:
            self._end = StepResult("Failed", -1.0, True)
        return self._end or StepResult(self._observe(), 0.0, False)

    def expert(self, rng: random.Random) -> Decision:
        """The shortest way; in some episodes one wrong turn at a junction, corrected at once."""
        category, right, wrong = self._situation()
        if category is Category.CRITICAL_ACTION and not self._has_slipped() and rng.random() < 0.1:
            return Decision(_say(rng, category, slip := rng.choice(wrong)), f"move {slip}")
        return self._decide(rng, right, category, wrong)

    def detour(self, rng: random.Random, share: float) -> Decision | None:
        """A turn that leads away from the goal, at a cell that was not met before."""
        category, right, wrong = self._situation()
        others = wrong or [way for way in WAYS[self._at] if way != right]
        lost = category is Category.SELF_CORRECTION or self._at in self._trail[:-1]
        if lost or not others or not habitual(rng, share, 2, self._at, self._goal):
            return None
        way = min(others, key=self._as_the_crow_flies)
        return Decision(_say(rng, category, way), f"move {way}")

    def novice(self, rng: random.Random) -> Decision:
        """Walks corridors well; at many choices takes the wrong way that looks nearest to the goal."""
        category, right, wrong = self._situation()
        if wrong and category is not None and errs(rng, 0.3, self._at, self._goal):
            right = min(wrong, key=self._as_the_crow_flies)
        return replace(self._decide(rng, right, category, wrong), thought=_say(rng, any_category(rng, category), right))

    @property
    def _at(self) -> Cell:
        return self._trail[-1]

    def _observe(self) -> str:
        ways = ", ".join(way for way in MOVES if way in WAYS[self._at])
        return f"Goal at {self._goal[0]}, {self._goal[1]}. You are at {self._at[0]}, {self._at[1]}. Ways: {ways}."

    def _as_the_crow_flies(self, way: str) -> int:
        row, column = WAYS[self._at][way]
        return abs(row - self._goal[0]) + abs(column - self._goal[1])

    def _has_slipped(self) -> bool:
        far = distances(self._goal)
        return any(far[after] > far[before] for before, after in zip(self._trail, self._trail[1:], strict=False))

    def _situation(self) -> tuple[Category | None, str, list[str]]:
        """What the present cell asks for: the category if it is a decision, the right way, the wrong ways.

        Turning round is never among the wrong ways, nor is a dead end of one cell.
        """
        far, ways = distances(self._goal), WAYS[self._at]
        right = min(ways, key=lambda way: far[ways[way]])
        back = self._trail[-2] if len(self._trail) > 1 else None
        wrong = [way for way, cell in ways.items() if cell != back and detour(self._goal, self._at, way) > 2]
        if back is None:
            return (Category.PLAN_CREATION if wrong else None), right, wrong
        if far[self._at] > far[back]:
            return Category.SELF_CORRECTION, right, wrong
        if not wrong:
            return None, right, wrong
        in_sight = self._goal in _straight(self._at, right) and self._goal not in _straight(back, right)
        return (Category.CRITICAL_OBSERVATION if in_sight else Category.CRITICAL_ACTION), right, wrong

    def _decide(self, rng: random.Random, way: str, category: Category | None, wrong: list[str]) -> Decision:
        cost = max((detour(self._goal, self._at, other) for other in wrong), default=10)
        scale = 0.7 if category is Category.CRITICAL_OBSERVATION else 1.0
        # Decisions of like cost take turns at the top, so that a small budget still sees them all.
        weight = scale * min(cost, 20) / 20 + 0.5 * rng.random()
        return Decision(_say(rng, category, way), f"move {way}", category, weight)


def _say(rng: random.Random, category: Category | None, way: str) -> str:
    return rng.choice(_SAY[category]).format(way=way)


SPEC = EnvironmentSpec(
    *("maze", "in", 15, "success", "first"),
    instruction=INSTRUCTION,
    simulator=Maze,
    quick=True,
    n_train=len(tasks()) - 70,
    n_test=70,
    names_task=r"(?:The goal is|Goal) at .*",  # AgentGym's data tells the rules before it
    dialect=Dialect(prefixed=True, index_key="game", reset_fields=("observation",), closes=False),
    agentgym="lmrlgym",
)
