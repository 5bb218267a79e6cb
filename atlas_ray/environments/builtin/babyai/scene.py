"""A minigrid level and a light picture of its state, on which texts and plans are made.

Flows in: a level's number and seed, or a minigrid environment; flows out: the environment, and `Scene`s of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from atlas_ray.errors import UserError

Cell = tuple[int, int]
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)  # minigrid's actions
VECTORS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))  # minigrid's directions
VIEW = 7

# AgentGym's order; item i is level i + 1. Level 16 is its OpenDoorsOrderN4Debug without the strictness by which
# minigrid fails that mission when its first door is opened.
LEVELS = (
    *("GoToRedBallGrey-v0", "GoToRedBall-v0", "GoToRedBallNoDists-v0", "GoToObjS4-v0", "GoToLocalS8N7-v0"),
    *("GoToObjMazeS7-v0", "GoToImpUnlock-v0", "GoToSeqS5R2-v0", "GoToRedBlueBall-v0", "GoToDoor-v0"),
    *("GoToObjDoor-v0", "Open-v0", "OpenRedDoor-v0", "OpenDoorLoc-v0", "OpenRedBlueDoorsDebug-v0"),
    *("OpenDoorsOrderN4-v0", "Pickup-v0", "UnblockPickup-v0", "PickupLoc-v0", "PickupDistDebug-v0"),
    *("PickupAbove-v0", "PutNextLocalS6N4-v0", "PutNextS7N4Carrying-v0", "Unlock-v0", "UnlockLocalDist-v0"),
    *("KeyInBox-v0", "UnlockPickupDist-v0", "BlockedUnlockPickup-v0", "UnlockToUnlock-v0", "ActionObjDoor-v0"),
    *("FindObjS7-v0", "KeyCorridorS6R3-v0", "OneRoomS20-v0", "MoveTwoAcrossS8N9-v0", "SynthS5R2-v0"),
    *("SynthLoc-v0", "SynthSeq-v0", "MiniBossLevel-v0", "BossLevel-v0", "BossLevelNoUnlock-v0"),
)


def load_level(level: int, seed: int) -> Any:
    """A minigrid environment at its start.

    Args:
        level: 1..40.
        seed: Of the generator.

    Raises:
        UserError: If minigrid is not installed.
    """
    try:
        import gymnasium
        import minigrid  # noqa: F401  (registers the levels)
        from minigrid.envs.babyai.core import roomgrid_level
    except ImportError:
        raise UserError("babyai needs minigrid", "pip install 'atlas-ray[babyai]'") from None
    # the generator reports every rejected draw; the name is found here before the built-in
    vars(roomgrid_level)["print"] = lambda *_: None
    env = gymnasium.make(f"BabyAI-{LEVELS[level - 1]}", disable_env_checker=True).unwrapped
    env.reset(seed=seed)
    return env


class Pose(NamedTuple):
    """Where the agent stands and which way (an index of `VECTORS`) it looks."""

    cell: Cell
    way: int

    @property
    def front(self) -> Cell:
        """The cell before it."""
        dx, dy = VECTORS[self.way]
        return self.cell[0] + dx, self.cell[1] + dy

    def ahead(self, steps: int, right: int = 0) -> Cell:
        """The cell so many steps ahead and to the right."""
        (dx, dy), (rx, ry) = VECTORS[self.way], VECTORS[(self.way + 1) % 4]
        return self.cell[0] + steps * dx + right * rx, self.cell[1] + steps * dy + right * ry

    def after(self, move: int) -> Pose:
        """The pose after a turn or a step, whatever stands there."""
        if move == FORWARD:
            return Pose(self.front, self.way)
        return Pose(self.cell, (self.way + (1 if move == RIGHT else -1)) % 4)


@dataclass(frozen=True, slots=True)
class Thing:
    """What stands in a cell, as it was when the picture was taken; `item` is minigrid's own object."""

    kind: str
    colour: str
    item: Any
    is_open: bool = False
    is_locked: bool = False

    @property
    def name(self) -> str:
        """Colour and kind, of a door its state too."""
        if self.kind != "door":
            return f"{self.colour} {self.kind}"
        return f"{self.colour} {'open' if self.is_open else 'locked' if self.is_locked else 'closed'} door"

    def opens_with(self, carried: Thing | None) -> bool:
        """Whether what is carried is this door's key."""
        return carried is not None and (carried.kind, carried.colour) == ("key", self.colour)


class Scene:
    """One state: who stands where, what is carried, what is seen.

    Attributes:
        things: What stands in each occupied cell, walls included.
        visible: (steps ahead, steps right, cell) of each cell in view, far to near and left to right.
    """

    def __init__(self, pose: Pose, things: dict[Cell, Thing], carrying: Thing | None, width: int, height: int) -> None:
        self.pose, self.things, self.carrying, self.width, self.height = pose, things, carrying, width, height
        self.visible = list(self._look())

    @classmethod
    def of(cls, env: Any) -> Scene:
        """The present state of a minigrid environment."""
        cells = enumerate(env.grid.grid)
        things = {(i % env.width, i // env.width): _thing(item) for i, item in cells if item is not None}
        pose = Pose((int(env.agent_pos[0]), int(env.agent_pos[1])), int(env.agent_dir))
        return cls(pose, things, _thing(env.carrying) if env.carrying else None, env.width, env.height)

    def moved(self, pose: Pose, opened: Cell | None = None) -> Scene:
        """The same with the agent elsewhere, and perhaps a door opened."""
        things = self.things
        if opened is not None:
            things = {**things, opened: replace(things[opened], is_open=True, is_locked=False)}
        return Scene(pose, things, self.carrying, self.width, self.height)

    def _look(self) -> Iterator[tuple[int, int, Cell]]:
        """Cells in view: light spreads from the agent ahead and sideways, through all but walls and shut doors."""
        side = VIEW // 2
        lit = {(0, 0)}
        for ahead in range(VIEW):
            for rights, step in ((range(-side, side), 1), (range(side, -side, -1), -1)):
                for right in rights:
                    if (ahead, right) in lit and self._is_clear(self.pose.ahead(ahead, right)):
                        lit.update(((ahead, right + step), (ahead + 1, right), (ahead + 1, right + step)))
        for ahead in reversed(range(VIEW)):
            for right in range(-side, side + 1):
                cell = self.pose.ahead(ahead, right)
                if (ahead, right) in lit and (ahead, right) != (0, 0) and self._is_inside(cell):
                    yield ahead, right, cell

    def _is_inside(self, cell: Cell) -> bool:
        return 0 <= cell[0] < self.width and 0 <= cell[1] < self.height

    def _is_clear(self, cell: Cell) -> bool:
        """Whether one can see past it."""
        thing = self.things.get(cell)
        return self._is_inside(cell) and (thing is None or thing.is_open or thing.kind not in ("wall", "door"))

    def is_free(self, cell: Cell) -> bool:
        """Whether one can step there."""
        thing = self.things.get(cell)
        return thing is None or thing.is_open


def _thing(item: Any) -> Thing:
    return Thing(item.type, item.color, item, getattr(item, "is_open", False), getattr(item, "is_locked", False))
