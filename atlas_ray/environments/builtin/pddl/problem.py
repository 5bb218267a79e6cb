"""What the four domains share: a problem, and what a domain's expert says about a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from atlas_ray.environments.builtin.pddl.strips import Fact, State


@dataclass(frozen=True, eq=False)  # the same one only: what is made for it is kept
class Problem:
    """One problem of a domain. Attributes: `objects` (each one's type), the initial state, the goal's facts."""

    domain: str
    objects: Mapping[str, str]
    initial: State
    goal: tuple[Fact, ...]

    def satisfied(self, state: State) -> float:
        """Share of the goal's facts that hold."""
        return sum(fact in state for fact in self.goal) / len(self.goal)

    def named(self, kind: str) -> list[str]:
        """The objects of a type."""
        return [name for name, of in self.objects.items() if of == kind]


@dataclass(frozen=True, slots=True)
class Advice:
    """The next step of a plan.

    Attributes:
        key: The action's name and arguments.
        why: The reason, as a clause.
        kind: "goal" if it decides how the goal is reached, "obstacle" if it answers to something in the way, "routine"
            if it only carries on.
    """

    key: Fact
    why: str
    kind: Literal["goal", "obstacle", "routine"] = "routine"


def pairs(state: State, name: str) -> dict[str, str]:
    """The facts of a binary predicate as a mapping from the first to the second argument."""
    return {fact[1]: fact[2] for fact in state if fact[0] == name}


def having(state: State, name: str) -> list[str]:
    """The arguments of a unary predicate, sorted."""
    return sorted(fact[1] for fact in state if fact[0] == name)
