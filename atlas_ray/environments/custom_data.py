"""Material that the user brings in place of a built-in world's, for the environment server.

Flows in: NAME=PATH as on the command line; flows out: a `Brought` by name, whose world is played as the built-in one.
"""

from __future__ import annotations

import importlib
import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from atlas_ray.environments.protocol import Decision, World
from atlas_ray.errors import UserError

NAMES = ("jericho", "pddl", "alfworld", "webshop")


@dataclass(frozen=True)
class Brought:
    """One environment's own material.

    Attributes:
        world: Makes a simulator of it.
        parts: How many tasks each part has, in the order of their numbers, which begin at 0.
    """

    world: Callable[[], World]
    parts: Mapping[str, int]

    @property
    def n_test(self) -> int:
        """Tasks of all parts, or of those before the training part where there is one."""
        return sum(size for _, size in itertools.takewhile(lambda part: part[0] != "train", self.parts.items()))

    def __str__(self) -> str:
        first, told = 0, list[str]()
        for part, size in self.parts.items():
            told.append(f"{part} {first}" + (f" to {first + size - 1}" if size > 1 else ""))
            first += size
        return ", ".join(told)


class Unscripted:
    """A world without scripted agents: nobody has written any for material that is not known."""

    def expert(self, rng: random.Random) -> Decision:
        """Refuses.

        Raises:
            UserError: Always.
        """
        raise UserError("there is no scripted agent for material of your own", "play it with a model")

    novice = expert


def bring(given: Iterable[str], served: Iterable[str] = NAMES) -> dict[str, Brought]:
    """What was given as NAME=PATH, read and checked.

    Args:
        served: The environments that are served.

    Raises:
        UserError: If one is not of this form, nothing can be brought under its name, it is not served, two have the
            same, or what lies at a path cannot be played.
    """
    found: dict[str, Brought] = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not sign or not path:
            raise UserError(f"--data {one!r} is not of the form NAME=PATH", "write jericho=games")
        if name not in NAMES:
            raise UserError(f"--data: nothing can be brought for {name!r}", f"what can is {', '.join(NAMES)}")
        if name not in served:
            raise UserError(f"--data is there for {name}, which is not served", f"name {name} too")
        if name in found:
            raise UserError(f"--data is there twice for {name}", "one server plays one; start another for the other")
        found[name] = importlib.import_module(f"atlas_ray.environments.builtin.{name}.custom_data").load(path)
    return found
