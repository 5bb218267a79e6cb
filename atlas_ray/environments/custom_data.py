"""The user's own games, products and problems in place of a built-in environment's, for the environment server.

Flows in: NAME=PATH as on the command line; flows out: a `CustomData` by name, whose simulator stands in
for the built-in one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module

from atlas_ray.environments.protocol import Simulator
from atlas_ray.environments.registry import ENVIRONMENTS
from atlas_ray.errors import UserError


@dataclass(frozen=True)
class CustomData:
    """One environment's own material.

    Attributes:
        simulator: Makes a simulator of it.
        parts: How many tasks each part has, in the order of their numbers, which begin at 0.
    """

    simulator: Callable[[], Simulator]
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


def load_custom_data(given: Iterable[str], served: Iterable[str] | None = None) -> dict[str, CustomData]:
    """What was given as NAME=PATH, read and checked.

    Args:
        served: The environments that are served; None: all.

    Raises:
        UserError: If one is not of this form, no data can be given under its name, it is not served, two have the
            same, or what lies at a path cannot be played.
    """
    found: dict[str, CustomData] = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not sign or not path:
            raise UserError(f"--data {one!r} is not of the form NAME=PATH", "write jericho=games")
        place = ENVIRONMENTS[name].custom_data if name in ENVIRONMENTS else None
        if place is None:
            able = ", ".join(spec.name for spec in ENVIRONMENTS.values() if spec.custom_data)
            raise UserError(f"--data: no data can be given for {name!r}", f"it can for {able}")
        if served is not None and name not in served:
            raise UserError(f"--data is there for {name}, which is not served", f"name {name} too")
        if name in found:
            raise UserError(f"--data is there twice for {name}", "one server plays one; start another for the other")
        found[name] = import_module(place).load(path)
    return found
