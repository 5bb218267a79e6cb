"""Which of a recipe's stages run now: those whose inputs are ready, the most needed first, as far as the cluster holds.

Flows in: stages with what they wait for and what they take; flows out: the next one to start, and the makespan that the
same rule gives in simulation. Plain Python, no Ray.

A stage is admitted only if it fits wherever those that run happen to lie on their nodes, and they fit beside it: no two
stages can wait for each other. An endpoint is used by one stage at a time, which has all of its limits.
"""

from __future__ import annotations

import heapq
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from atlas_ray.cluster.placement import Resources, carries

State = Literal["waiting", "running", "finished", "failed", "skipped"]
_CORES_EACH = 4  # of one machine without GPUs, for every stage that runs at once
_DRIVER_BYTES = 4e9  # of this machine's memory, for each: its process, and as much for all else


@dataclass(frozen=True)
class Node:
    """What a node has, and its labels."""

    resources: Resources
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """What some actors take, each on one node.

    Attributes:
        each: Of one actor, e.g. CPU 1 and GPU 4.
        count: How many.
        labels: Of the nodes that it is placed on, where there are such.
    """

    each: Resources
    count: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)

    def nodes(self, nodes: Sequence[Node]) -> set[int]:
        """Which nodes may hold one of them."""
        able = {i for i, node in enumerate(nodes) if all(node.resources.get(k, 0) >= n for k, n in self.each.items())}
        return {i for i in able if carries(nodes[i].labels, self.labels)} or able


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: `group/name`.
        description: What it will do, in words.
        run: The call that does it; where parts are left out it is given why, by part.
        seconds: That it takes, as far as that is known: the shares of the whole count, a run finds its own pace.
        needs: Stages that must be finished before it.
        parts: Stages that must be over, and the part that is left out where one failed ("" for none).
        takes: Of the cluster.
        endpoints: That it asks.
        folders: Run folders that stay empty if it fails, and say why.
    """

    name: str
    description: str
    run: Callable[..., Any]
    seconds: float = 5.0
    needs: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[Bundle, ...] = ()
    endpoints: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()


class Scheduler:
    """The states of stages, and which is next.

    Args:
        stages: In an order in which they could run one after another.
        nodes: Of the cluster.
        jobs: That run at once at most.

    Attributes:
        why: Of stages that failed or were skipped.
    """

    def __init__(self, stages: Sequence[Stage], nodes: Sequence[Node], jobs: int) -> None:
        self.nodes, self.jobs = nodes, jobs
        self.states: dict[str, State] = {stage.name: "waiting" for stage in stages}
        self.why: dict[str, str] = {}
        self.plan(stages)

    def plan(self, stages: Sequence[Stage]) -> None:
        """Takes the same stages with other seconds."""
        self._stages = {stage.name: stage for stage in stages}
        behind = urgency(stages)
        self._order = sorted(self._stages, key=lambda name: -behind[name]) if self.jobs > 1 else [*self._stages]

    def of(self, *states: State) -> list[Stage]:
        """Stages in one of some states."""
        return [stage for name, stage in self._stages.items() if self.states[name] in states]

    def waits_for(self, stage: Stage) -> list[str]:
        """Stages that must be over before a stage starts."""
        before = {*stage.needs, *stage.parts}
        return [name for name, state in self.states.items() if name in before and state in ("waiting", "running")]

    def left_out(self, stage: Stage) -> dict[str, str]:
        """The parts of a stage that nothing was made for, and why."""
        return {part: self._because(name) for name, part in stage.parts.items() if part and name in self.why}

    def next(self) -> Stage | None:
        """The stage to start now, marked as running; None while the cluster has no room or inputs are awaited."""
        running = self.of("running")
        if len(running) >= self.jobs:
            return None
        refused = list[tuple[tuple[Bundle, ...], frozenset[str]]]()  # seldom more than a few kinds
        for name in self._order:
            stage = self._stages[name]
            asked = stage.takes, stage.endpoints
            if self.states[name] != "waiting" or asked in refused or self.waits_for(stage):
                continue
            # what fits nowhere is started alone, and says what it lacks
            if not running or fits([*running, stage], self.nodes):
                self.states[name] = "running"
                return stage
            refused.append(asked)
        return None

    def finish(self, name: str) -> None:
        """A stage is done."""
        self.states[name] = "finished"

    def fail(self, name: str, why: str) -> list[Stage]:
        """A stage failed; those that need it are skipped.

        Returns:
            It and the skipped ones.
        """
        self.states[name], self.why[name] = "failed", why
        over = [self._stages[name]]
        while skipped := [stage for stage in self.of("waiting") if stage.needs & self.why.keys()]:
            for stage in skipped:
                cause = min(stage.needs & self.why.keys(), key=[*self._stages].index)
                self.states[stage.name], self.why[stage.name] = "skipped", self._because(cause)
            over += skipped
        return over

    def _because(self, name: str) -> str:
        """Why nothing was made of what a stage makes: the first failure of all."""
        return f"{name} failed: {self.why[name]}" if self.states[name] == "failed" else self.why[name]


def urgency(stages: Iterable[Stage]) -> dict[str, float]:
    """Seconds of the longest way from a stage's start to the end of the recipe."""
    found: dict[str, float] = {}
    behind: dict[str, float] = {}
    for stage in reversed([*stages]):
        found[stage.name] = stage.seconds + behind.get(stage.name, 0.0)
        for name in (*stage.needs, *stage.parts):
            behind[name] = max(behind.get(name, 0.0), found[stage.name])
    return found


