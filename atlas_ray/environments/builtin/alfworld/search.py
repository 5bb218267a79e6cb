"""What a person would do next in a house, by what was seen so far: the plan behind the scripted agents.

Flows in: the opening text, then commands and the texts they gave; flows out: an `Errand`. Hidden places are not known.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from atlas_ray.environments.builtin.alfworld.house import LAMP, PLACES, House, kind

Stage = Literal["seek", "open", "fetch", "take", "carry", "treat", "use", "put", "back", "lost"]

_THING = re.compile(r"a (\w+ \d+)")
_VIEW = re.compile(r"(?:On the|The) (\w+ \d+)(?: is open\. In it)?, you see (.*)\.")
_CLOSED = re.compile(r"The (\w+ \d+) is closed\.")
_STATION = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}


@dataclass(frozen=True)
class Errand:
    """One action of the plan.

    Attributes:
        stage: What it is for.
        words: What the thoughts about it speak of.
        wrong: Actions that a novice takes for it.
    """

    stage: Stage
    action: str
    words: Mapping[str, str]
    wrong: tuple[str, ...] = ()


@dataclass
class Memory:
    """What was seen since the start.

    Attributes:
        seen: What lies in or on each piece of furniture that was looked into.
        shut: Furniture that was last seen closed.
        source: Where what is held was taken from.
        treated: Things that were cleaned, heated or cooled as the task asks.
    """

    house: House
    at: str = ""
    held: str = ""
    source: str = ""
    seen: dict[str, list[str]] = field(default_factory=dict)
    shut: set[str] = field(default_factory=set)
    treated: set[str] = field(default_factory=set)

    def hear(self, command: str, text: str) -> None:
        """Takes in what a command gave."""
        words = command.split()
        if text == "Nothing happens.":
            return
        if command.startswith("go to "):
            self.at = command.removeprefix("go to ")
        elif words[0] == "take":
            self.held, self.source = " ".join(words[1:3]), self.at
            self._here.remove(self.held)
        elif words[0] == "put":
            self._here.append(self.held)
            self.held = ""
        elif words[0] == self.house.type:  # clean, heat, cool
            self.treated.add(self.held)
        elif words[0] == "close":
            self.shut.add(self.at)
        if found := _VIEW.search(text):
            self.seen[found[1]] = _THING.findall(found[2])
            self.shut.discard(found[1])
        elif found := _CLOSED.search(text):
            self.shut.add(found[1])

    @property
    def _here(self) -> list[str]:
        return self.seen.setdefault(self.at, [])

    def place(self, what: str, but: str = "") -> tuple[str, str] | None:
        """A thing of a kind and where it was seen, not in `but`; what is here first."""
        order = sorted(self.seen, key=lambda place: place != self.at)
        found = [(one, place) for place in order if place != but for one in self.seen[place] if kind(one) == what]
        return found[0] if found else None

    def visible(self) -> list[str]:
        """Things that can be taken here."""
        return [] if self.at in self.shut else [one for one in self.seen.get(self.at, []) if kind(one) != LAMP]


def plan(memory: Memory) -> Errand:
    """The next errand."""
    house = memory.house
    if memory.held and kind(memory.held) != house.what:
        return _back(memory)
    if memory.held:
        return _light(memory) if house.type == "light" else _deliver(memory)
    target = _target(memory) if house.type == "two" else ""
    found = memory.place(house.what, but=target)
    if found is None:
        return _seek(memory, house.what, (house.where,))
    thing, place = found
    words = _words(memory, thing=thing, place=place)
    if place != memory.at:
        return Errand("fetch", f"go to {place}", words, _elsewhere(memory, place))
    if place in memory.shut:
        return Errand("open", f"open {place}", words, _elsewhere(memory, place))
    others = tuple(f"take {one} from {place}" for one in memory.visible() if kind(one) != house.what)
    return Errand("take", f"take {thing} from {place}", words, others or _elsewhere(memory, place))


def _deliver(memory: Memory) -> Errand:
    house, thing = memory.house, memory.held
    station = _STATION.get(house.type)
    if station and thing not in memory.treated:
        tool = next(one for one in house.furniture if kind(one) == station)
        words = _words(memory, thing=thing, place=tool)
        target = _target(memory)
        if memory.at != tool:
            return Errand("carry", f"go to {tool}", words, (f"go to {target}",))
        return Errand("treat", f"{house.type} {thing} with {tool}", words, (f"go to {target}",))
    target = _target(memory)
    words = _words(memory, thing=thing, place=target)
    if memory.at != target:
        return Errand("carry", f"go to {target}", words, _elsewhere(memory, target))
    if target in memory.shut:
        return Errand("open", f"open {target}", words, _elsewhere(memory, target))
    return Errand("put", f"put {thing} in/on {target}", words, _elsewhere(memory, target))


def _light(memory: Memory) -> Errand:
    found = memory.place(LAMP)
    if found is None:
        return _seek(memory, LAMP, ())
    lamp, place = found
    words = _words(memory, thing=lamp, place=place)
    if memory.at != place:
        return Errand("carry", f"go to {place}", words, _elsewhere(memory, place))
    if memory.at in memory.shut:
        return Errand("open", f"open {place}", words, _elsewhere(memory, place))
    back = f"put {memory.held} in/on {place}"
    return Errand("use", f"use {lamp}", words, (f"examine {memory.held}", back))


def _back(memory: Memory) -> Errand:
    """Puts down what is not asked for where it came from."""
    words = _words(memory, thing=memory.held, place=memory.source)
    if memory.at != memory.source:
        return Errand("back", f"go to {memory.source}", words)
    if memory.at in memory.shut:
        return Errand("back", f"open {memory.at}", words)
    return Errand("back", f"put {memory.held} in/on {memory.at}", words)


def _seek(memory: Memory, what: str, last: tuple[str, ...]) -> Errand:
    """Looks into what was not looked into, the likeliest places first."""
    likely = PLACES[memory.house.room].get(what, ("desk", "sidetable", "dresser", "shelf"))
    if memory.at and memory.at not in memory.seen and kind(memory.at) in likely:
        words = _words(memory, thing=what, place=memory.at)
        return Errand("open", f"open {memory.at}", words, _elsewhere(memory, memory.at))

    def rank(place: str) -> tuple[bool, int]:
        known = kind(place) in likely
        return kind(place) in last, likely.index(kind(place)) if known else len(likely)

    left = sorted((one for one in memory.house.furniture if one not in memory.seen), key=rank)
    if not left:
        return Errand("lost", "look", _words(memory, thing=what, place=memory.at or "the room"))
    place = left[0]
    words = _words(memory, thing=what, place=place)
    if place == memory.at:
        return Errand("open", f"open {place}", words, _elsewhere(memory, place))
    return Errand("seek", f"go to {place}", words, tuple(f"go to {one}" for one in left[:2:-1]))


def _target(memory: Memory) -> str:
    """The piece of furniture to put things in or on; of several the one that already holds what is asked for."""
    house = memory.house
    places = [one for one in house.furniture if kind(one) == house.where]
    holding = [one for one in places if any(kind(thing) == house.what for thing in memory.seen.get(one, ()))]
    ready = [one for one in places if one in memory.seen and one not in memory.shut]
    return (holding or ready or places)[0]


def _elsewhere(memory: Memory, place: str) -> tuple[str, ...]:
    return tuple(f"go to {one}" for one in memory.house.furniture if one not in (place, memory.at))


def _words(memory: Memory, thing: str, place: str) -> dict[str, str]:
    house = memory.house
    return {"thing": thing, "place": place, "what": house.what, "where": house.where, "task": house.sentence}
