"""How an expert that knows the whole level gets on: the next job, and how far each action leaves it from there.

Flows in: a scene, the view of it and the instruction that is due; flows out: the best action and what the others cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas_ray.environments.builtin.babyai.scene import (
    DROP,
    FORWARD,
    LEFT,
    PICKUP,
    RIGHT,
    TOGGLE,
    VECTORS,
    Cell,
    Pose,
    Scene,
)
from atlas_ray.environments.builtin.babyai.view import View

_IN_THE_WAY, _LOCKED_OUT = 8, 40  # what a thing to carry aside and a door without its key add to a way, in moves
_DEPTH = 5  # jobs that wait for other jobs

Far = dict[tuple[Cell, int], int]  # by pose
Kind = Literal["go", "pickup", "drop", "toggle"]


@dataclass
class Job:
    """One thing to do: stand in one of `poses` and do what `kind` says with what is in front.

    Attributes:
        kind: What to do; "go" is done on arrival.
        cells: What it is done to (for "drop": where).
        name: Of the thing, for words.
        errand: Whether it only makes way for another job.
        far: Moves to it from each pose.
    """

    kind: Kind
    cells: frozenset[Cell]
    name: str
    errand: bool = False
    far: Far = field(default_factory=dict)


@dataclass
class Advice:
    """What to do now.

    Attributes:
        action: The best one.
        costs: Moves that remain to the job after each action worth a thought; -1 where the action does the job.
        here: The same now.
        in_view: Whether the thing to go for can be seen.
    """

    action: str
    costs: dict[str, int]
    here: int
    job: Job
    in_view: bool

    @property
    def phrase(self) -> str:
        """The job in words."""
        name = self.job.name
        if self.job.kind == "drop":
            return f"put the {name} aside" if self.job.errand else f"put what I carry next to the {name}"
        return {"go": "go to", "pickup": "pick up", "toggle": "open"}[self.job.kind] + f" the {name}"

    @property
    def finishes(self) -> bool:
        """Whether the action does the job."""
        cost = self.costs.get(self.action, 1)
        return cost < 0 or (cost == 0 and self.job.kind == "go")

    def is_right(self, action: str) -> bool:
        """Whether an action gets on."""
        cost = self.costs.get(action, 999)
        return action == self.action or cost < self.here or cost <= 0


def due(instruction: Any) -> Any:
    """The first clause of a minigrid instruction that has not been fulfilled."""
    a, b = getattr(instruction, "instr_a", None), getattr(instruction, "instr_b", None)
    if a is None:
        return instruction
    first, second = (b, a) if type(instruction).__name__ == "AfterInstr" else (a, b)
    done = instruction.b_done if first is b else instruction.a_done
    return due(second if done == "success" else first)


def advise(scene: Scene, view: View, clause: Any) -> Advice:
    """The best action on offer, with a look at what each makes possible next."""
    job = _job(scene, clause)
    costs, later = dict[str, int](), dict[str, int]()
    for action, moves in view.offered.items():
        cost, after = _outcome(scene, moves, job) if moves else (None, scene)
        if cost is not None:
            costs[action] = later[action] = cost
            if cost > 0:
                then = (_outcome(after, more, job)[0] for more in View(after).offered.values() if more)
                later[action] = min(cost, *(c for c in then if c is not None))
    best = min(costs, key=lambda a: (costs[a] >= 0, later[a], costs[a], len(view.offered[a])), default="turn left")
    in_view = job.kind == "drop" or any(view.sees(cell) for cell in job.cells)
    return Advice(best, costs, job.far.get(scene.pose, 999), job, in_view)


def _outcome(scene: Scene, moves: list[int], job: Job) -> tuple[int | None, Scene]:
    """Moves to the job after some moves (-1 if they do it, None if they do something else), and the scene then."""
    pose, opened = scene.pose, None
    for move in moves:
        if move in (PICKUP, DROP, TOGGLE) and _KIND[move] == job.kind and pose.front in job.cells:
            return -1, scene
        if move in (PICKUP, DROP) or moves == [TOGGLE]:
            return None, scene
        if move == TOGGLE:
            opened = pose.front
        elif move != FORWARD or scene.is_free(pose.front) or pose.front == opened:
            pose = pose.after(move)
    return job.far.get(pose), scene.moved(pose, opened)


_KIND = {PICKUP: "pickup", DROP: "drop", TOGGLE: "toggle"}


def _job(scene: Scene, clause: Any) -> Job:
    """What to do first for a clause."""
    kind = type(clause).__name__
    if kind == "PutNextInstr":
        return _put_next(scene, clause)
    wanted = _cells(scene, clause.desc.obj_set)
    if kind == "GoToInstr":
        return _first(scene, _at(scene, "go", wanted))
    if kind == "PickupInstr":
        return _first(scene, _at(scene, "pickup", wanted))
    shut = [cell for cell in wanted if not scene.things[cell].is_open]
    return _first(scene, _at(scene, "toggle", shut or wanted))


def _put_next(scene: Scene, clause: Any) -> Job:
    """Fetch the one thing and drop it beside the other, once nothing is in the way of carrying it there."""
    fixed = _cells(scene, clause.desc_fixed.obj_set)
    beside = [cell for place in fixed for cell in _neighbours(place) if _is_empty(scene, cell)]
    put = _at(scene, "drop", beside, name=scene.things[fixed[0]].name if fixed else "it")
    if scene.carrying and any(scene.carrying.item is item for item in clause.desc_move.obj_set):
        return _first(scene, put)
    fetch = _at(scene, "pickup", _cells(scene, clause.desc_move.obj_set))
    route = _trace(scene, fetch.far)
    carried = _trace(scene, put.far, route[-1]) if route else []
    for cell in (pose.cell for pose in carried):
        thing = scene.things.get(cell)
        if thing is None or thing.is_open or cell in fetch.cells:
            continue
        if thing.kind == "door" and thing.is_locked and thing.opens_with(scene.carrying):
            return _first(scene, _at(scene, "toggle", [cell], errand=True))
        if thing.kind != "door" or thing.is_locked:
            return _clear(scene, cell, {pose.cell for pose in carried}, 0)
    return _first(scene, fetch, [pose.cell for pose in carried])


def _first(scene: Scene, job: Job, keep_clear: Iterable[Cell] = (), depth: int = 0) -> Job:
    """The job itself, or what has to be done before it."""
    route = _trace(scene, job.far)
    for cell in (pose.cell for pose in route[1:]):
        if cell != scene.pose.cell and _obstructs(scene, cell) and depth < _DEPTH:
            return _clear(scene, cell, _way(scene, job), depth)
    target = route[-1].front if route else scene.pose.cell
    if job.kind == "toggle" and _toll(scene, target) > _LOCKED_OUT and depth < _DEPTH:
        return _clear(scene, target, _way(scene, job), depth)
    if job.kind == "pickup" and scene.carrying:
        for cell in (pose.cell for pose in route):
            if _is_door(scene, cell) and scene.things[cell].is_locked:  # its key is at hand, and needed until then
                return _at(scene, "toggle", [cell], errand=True)
        return _put_aside(scene, job, {*keep_clear, *job.cells})
    return job


def _clear(scene: Scene, cell: Cell, clear: set[Cell], depth: int) -> Job:
    """What makes way at a cell: carry the thing there aside, or fetch the door's key."""
    thing = scene.things[cell]
    if thing.kind != "door":
        kind: Kind = "toggle" if thing.kind == "box" and thing.item.contains else "pickup"
        return _first(scene, _at(scene, kind, [cell], errand=True), clear, depth + 1)
    keys = [c for c, t in scene.things.items() if (t.kind, t.colour) == ("key", thing.colour)]
    if keys:
        return _first(scene, _at(scene, "pickup", keys, errand=True), clear, depth + 1)
    boxes = [c for c, t in scene.things.items() if t.kind == "box" and t.item.contains is not None]
    return _first(scene, _at(scene, "toggle", boxes, errand=True), clear, depth + 1)