def fits(stages: Sequence[Stage], nodes: Sequence[Node]) -> bool:
    """Whether stages can run side by side, each however the others' actors lie on the nodes."""
    endpoints = [address for stage in stages for address in stage.endpoints]
    held = [(bundle, bundle.nodes(nodes)) for stage in stages for bundle in stage.takes]
    return len(set(endpoints)) == len(endpoints) and all(
        own and _places(i, kind, held, nodes) >= bundle.count
        for i, (bundle, own) in enumerate(held)
        for kind, need in bundle.each.items()
        if need
    )


def _places(number: int, kind: str, held: Sequence[tuple[Bundle, set[int]]], nodes: Sequence[Node]) -> int:
    """How many of a bundle find room of one kind at worst: every actor of others spoils as many places as it can."""
    bundle, own = held[number]
    need = bundle.each[kind]
    places = sum(int(nodes[i].resources.get(kind, 0) / need + 1e-9) for i in own)
    others = [other for i, (other, where) in enumerate(held) if i != number and where & own]
    return places - sum(other.count * math.ceil(other.each.get(kind, 0) / need - 1e-9) for other in others)


def makespan(stages: Sequence[Stage], nodes: Sequence[Node], jobs: int) -> float:
    """Seconds from the first start to the last end, as the scheduler orders stages."""
    scheduler, now = Scheduler(stages, nodes, jobs), 0.0
    ends: list[tuple[float, str]] = []
    while True:
        while (stage := scheduler.next()) is not None:
            heapq.heappush(ends, (now + stage.seconds, stage.name))
        if not ends:
            return now
        now, name = heapq.heappop(ends)
        scheduler.finish(name)


def most_at_once(stages: Iterable[Stage], nodes: Sequence[Node], jobs: int) -> int:
    """How many of some stages run at the same time at most."""
    together: list[Stage] = []
    for stage in stages:
        if len(together) < jobs and fits([*together, stage], nodes):
            together.append(stage)
    return max(1, len(together))


def gpus_of(nodes: Iterable[Node]) -> float:
    """GPUs of all nodes."""
    return sum(node.resources.get("GPU", 0.0) for node in nodes)


def most_jobs(nodes: Collection[Node], cores: int) -> int:
    """Stages that this machine bears at once: each has a process here, and on a laptop its work too.

    Args:
        nodes: Of the cluster.
        cores: Of this machine, which Ray may count double.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    alone = len(nodes) == 1 and not gpus_of(nodes)
    return max(1, min(int(memory / _DRIVER_BYTES), cores // _CORES_EACH if alone else sys.maxsize))
