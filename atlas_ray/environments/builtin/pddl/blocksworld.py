"""Blocksworld: one arm rebuilds towers of blocks. Problems and expert."""

from __future__ import annotations

import itertools
import random

from atlas_ray.environments.builtin.pddl.problem import Advice, Problem, having, pairs
from atlas_ray.environments.builtin.pddl.strips import Fact, State

SLIPS = frozenset({"pickup", "unstack"})


def problem(rng: random.Random) -> Problem:
    """Four to six blocks in random towers; the goal is other towers of all or most of them."""
    blocks = [f"b{i}" for i in range(1, rng.randint(4, 6) + 1)]
    start = _towers(rng, blocks)
    goal: dict[str, str] = {}
    while not goal or goal.items() <= start.items():
        goal = _towers(rng, rng.sample(blocks, len(blocks) - rng.randint(0, 1)))
    facts: set[Fact] = {("on", block, below) for block, below in start.items()} | {("arm-empty",)}
    facts |= {("on-table", block) for block in blocks if block not in start}
    facts |= {("clear", block) for block in blocks if block not in start.values()}
    return Problem(
        "blocksworld",
        dict.fromkeys(blocks, "block"),
        frozenset(facts),
        tuple(("on", block, below) for block, below in sorted(goal.items())),
    )


def advise(state: State, task: Problem) -> Advice:
    """Place each block whose place is ready, else clear the way by taking blocks off misplaced ones."""
    on, clear, held = pairs(state, "on"), set(having(state, "clear")), having(state, "holding")
    goal = {block: below for _, block, below in task.goal}

    def is_well(block: str) -> bool:
        """Whether a block and all below it can stay."""
        below = on.get(block)
        if below is None:
            return block not in goal and block not in held
        meant_for_another = below in goal.values() and goal.get(block) != below
        return goal.get(block, below) == below and not meant_for_another and is_well(below)

    def is_ready(block: str) -> bool:
        """Whether its place can take it."""
        return block in goal and goal[block] in clear and is_well(goal[block])

    if held:
        block = held[0]
        if is_ready(block):
            return Advice(("stack", block, goal[block]), f"{block} belongs on {goal[block]}")
        return Advice(("putdown", block), f"the place of {block} is not ready")
    for block in sorted(clear, key=lambda block: (block not in on, block)):
        if is_ready(block) and on.get(block) != goal[block]:
            return Advice(_take(on, block), f"{block} can go onto {goal[block]} now", "goal")
    tops = [block for block in sorted(clear) if block in on and not is_well(block)]
    if not tops:
        return Advice(_take(on, min(clear)), "nothing is left to do")
    below = on[tops[0]]
    return Advice(("unstack", tops[0], below), f"{tops[0]} is in the way on {below}", "obstacle")


def _take(on: dict[str, str], block: str) -> Fact:
    return ("unstack", block, on[block]) if block in on else ("pickup", block)


def _towers(rng: random.Random, blocks: list[str]) -> dict[str, str]:
    """What each block stands on, blocks on the table left out."""
    order = rng.sample(blocks, len(blocks))
    return {block: below for below, block in itertools.pairwise(order) if rng.random() < 0.65}
