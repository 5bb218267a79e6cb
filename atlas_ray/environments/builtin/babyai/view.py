"""What the agent sees and can do, in AgentGym's texts.

Flows in: a scene; flows out: the observation, the actions on offer with the moves behind each, and why others are not.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

from atlas_ray.environments.builtin.babyai.scene import (
    DROP,
    FORWARD,
    LEFT,
    PICKUP,
    RIGHT,
    TOGGLE,
    Cell,
    Pose,
    Scene,
    Thing,
)

CHECK = "check available actions"


@dataclass(frozen=True)
class Sight:
    """A thing in view: its numbered name, and where it is, in steps ahead and to the right."""

    name: str
    thing: Thing
    cell: Cell
    ahead: int
    right: int

    def words(self) -> str:
        """Its sentence in the observation."""
        if self.right == 0:
            where = f"right in front of you {self.ahead} steps away"
        else:
            side = "right" if self.right > 0 else "left"
            where = f"{self.ahead} steps in front of you and {abs(self.right)} steps to your {side}"
        return f"There is a {self.name} {where}.  "


@dataclass
class View:
    """The 7 x 7 cells before the agent, as far as nothing hides them.

    Attributes:
        sights: Things other than walls, the nearest first.
        barrier: The nearest wall or box straight ahead and its distance in steps, or None.
        offered: The moves behind each action that can be taken.
        refused: Why another action cannot.
    """

    scene: Scene
    sights: list[Sight] = field(default_factory=list)
    barrier: tuple[str, int] | None = None
    offered: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._look()
        self._offer()

    @property
    def text(self) -> str:
        """The observation without the actions."""
        seen = "".join(sight.words() for sight in self.sights)
        barrier = "You are facing a {} {} steps away. ".format(*self.barrier) if self.barrier else ""
        carried = self.scene.carrying
        hands = f"You are carrying a {carried.colour} {carried.kind}." if carried else "You are not carrying anything."
        return (
            f"In front of you in this room, you can see several objects: {seen}"
            f"The room has walls around you. {barrier}{hands}"
        )

    @property
    def actions_text(self) -> str:
        """The actions on offer, as AgentGym lists them below every observation."""
        return "Available actions: [" + ", ".join(f'"{action}"' for action in self.offered) + "]"

    def sees(self, cell: Cell) -> bool:
        """Whether the thing at a cell is in view."""
        return any(sight.cell == cell for sight in self.sights)

    def _look(self) -> None:
        found = []
        for ahead, right, cell in self.scene.visible:  # far to near, left to right
            thing = self.scene.things.get(cell)
            if thing is None:
                continue
            if right == 0 and thing.kind in ("wall", "box"):
                self.barrier = (thing.kind, ahead)
            if thing.kind != "wall":
                found.append((ahead + abs(right), ahead, right, cell, thing))
        found.sort(key=lambda sight: sight[0])
        count: dict[str, int] = {}
        for _, ahead, right, cell, thing in found:
            count[thing.name] = count.get(thing.name, 0) + 1
            self.sights.append(Sight(f"{thing.name} {count[thing.name]}", thing, cell, ahead, right))

    def _offer(self) -> None:
        offered = self.offered
        offered["turn left"], offered["turn right"] = [LEFT], [RIGHT]
        if self.barrier is None or self.barrier[1] > 1:
            offered["move forward"] = [FORWARD]
        else:
            self.refused["move forward"] = "There is a barrier in front of you, you can't move forward."
        front = self.scene.things.get(self.scene.pose.front)
        if self.scene.carrying is None:
            self.refused["drop"] = "You cannot drop the object, as you are not carrying anything."
            for sight in self.sights:
                if sight.thing.kind != "door":
                    self._go(f"pickup {sight.name}", sight, then=[PICKUP])
        elif front is None:
            offered["drop"] = [DROP]
        else:
            self.refused["drop"] = "You cannot drop the object, as there is already an object in front of you."
        for sight in self.sights:
            if sight.thing.kind == "door":
                self._offer_door(sight)
        if front is not None and front.kind in ("door", "box") and not self._is_locked_out(front):
            offered["toggle"] = [TOGGLE]
        for sight in self.sights:
            self._go(f"go to {sight.name}", sight)
        offered[CHECK] = []

    def _offer_door(self, door: Sight) -> None:
        through, opening = f"go through {door.name}", f"toggle and go through {door.name}"
        if door.thing.is_open:
            self._go(through, door, onto=True)
            return
        self.refused[through] = f"You cannot {through}, as it is closed. You should toggle it first."
        if not self._is_locked_out(door.thing):
            self._go(opening, door, then=[TOGGLE, FORWARD])
        elif self.scene.carrying is None or self.scene.carrying.kind != "key":
            self.refused[opening] = f"You cannot {opening}, as you are not carrying a key."
        else:
            self.refused[opening] = (
                f"You cannot {opening}, as the color of the key you are carrying does not match the color of door."
            )

    def _is_locked_out(self, thing: Thing) -> bool:
        return thing.is_locked and not thing.opens_with(self.scene.carrying)

    def _go(self, action: str, sight: Sight, then: list[int] | None = None, onto: bool = False) -> None:
        """Offers an action that walks to a thing (or onto it) within the view and then does something."""
        walk = self._walks.get((onto, sight.cell))
        if walk is None:
            self.refused[action] = f"You cannot {action}, as there is no path leading to it."
        else:
            self.offered[action] = walk + (then or [])

    @cached_property
    def _walks(self) -> dict[tuple[bool, Cell], list[int]]:
        """The shortest moves over visible cells that end before each cell (False, cell) or on it (True, cell)."""
        free = {cell for _, _, cell in self.scene.visible if self.scene.is_free(cell)}
        walks: dict[Pose, list[int]] = {self.scene.pose: []}
        found: dict[tuple[bool, Cell], list[int]] = {}
        queue = deque(walks)
        while queue:
            pose = queue.popleft()
            walk, front = walks[pose], pose.front
            found.setdefault((True, pose.cell), walk)
            found.setdefault((False, front), walk)
            for move in (FORWARD, LEFT, RIGHT):
                after = pose.after(move)
                if after not in walks and (move != FORWARD or front in free):
                    walks[after] = [*walk, move]
                    queue.append(after)
        return found