def _put_aside(scene: Scene, job: Job, clear: set[Cell]) -> Job:
    """Drop what is carried where it does not stand in the way of a job, beside the agent if it can be."""
    assert scene.carrying is not None
    here = scene.pose.cell

    def ways(far: Far) -> int:
        return min(far.get(Pose(here, way), 10**6) for way in range(4))

    spots = {
        (x, y)
        for x in range(scene.width)
        for y in range(scene.height)
        if (x, y) not in clear and (x, y) != here and _is_empty(scene, (x, y))
    }
    roomy = {spot for spot in spots if not any(_is_door(scene, cell) for cell in _neighbours(spot))}
    goals = [pose for pose, moves in job.far.items() if moves == 0]
    near = [spot for spot in _neighbours(here) if spot in roomy]
    near = [spot for spot in near if ways(_distances(scene, goals, blocked=spot)) <= ways(job.far) + 2]
    if not near:
        roomy = roomy - _way(scene, job) or spots - _way(scene, job) or spots
    return _at(scene, "drop", near or roomy, name=scene.carrying.name, errand=True)


def _at(scene: Scene, kind: Kind, cells: Iterable[Cell], name: str = "", errand: bool = False) -> Job:
    cells = frozenset(cells)
    poses = [
        Pose((cell[0] - dx, cell[1] - dy), way)
        for cell in sorted(cells)
        for way, (dx, dy) in enumerate(VECTORS)
        if not _is_wall(scene, (cell[0] - dx, cell[1] - dy))
    ]
    job = Job(kind, cells, name, errand, _distances(scene, poses))
    if not name:
        route = _trace(scene, job.far)
        job.name = scene.things[route[-1].front].name if route and route[-1].front in cells else "way"
    return job


