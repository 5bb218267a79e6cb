"""The stories' maps and what leads through them. Flows in: a story's name and variant; flows out: its milestones.

The texts are the stories' own (`stories/*.inf`, compiled to `*.z5`); a variant says what is to be looked for (0 to 4)
and who asks for it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from atlas_ray.types import Category

VARIANTS = 25
SEEN, ACT = Category.CRITICAL_OBSERVATION, Category.CRITICAL_ACTION


@dataclass(frozen=True, slots=True)
class Milestone:
    """Something that has to be done on the way.

    Attributes:
        room: Where.
        command: By which words.
        heard: What the story answers then; it is done once that was heard after a command on `about`.
        about: The last word of what the command is on, empty where the answer alone is enough.
        goal: The subgoal that is reached with it, in words, or None.
        why: What speaks for it, in the middle of a sentence.
        category: What kind of decision it is, or None where it is obvious.
        wrong: What somebody would say who decides wrongly.
    """

    room: str
    command: str
    heard: str
    about: str = ""
    goal: str | None = None
    why: str = ""
    category: Category | None = None
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Story:
    """A variant of a story: its ways by room and direction, and its milestones in order."""

    ways: Mapping[str, Mapping[str, str]]
    milestones: tuple[Milestone, ...]

    def route(self, start: str, goal: str) -> str | None:
        """The first direction of the shortest way; None where there is none."""
        first: dict[str, str] = {}
        rooms = [start]
        for room in rooms:
            for way, other in self.ways.get(room, {}).items():
                if other not in first and other != start:
                    first[other] = first.get(room, way)
                    rooms.append(other)
        return first.get(goal)


def _others(things: tuple[str, ...], choice: int, form: str) -> tuple[str, ...]:
    return tuple(form.format(thing) for n, thing in enumerate(things) if n != choice)


def _lighthouse(choice: int, who: int) -> Story:
    places = ("net", "boat", "barrel", "crate", "pot")
    return Story(
        {
            "Cove": {"north": "Yard"},
            "Yard": {"south": "Cove", "east": "Cottage", "north": "Tower"},
            "Cottage": {"west": "Yard"},
            "Tower": {"south": "Yard", "up": "Lamp Room"},
            "Lamp Room": {"down": "Tower"},
        },
        (
            Milestone(
                *("Cove", f"look under {places[choice]}", "You find an iron key", "", "find the tower's key"),
                *(f"the key used to be hidden under the {places[choice]}", SEEN),
                _others(places, choice, "look under {}"),
            ),
            Milestone("Cove", "take key", "Taken.", "key", None, "I shall need the key"),
            Milestone(
                *("Yard", "unlock door with key", "You unlock", "", None, "the door is locked and I hold its key", ACT),
                ("open door", "push door"),
            ),
            Milestone("Yard", "open door", "You open", "", "open the tower", "the door is unlocked but shut"),
            Milestone("Cottage", "take oil", "Taken.", "oil", "get the oil", "a lamp burns oil, and here is some"),
            Milestone(
                *("Lamp Room", "fill lamp", "You pour the oil", "", "fill the lamp"),
                *("a dry lamp does not burn, so the oil has to go in first", ACT, ("light lamp", "rub lamp")),
            ),
            Milestone("Lamp Room", "light lamp", "The lamp flares", "", "light the lamp", "it is full now", ACT),
        ),
    )


def _archive(choice: int, who: int) -> Story:
    shelves = ("red", "green", "black", "white", "gold")
    number = 3 + (choice * 7 + who * 5) % 20
    return Story(
        {
            "Reading Room": {"north": "Stacks", "east": "Corridor"},
            "Stacks": {"south": "Reading Room"},
            "Corridor": {"west": "Reading Room", "east": "Vault"},
            "Vault": {"west": "Corridor"},
        },
        (
            Milestone(
                *("Stacks", f"search {shelves[choice]} shelf", "you find the ledger", "", "find the ledger"),
                *(f"the ledger is kept on the {shelves[choice]} shelf", SEEN),
                _others(shelves, choice, "search {} shelf"),
            ),
            Milestone("Stacks", "take ledger", "Taken.", "ledger", None, "I want to read it"),
            Milestone(
                *("Stacks", "read ledger", "the vault's number is", "", "learn the vault's number"),
                *("the number that I need stands in it", SEEN, ("look", "inventory")),
            ),
            Milestone(
                *("Corridor", f"set dial to {number}", "the vault opens", "", "open the vault"),
                *(f"the ledger says {number}", ACT),
                tuple(f"set dial to {n}" for n in (1, 2, 24, 25)),
            ),
            Milestone("Vault", "take seal", "Taken.", "seal", "get the seal", "the seal is what the clerk needs"),
            Milestone(
                *("Reading Room", "give seal to clerk", "stamps the paper", "", "bring the clerk the seal"),
                *("the clerk waits for it", ACT, ("examine clerk", "examine seal")),
            ),
        ),
    )


def _greenhouse(choice: int, who: int) -> Story:
    herbs = ("sage", "mint", "thyme", "rue", "dill")
    herb = herbs[choice]
    return Story(
        {
            "Kitchen": {"east": "Garden"},
            "Garden": {"west": "Kitchen", "north": "Well"},
            "Well": {"south": "Garden"},
        },
        (
            Milestone("Kitchen", "take kettle", "Taken.", "kettle", None, "herb and water go into it"),
            Milestone(
                *("Garden", f"take {herb}", f"You pick some {herb}", "", f"pick the {herb}"),
                *(f"the tonic is of {herb}", SEEN, _others(herbs, choice, "examine {}")),
            ),
            Milestone(
                *("Well", "fill kettle", "You fill the kettle", "", "fill the kettle"),
                *("the tonic needs water, and here is the well", ACT, ("examine bucket", "take bucket")),
            ),
            Milestone(
                *("Kitchen", f"put {herb} in kettle", f"You drop the {herb}", "", f"put the {herb} in"),
                *(f"the {herb} has to boil with the water", ACT, ("switch on stove", "examine kettle")),
            ),
            Milestone("Kitchen", "put kettle on stove", "You put", "stove", None, "everything is in the kettle"),
            Milestone(
                "Kitchen", "switch on stove", "The water boils", "", "boil the tonic", "only heat is missing", ACT
            ),
        ),
    )


def _railway(choice: int, who: int) -> Story:
    levers = ("red", "blue", "brass", "grey", "green")
    return Story(
        {
            "Platform": {"west": "Office", "up": "Signal Box"},
            "Office": {"east": "Platform"},
            "Signal Box": {"down": "Platform"},
        },
        (
            Milestone("Office", "take flag", "Taken.", "flag", "get the flag", "somebody has to wave it, so I will"),
            Milestone("Office", "take ticket", "Taken.", "ticket", None, "nobody travels without one"),
            Milestone(
                *("Signal Box", f"pull {levers[choice]} lever", "a signal turns green", "", "set the signal"),
                *(f"the train stops only after the {levers[choice]} one", SEEN),
                _others(levers, choice, "pull {} lever"),
            ),
            Milestone(
                *("Platform", "wave flag", "stops with a sigh", "", "stop the train"),
                *("the signal is green, now they must see the flag", ACT, ("wait", "examine flag")),
            ),
            Milestone("Platform", "enter train", "climb aboard", "", None, "the train waits for me"),
            Milestone(
                *("Carriage", "show ticket to guard", "The guard nods", "", "ride off"),
                *("the guard wants to see it", ACT, ("examine guard", "wait")),
            ),
        ),
    )


STORIES = {"lighthouse": _lighthouse, "archive": _archive, "greenhouse": _greenhouse, "railway": _railway}


@functools.cache
def story(name: str, variant: int) -> Story:
    """A story's variant.

    Args:
        name: A key of `STORIES`.
        variant: From 0 to `VARIANTS` - 1.
    """
    return STORIES[name](variant % 5, variant // 5)
