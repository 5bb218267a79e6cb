"""Tyreworld: flat tyres are replaced by intact ones out of the boot. Problems and expert."""

from __future__ import annotations

import random

from atlas_ray.environments.builtin.pddl.problem import Advice, Problem, pairs
from atlas_ray.environments.builtin.pddl.strips import Fact, State, load_domain

BOOT = "boot"
TOOLS = ("wrench", "jack", "pump")
SLIPS = frozenset({"fetch", "put-away", "close"})


def problem(rng: random.Random) -> Problem:
    """One or two wheels to change, somewhere on the way; the goal tells what must hold in the end."""
    hubs = range(1, rng.randint(1, 2) + 1)
    facts: set[Fact] = {("in", tool, BOOT) for tool in TOOLS} | {("closed", BOOT), ("unlocked", BOOT)}
    objects = dict.fromkeys(TOOLS, "tool") | {BOOT: "container"}
    goal: list[Fact] = []
    for i in hubs:
        hub, nut, flat, spare = f"hub{i}", f"nut{i}", f"w{i}", f"r{i}"
        objects |= {hub: "hub", nut: "nut", flat: "wheel", spare: "wheel"}
        facts |= {("on", flat, hub), ("tight", nut, hub), ("on-ground", hub), ("fastened", hub), ("in", spare, BOOT)}
        facts |= {("intact", spare), ("not-inflated", spare)}
        goal += [("on", spare, hub), ("tight", nut, hub), ("inflated", spare)]
        if rng.random() < 0.5:
            goal.append(("in", flat, BOOT))
    goal += [("in", tool, BOOT) for tool in TOOLS if rng.random() < 0.6]
    if rng.random() < 0.6:
        goal.append(("closed", BOOT))
    state, schemas = frozenset(facts), load_domain("tyreworld").schemas
    task = Problem("tyreworld", objects, state, tuple(goal))
    for _ in range(rng.randint(0, 8) + 6 * (len(hubs) - 1)):
        key = advise(state, task).key
        state = schemas[key[0]].bind(key[1:]).after(state)
    return Problem("tyreworld", objects, state, tuple(goal))


def advise(state: State, task: Problem) -> Advice:
    """Change one wheel after the other, then put things away and close the boot."""
    car = _Car(state, task)
    for fact in task.goal:
        if fact[0] == "on" and (step := car.mount(fact[1], fact[2])):
            return step
    for fact in task.goal:
        if fact[0] == "in" and fact not in state and (step := car.stow(fact[1])):
            return step
    if ("closed", BOOT) in task.goal and ("open", BOOT) in state:
        return Advice(("close", BOOT), f"all that belongs in the {BOOT} is there", "goal")
    return Advice(("open", BOOT), "nothing is left to do")


class _Car:
    """A state, seen as a mechanic sees it; every method answers with the first step, or None where all is done."""

    def __init__(self, state: State, task: Problem) -> None:
        self.state, self.task = state, task
        self.on = {hub: wheel for wheel, hub in pairs(state, "on").items()}

    def mount(self, wheel: str, hub: str) -> Advice | None:
        """A wheel on its hub: inflated, its nut tight, the hub on the ground."""
        nut = f"nut{hub[3:]}"
        if self.on.get(hub) != wheel:
            if hub in self.on or ("fastened", hub) in self.state:
                return self.strip(hub)
            return (
                self.obtain(wheel)
                or self.raise_hub(hub)
                or Advice(("put-on-wheel", wheel, hub), f"{hub} is free for {wheel}", "goal")
            )
        if ("unfastened", hub) in self.state:
            return (
                self.raise_hub(hub)
                or self.obtain("wrench")
                or self.obtain(nut)
                or Advice(("do-up", nut, hub), f"{wheel} is on {hub} and has to be fastened", "goal")
            )
        if ("not-on-ground", hub) in self.state:
            return Advice(("jack-down", hub), f"{hub} has to be on the ground for the nut")
        if ("loose", nut, hub) in self.state:
            return self.obtain("wrench") or Advice(("tighten", nut, hub), f"{nut} is still loose", "goal")
        if ("inflated", wheel) in self.state:
            return None
        return self.obtain("pump") or Advice(("inflate", wheel), f"{wheel} is not inflated", "obstacle")

    def strip(self, hub: str) -> Advice:
        """The nut and the wheel off a hub."""
        nut = f"nut{hub[3:]}"
        if ("tight", nut, hub) in self.state:
            if ("not-on-ground", hub) in self.state:
                return Advice(("jack-down", hub), f"{nut} can be loosened on the ground only", "obstacle")
            return self.obtain("wrench") or Advice(("loosen", nut, hub), f"{nut} holds the wheel on {hub}", "goal")
        if step := self.raise_hub(hub):
            return step
        if ("fastened", hub) in self.state:
            return self.obtain("wrench") or Advice(("undo", nut, hub), f"{hub} is off the ground, {nut} can come off")
        return Advice(("remove-wheel", self.on[hub], hub), f"{self.on[hub]} has to make room on {hub}", "goal")

    def raise_hub(self, hub: str) -> Advice | None:
        if ("not-on-ground", hub) in self.state:
            return None
        return self.obtain("jack") or Advice(
            ("jack-up", hub), f"the wheel on {hub} cannot come off on the ground", "obstacle"
        )

    def obtain(self, thing: str) -> Advice | None:
        """A thing in hand, wherever it is."""
        if ("have", thing) in self.state:
            return None
        if ("in", thing, BOOT) in self.state:
            if ("open", BOOT) not in self.state:
                return Advice(("open", BOOT), f"{thing} is in the closed {BOOT}", "obstacle")
            return Advice(("fetch", thing, BOOT), f"{thing} is needed")
        for hub in sorted(self.task.named("hub")):
            if thing == "jack" and ("not-on-ground", hub) in self.state:
                return Advice(("jack-down", hub), f"the jack is under {hub}", "obstacle")
            if self.on.get(hub) == thing:
                return self.strip(hub)
            if ("tight", thing, hub) in self.state:
                return self.obtain("wrench") or Advice(("loosen", thing, hub), f"{thing} is on {hub}", "obstacle")
            if ("loose", thing, hub) in self.state:
                return self.raise_hub(hub) or Advice(("undo", thing, hub), f"{thing} is on {hub}", "obstacle")
        return None

    def stow(self, thing: str) -> Advice | None:
        """A thing back in the boot."""
        if step := self.obtain(thing):
            return step
        if ("open", BOOT) not in self.state:
            return Advice(("open", BOOT), f"{thing} belongs in the {BOOT}", "obstacle")
        return Advice(("put-away", thing, BOOT), f"{thing} belongs in the {BOOT}")