def _distances(scene: Scene, goals: Iterable[tuple[Cell, int]], blocked: Cell | None = None) -> Far:
    """Moves from every pose to the nearest goal; closed doors are opened on the way, obstacles count extra."""
    tolls = {cell: _toll(scene, cell) for cell in scene.things}
    if blocked is not None:
        tolls[blocked] = 1 + _IN_THE_WAY
    walls = {cell for cell, thing in scene.things.items() if thing.kind == "wall"}
    far: Far = dict.fromkeys(goals, 0)
    queue: list[tuple[int, tuple[Cell, int]]] = [(0, goal) for goal in far]
    heapq.heapify(queue)
    while queue:
        cost, pose = heapq.heappop(queue)
        if cost > far[pose]:
            continue
        cell, way = pose
        dx, dy = VECTORS[way]
        behind = (cell[0] - dx, cell[1] - dy)
        before = [((cell, (way + 1) % 4), cost + 1), ((cell, (way + 3) % 4), cost + 1)]
        if behind not in walls:  # levels are walled all around
            before.append(((behind, way), cost + tolls.get(cell, 1)))
        for earlier, total in before:
            if total < far.get(earlier, 10**6):
                far[earlier] = total
                heapq.heappush(queue, (total, earlier))
    return far


def _trace(scene: Scene, far: Far, start: Pose | None = None) -> list[Pose]:
    """The poses of a shortest way, from the agent's own or another to a goal; empty where there is none."""
    pose = start or scene.pose
    route = [pose] if pose in far else []
    while route and far[route[-1]] > 0:
        here = route[-1]
        steps = [(_toll(scene, here.front), here.after(FORWARD)), (1, here.after(LEFT)), (1, here.after(RIGHT))]
        route.append(next(after for cost, after in steps if far.get(after, 10**6) + cost == far[here]))
    return route


def _way(scene: Scene, job: Job) -> set[Cell]:
    """The cells of a way from where the agent stands, whichever way it looks: plans must not change as it turns."""
    return {pose.cell for pose in _trace(scene, job.far, Pose(scene.pose.cell, 0))}


def _toll(scene: Scene, cell: Cell) -> int:
    """Moves that stepping into a cell takes."""
    thing = scene.things.get(cell)
    if thing is None or thing.is_open or cell == scene.pose.cell:
        return 1
    if thing.kind != "door":
        return 1 + _IN_THE_WAY
    return 2 if not thing.is_locked or thing.opens_with(scene.carrying) else 1 + _LOCKED_OUT


def _obstructs(scene: Scene, cell: Cell) -> bool:
    return _toll(scene, cell) > 2


def _cells(scene: Scene, items: Iterable[Any]) -> list[Cell]:
    """Where minigrid's objects stand now."""
    wanted = {id(item) for item in items}
    return [cell for cell, thing in scene.things.items() if id(thing.item) in wanted]


def _neighbours(cell: Cell) -> list[Cell]:
    return [(cell[0] + dx, cell[1] + dy) for dx, dy in VECTORS]


def _is_empty(scene: Scene, cell: Cell) -> bool:
    return 0 < cell[0] < scene.width - 1 and 0 < cell[1] < scene.height - 1 and cell not in scene.things


def _is_wall(scene: Scene, cell: Cell) -> bool:
    inside = 0 <= cell[0] < scene.width and 0 <= cell[1] < scene.height
    return not inside or (cell in scene.things and scene.things[cell].kind == "wall")


def _is_door(scene: Scene, cell: Cell) -> bool:
    return cell in scene.things and scene.things[cell].kind == "door"
