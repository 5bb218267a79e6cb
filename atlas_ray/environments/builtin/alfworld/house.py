"""Seeded households and their tasks, of ALFWorld's six types, made without a simulator of rooms.

Flows in: a task's number; flows out: a `House`: furniture, what lies where, and what is asked for.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Type = Literal["put", "light", "clean", "heat", "cool", "two"]

N_TEST = 200
N_TRAIN = 2420  # the paper's trajectories

# AgentGym's names of the types
TYPES: dict[Type, str] = {
    "put": "pick_and_place_simple",
    "light": "look_at_obj_in_light",
    "clean": "pick_clean_then_place_in_recep",
    "heat": "pick_heat_then_place_in_recep",
    "cool": "pick_cool_then_place_in_recep",
    "two": "pick_two_obj_and_place",
}
# both wordings of each type are ALFWorld's
_SAY: dict[Type, tuple[str, str]] = {
    "put": ("put a {what} in {where}", "put some {what} on {where}"),
    "light": ("look at {what} under the {where}", "examine the {what} with the {where}"),
    "clean": ("put a clean {what} in {where}", "clean some {what} and put it in {where}"),
    "heat": ("put a hot {what} in {where}", "heat some {what} and put it in {where}"),
    "cool": ("put a cool {what} in {where}", "cool some {what} and put it in {where}"),
    "two": ("put two {what} in {where}", "find two {what} and put them in {where}"),
}
OPENABLE = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})
LAMP = "desklamp"
WASHERS = ("sinkbasin",)

# furniture of each kind of room: how many at least and at most
_ROOMS: dict[str, dict[str, tuple[int, int]]] = {
    "kitchen": {
        **{"cabinet": (2, 4), "drawer": (1, 3), "countertop": (1, 3), "shelf": (0, 2), "stoveburner": (1, 3)},
        **{"fridge": (1, 1), "microwave": (1, 1), "sinkbasin": (1, 1), "diningtable": (1, 1), "garbagecan": (1, 1)},
        **{"coffeemachine": (0, 1), "sidetable": (0, 1), "toaster": (0, 1)},
    },
    "living room": {
        **{"sofa": (1, 2), "armchair": (0, 2), "coffeetable": (1, 1), "sidetable": (1, 3), "drawer": (1, 3)},
        **{"shelf": (0, 3), "cabinet": (0, 2), "dresser": (0, 1), "tvstand": (0, 1), "garbagecan": (1, 1)},
        **{"desk": (0, 1), "safe": (0, 1)},
    },
    "bedroom": {
        **{"bed": (1, 1), "desk": (1, 2), "sidetable": (1, 2), "drawer": (1, 4), "shelf": (0, 3), "dresser": (0, 1)},
        **{"armchair": (0, 1), "garbagecan": (1, 1), "laundryhamper": (0, 1), "safe": (0, 1)},
    },
    "bathroom": {
        **{"sinkbasin": (1, 2), "countertop": (1, 2), "cabinet": (1, 4), "toilet": (1, 1), "garbagecan": (1, 1)},
        **{"drawer": (0, 2), "shelf": (0, 2), "bathtubbasin": (0, 1), "toiletpaperhanger": (1, 1)},
        **{"towelholder": (0, 2), "handtowelholder": (0, 2)},
    },
}
# where a thing may be, the likeliest first: what a person knows who enters the room
_EATEN = ("fridge", "countertop", "diningtable", "sidetable", "sinkbasin", "microwave", "garbagecan")
_SET = ("countertop", "diningtable", "cabinet", "sinkbasin", "shelf", "sidetable", "microwave", "fridge")
_TOOL = ("drawer", "countertop", "diningtable", "sinkbasin", "sidetable")
_SMALL = (
    "sidetable",
    "desk",
    "dresser",
    "shelf",
    "coffeetable",
    "drawer",
    "tvstand",
    "sofa",
    "armchair",
    "safe",
    "bed",
)
_READ = ("sidetable", "desk", "coffeetable", "sofa", "bed", "armchair", "shelf", "dresser", "drawer", "tvstand")
_WASH = ("countertop", "sinkbasin", "toilet", "cabinet", "shelf", "drawer", "bathtubbasin", "garbagecan")
PLACES: dict[str, dict[str, tuple[str, ...]]] = {
    "kitchen": {
        **dict.fromkeys(("apple", "tomato", "potato", "lettuce", "egg", "bread"), _EATEN),
        **dict.fromkeys(("bowl", "plate"), _SET),
        "mug": ("coffeemachine", *_SET),
        "cup": _SET,
        **dict.fromkeys(("pan", "pot"), ("stoveburner", "countertop", "cabinet", "diningtable", "sinkbasin", "fridge")),
        **dict.fromkeys(("fork", "knife", "spoon", "spatula", "butterknife"), _TOOL),
        "ladle": _TOOL,
        **dict.fromkeys(("saltshaker", "peppershaker"), ("countertop", "cabinet", "drawer", "diningtable", "shelf")),
        "soapbottle": ("cabinet", "countertop", "drawer", "garbagecan", "sinkbasin"),
        "dishsponge": ("sinkbasin", "countertop", "drawer", "cabinet", "shelf"),
        "winebottle": ("fridge", "countertop", "diningtable", "cabinet", "shelf"),
    },
    "living room": {
        **dict.fromkeys(("keychain", "creditcard", "watch", "remotecontrol", "cellphone"), _SMALL),
        **dict.fromkeys(("book", "newspaper", "laptop"), _READ),
        "pillow": ("sofa", "armchair"),
        **dict.fromkeys(("vase", "statue", "box"), ("shelf", "sidetable", "coffeetable", "dresser", "tvstand", "desk")),
        "tissuebox": ("sidetable", "coffeetable", "drawer", "dresser", "shelf", "garbagecan"),
    },
    "bedroom": {
        **dict.fromkeys(("keychain", "creditcard", "watch", "cellphone", "cd"), _SMALL),
        **dict.fromkeys(("book", "laptop"), _READ),
        **dict.fromkeys(("pen", "pencil"), ("desk", "drawer", "shelf", "sidetable", "dresser", "garbagecan")),
        **dict.fromkeys(("alarmclock", "mug", "bowl"), ("sidetable", "desk", "dresser", "shelf", "drawer")),
        "pillow": ("bed", "armchair"),
        "tissuebox": ("sidetable", "dresser", "desk", "drawer", "garbagecan"),
    },
    "bathroom": {
        **dict.fromkeys(("soapbar", "cloth"), _WASH),
        **dict.fromkeys(
            ("soapbottle", "spraybottle", "candle"), ("countertop", "toilet", "cabinet", "shelf", "drawer")
        ),
        "toiletpaper": ("toiletpaperhanger", "toilet", "cabinet", "drawer", "countertop", "garbagecan"),
        "dishsponge": ("sinkbasin", "bathtubbasin", "cabinet", "countertop"),
        "towel": ("towelholder", "bathtubbasin"),
        "handtowel": ("handtowelholder", "countertop", "cabinet", "sinkbasin"),
    },
}
_LAMPS = ("desk", "sidetable", "dresser", "shelf")
_COLD = (
    "apple",
    "tomato",
    "potato",
    "lettuce",
    "egg",
    "bread",
    "bowl",
    "plate",
    "mug",
    "cup",
    "pan",
    "pot",
    "winebottle",
)
# what may be done to which things, in which rooms
CLEANABLE = frozenset({"apple", "tomato", "potato", "lettuce", "egg", "bowl", "plate", "mug", "cup", "pan", "pot"}) | {
    *("fork", "knife", "spoon", "spatula", "butterknife", "ladle", "soapbar", "cloth", "dishsponge")
}
HEATABLE = frozenset({"apple", "tomato", "potato", "egg", "bread", "mug", "cup", "plate"})
COOLABLE = frozenset({"apple", "tomato", "potato", "lettuce", "egg", "bread", "bowl", "plate", "mug", "cup", "pan"}) | {
    *("pot", "winebottle")
}
_WHERE: dict[Type, tuple[str, ...]] = {
    "put": ("kitchen", "living room", "bedroom", "bathroom"),
    "two": ("kitchen", "living room", "bedroom", "bathroom"),
    "light": ("living room", "bedroom"),
    "clean": ("kitchen", "kitchen", "kitchen", "bathroom"),
    "heat": ("kitchen",),
    "cool": ("kitchen",),
}
_APT: dict[Type, frozenset[str]] = {"clean": CLEANABLE, "heat": HEATABLE, "cool": COOLABLE}
_AWAY: dict[Type, tuple[str, ...]] = {"clean": WASHERS, "heat": ("microwave",), "cool": ("fridge",)}


def kind(name: str) -> str:
    """A numbered name's kind: "apple 2" is an apple."""
    return name.split(" ", 1)[0]


