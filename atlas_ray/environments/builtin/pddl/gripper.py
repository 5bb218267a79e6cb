"""Gripper: a robot with two arms carries balls between rooms. Problems and expert."""

from __future__ import annotations

import random

from atlas_ray.environments.builtin.pddl.problem import Advice, Problem, having, pairs
from atlas_ray.environments.builtin.pddl.strips import Fact, State

ARMS = ("left", "right")
SLIPS = frozenset({"move", "drop"})  # what an expert may do wrongly and soon undo


def problem(rng: random.Random) -> Problem:
    """Three to five balls in two to four rooms, most of them in a wrong one."""
    rooms = [f"room{letter}" for letter in "abcd"[: rng.randint(2, 4)]]
    balls = [f"ball{i}" for i in range(1, rng.randint(3, 5) + 1)]
    at = {ball: rng.choice(rooms) for ball in balls}
    goal = {ball: rng.choice([room for room in rooms if room != at[ball]]) for ball in balls}
    facts: set[Fact] = {("at", ball, room) for ball, room in at.items()}
    facts |= {("free", arm) for arm in ARMS} | {("at-robby", rng.choice(rooms))}
    objects = dict.fromkeys(rooms, "room") | dict.fromkeys(balls, "ball") | dict.fromkeys(ARMS, "arm")
    return Problem("gripper", objects, frozenset(facts), tuple(("at", ball, room) for ball, room in goal.items()))


def advise(state: State, task: Problem) -> Advice:
    """Drop what belongs here, take what does not, else go where the load belongs, else to the next load."""
    here, at, carried = having(state, "at-robby")[0], pairs(state, "at"), pairs(state, "carry")
    goal = {ball: room for _, ball, room in task.goal}
    for arm, ball in sorted(carried.items()):
        if goal.get(ball, here) == here:
            return Advice(("drop", ball, here, arm), f"{ball} belongs in {here}", "goal")
    stray = [ball for ball in sorted(at) if goal.get(ball, at[ball]) != at[ball]]
    free = having(state, "free")
    local = [ball for ball in stray if at[ball] == here]
    if free and local:
        load = {goal[ball] for ball in carried.values()}
        ball = min(local, key=lambda ball: (goal[ball] not in load, ball))
        why = f"{ball} is in {here} and belongs in {goal[ball]}"
        return Advice(("pick", ball, here, free[0]), why, "routine" if carried else "obstacle")
    if carried:
        ball = carried[min(carried)]
        return Advice(("move", here, goal[ball]), f"{ball} belongs in {goal[ball]}")
    rooms = sorted({at[ball] for ball in stray})
    room = max(rooms, key=lambda room: sum(at[ball] == room for ball in stray))
    return Advice(
        ("move", here, room), f"{sum(at[b] == room for b in stray)} of the balls to carry are in {room}", "goal"
    )
