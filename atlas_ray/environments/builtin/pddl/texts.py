"""Facts and actions in words, and words as actions, in AgentBoard's manner."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from atlas_ray.environments.builtin.pddl.strips import Fact

INSTRUCTION = """\
You solve planning problems. The first observation names the actions of the problem, what each needs and does, the \
goal and the state. An action whose conditions do not hold takes no effect. In every state you may also use "check \
valid actions", which lists what is possible, and "look around", which tells the whole state.
Answer in this form:
Thought: your thought
Action: your action"""

INVALID = "The action is not valid and therefore takes no effect. Please check valid actions."
SATISFIED = "The goal is satisfied."

RULES = {
    "gripper": """\
A robot with two arms carries balls between rooms.
move <room1> <room2>: go from the room you are in to another one.
pick <ball> <room> <arm>: take a ball in the room you are in with a free arm.
drop <ball> <room> <arm>: leave a ball that an arm carries in the room you are in.""",
    "blocksworld": """\
An arm stacks blocks on a table; it holds one block at a time.
pickup <block>: take a clear block from the table with the empty arm.
putdown <block>: put the block that you hold on the table.
stack <block1> <block2>: put the block that you hold on a clear block.
unstack <block1> <block2>: take a clear block off another one with the empty arm.""",
    "barman": """\
A robot with two hands serves drinks from dispensers, shot glasses and a shaker.
grasp <hand> <container>: take a container from the table with an empty hand.
leave <hand> <container>: put what the hand holds on the table.
fill-shot <shot> <ingredient> <hand1> <hand2> <dispenser>: fill an empty and clean shot in hand1; hand2 must be empty.
refill-shot <shot> <ingredient> <hand1> <hand2> <dispenser>: fill an empty shot again with what it held last.
empty-shot <hand> <shot> <beverage>: pour away what is in a shot.
clean-shot <shot> <beverage> <hand1> <hand2>: clean an empty shot in hand1 of what it held; hand2 must be empty.
pour-shot-to-clean-shaker <shot> <ingredient> <shaker> <hand> <level1> <level2>: into an empty and clean shaker.
pour-shot-to-used-shaker <shot> <ingredient> <shaker> <hand> <level1> <level2>: into a shaker that is not shaked yet.
empty-shaker <hand> <shaker> <cocktail> <level1> <level2>: pour away a cocktail; level2 is the empty level.
clean-shaker <hand1> <hand2> <shaker>: clean an empty shaker in hand1; hand2 must be empty.
shake <cocktail> <ingredient1> <ingredient2> <shaker> <hand1> <hand2>: mix both parts; hand2 must be empty.
pour-shaker-to-shot <beverage> <shot> <hand> <shaker> <level1> <level2>: into an empty and clean shot.""",
    "tyreworld": """\
Flat tyres on the hubs are replaced by intact ones out of the boot.
open <container>, close <container>: the boot must be closed, or open.
fetch <thing> <container>, put-away <thing> <container>: the boot must be open.
loosen <nut> <hub>, tighten <nut> <hub>: with the wrench, the hub on the ground.
jack-up <hub>: with the jack, which stays there; jack-down <hub>: gives the jack back.
undo <nut> <hub>: take a loose nut off with the wrench, the hub off the ground.
do-up <nut> <hub>: put a nut on with the wrench, the hub off the ground.
remove-wheel <wheel> <hub>, put-on-wheel <wheel> <hub>: no nut on the hub, the hub off the ground.
inflate <wheel>: with the pump; the wheel must be intact.""",
}

# Those domains tell after an action only what it made true.
DELTAS = frozenset({"barman", "tyreworld"})

# AgentBoard's files have some facts of their own: what is a room, ball or gripper, and `isopen`.
_FACTS = {
    "gripper": {
        "at-robby": "Robby is at {}.",
        "at": "{} is at {}.",
        "free": "{} is free.",
        "carry": "{} is carrying {}.",
        "room": "{} is a room.",
        "ball": "{} is a ball.",
        "gripper": "{} is a gripper.",
    },
    "blocksworld": {
        "on": "{} is on {}.",
        "on-table": "{} is on the table.",
        "clear": "{} is clear.",
        "holding": "You are holding {}.",
        "arm-empty": "Your arm is empty.",
    },
    "barman": {
        "ontable": "{} is on the table.",
        "holding": "Your {} hand is holding {}.",
        "handempty": "Your {} hand is empty.",
        "empty": "{} is empty.",
        "contains": "{} contains {}.",
        "clean": "{} is clean.",
        "used": "{} is used with {}.",
        "dispenses": "{} dispenses {}.",
        "shaker-empty-level": "{} is at empty level {}.",
        "shaker-level": "{} is at level {}.",
        "next": "Level {} is next to level {}.",
        "unshaked": "{} is unshaked.",
        "shaked": "{} is shaked.",
        "cocktail-part1": "{} part1 ingredient is {}.",
        "cocktail-part2": "{} part2 ingredient is {}.",
    },
    "tyreworld": {
        "open": "{} is open.",
        "isopen": "{} is open.",
        "closed": "{} is closed.",
        "unlocked": "{} is unlocked.",
        "have": "You have {}.",
        "in": "{} is in {}.",
        "loose": "The nut {} on the hub {} is loose.",
        "tight": "The nut {} on the hub {} is tight.",
        "on-ground": "Hub {} is on the ground.",
        "not-on-ground": "Hub {} is not on the ground.",
        "fastened": "Hub {} is fastened.",
        "unfastened": "Hub {} is unfastened.",
        "free": "Hub {} is free.",
        "on": "{} is on {}.",
        "inflated": "Wheel {} is inflated.",
        "not-inflated": "Wheel {} is not inflated.",
        "intact": "Wheel {} is intact.",
    },
}


def fact_text(domain: str, fact: Fact) -> str:
    """A fact as a sentence."""
    text = _FACTS[domain][fact[0]].format(*fact[1:])
    return text[0].upper() + text[1:]


def state_text(domain: str, facts: Iterable[Fact]) -> str:
    """Facts as sentences, in the order of the alphabet."""
    return " ".join(sorted(fact_text(domain, fact) for fact in facts))


def goal_text(domain: str, goal: Iterable[Fact]) -> str:
    """The sentence that names a goal."""
    return "The goal is to satisfy the following conditions: " + " ".join(fact_text(domain, fact) for fact in goal)


def opening_text(domain: str, goal: str, initial: Iterable[Fact]) -> str:
    """The first observation: the rules, the goal and the whole state."""
    return f"{RULES[domain]}\n{goal}\n{state_text(domain, initial)}"


def action_text(key: Fact) -> str:
    """An action in words: its name and its objects."""
    return " ".join(key)


def read_action(text: str, names: Mapping[str, int], objects: Iterable[str]) -> Fact | None:
    """The action that a text means: the first word that names one, and the first objects in it; None where that fails.

    Args:
        names: Number of objects of each action.
        objects: What may be named.
    """
    words = re.findall(r"[a-z0-9-]+", text[:1000].lower())
    name = next((word for word in words if word in names), None)
    known = set(objects)
    found = [word for word in words if word in known]
    if name is None or len(found) < names[name]:
        return None
    return (name, *found[: names[name]])