@dataclass(frozen=True)
class House:
    """One room at the start, and the task.

    Attributes:
        furniture: Numbered names.
        things: Where each numbered thing lies.
        what, where: Kinds: what is asked for, and where it is to be put or under which lamp looked at.
    """

    type: Type
    room: str
    furniture: tuple[str, ...]
    things: Mapping[str, str]
    what: str
    where: str
    wording: int

    @property
    def sentence(self) -> str:
        """The task as the first observation tells it."""
        return _SAY[self.type][self.wording].format(what=self.what, where=self.where)


@functools.cache
def houses() -> tuple[House, ...]:
    """All tasks, test tasks first; no two agree in both furniture and sentence."""
    found: dict[tuple[object, ...], House] = {}
    number = 0
    while len(found) < N_TEST + N_TRAIN:
        rng = random.Random(f"alfworld/{number}")
        house = _draw(rng, tuple(TYPES)[len(found) % len(TYPES)])
        if house:
            found.setdefault((house.furniture, house.sentence), house)
        number += 1
    return tuple(found.values())


def _draw(rng: random.Random, type_: Type) -> House | None:
    """A house with a task of a type; None where the draw does not allow one."""
    room = rng.choice(_WHERE[type_])
    counts = {one: rng.randint(*bounds) for one, bounds in _ROOMS[room].items()}
    furniture = tuple(f"{one} {n}" for one, count in counts.items() for n in range(1, count + 1))
    places = PLACES[room]
    what = rng.choice([one for one in places if one in _APT.get(type_, places)])
    inside = [one for one in places[what] if counts.get(one)]
    if type_ == "light":
        where, targets = LAMP, inside
    else:
        targets = [one for one in inside if one not in _AWAY.get(type_, ())]
        if len(targets) < 2:
            return None
        where = rng.choice(targets)
    # nothing of what is asked for is already where it should go
    lying = [one for one in furniture if kind(one) in inside and kind(one) != where]
    if not lying:
        return None
    least = 2 if type_ == "two" else 1
    things: dict[str, str] = {}
    for n in range(1, rng.randint(least, least + 1) + 1):
        things[f"{what} {n}"] = _put(rng, lying, places[what])
    for other in rng.sample([one for one in places if one != what], min(len(places) - 1, rng.randint(6, 9))):
        spots = [one for one in furniture if kind(one) in places[other]]
        for n in range(1, rng.choice((1, 1, 2)) + 1):
            if spots:
                things[f"{other} {n}"] = _put(rng, spots, places[other])
    if type_ == "light":
        spots = [one for one in furniture if kind(one) in _LAMPS]
        things[f"{LAMP} 1"] = rng.choice(spots)
    return House(type_, room, furniture, things, what, where, rng.randrange(2))


def _put(rng: random.Random, spots: list[str], likely: tuple[str, ...]) -> str:
    """One of several places, the likelier kinds more often."""
    return rng.choices(spots, [1 / (1 + likely.index(kind(one))) for one in spots])[0]
