"""The environments by name: an entry here, another package's entry point of the group `atlas_ray.environments`, or a
configuration's `environments.register`.

Each is one module whose `SPEC` holds all that is to be known of it, and is imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_ray.environments.protocol import EnvironmentSpec
from atlas_ray.errors import UserError
from atlas_ray.plugins import Registry
from atlas_ray.types import Trajectory

if TYPE_CHECKING:
    from rich.table import Table

_MODULES = {
    "webshop": "webshop.simulator",
    "alfworld": "alfworld.simulator",
    "sciworld": "sciworld.simulator",
    "wordle": "wordle",
    "babyai": "babyai.simulator",
    "textcraft": "textcraft",
    "weather": "tools.weather_tasks",
    "maze": "maze",
    "movie": "tools.movie_tasks",
    "todo": "tools.todo_tasks",
    "academia": "tools.academia_tasks",
    "sheet": "tools.sheet_tasks",
    "jericho": "jericho.simulator",
    "pddl": "pddl.simulator",
    "blocksworld": "blocksworld",
}
FOREIGN = ("gymnasium", "openenv", "textarena", "verifiers")  # libraries, each by a module of its name
ENVIRONMENTS: Registry[EnvironmentSpec] = Registry(
    "environment",
    EnvironmentSpec,
    {name: f"{__package__}.builtin.{module}:SPEC" for name, module in _MODULES.items()},
    group="atlas_ray.environments",
    makers={name: f"{__package__}.foreign.{name}:environment" for name in FOREIGN},
)


def get(name: str) -> EnvironmentSpec:
    """The environment of this name.

    Raises:
        UserError: If there is none, or the one that a configuration names so is called otherwise.
    """
    if ":" in name:
        raise UserError(f"the environment {name} needs a name", f"environments.register.NAME={name}")
    found = ENVIRONMENTS.find(name)
    if found.name != name:
        raise UserError(
            f"the environment at {name} is called {found.name}", f"environments.register.{found.name}=module:SPEC"
        )
    return found


def register(spec: EnvironmentSpec) -> None:
    """Adds an environment, or replaces one, in this process alone."""
    ENVIRONMENTS[spec.name] = spec


def not_replayed(trajectory: Trajectory) -> str | None:
    """Why episodes cannot play a trajectory's steps again, if they cannot."""
    if trajectory.calls_tools and not get(trajectory.env).offers_tools:
        return f"{trajectory.id} calls tools, and {trajectory.env} offers none"
    return None


def overview() -> Table:
    """A table of all environments, for people."""
    from rich import box
    from rich.table import Table

    columns = ("environment", "held", "carried by", "extra", "train", "test", "rounds", "metric", "replay")
    shown = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    shown.caption, shown.caption_justify = "train, test: tasks; rounds: at most", "left"
    for spec in ENVIRONMENTS.values():
        built_in = spec.simulator is not None
        shown.add_row(
            *(spec.name, spec.held, "built in" if built_in else "a server", spec.extra or "-"),
            *((str(spec.n_train), str(spec.n_test)) if built_in else ("-", "-")),
            *(str(spec.max_rounds), spec.metric, f"within {spec.tolerance:.0%}" if spec.tolerance else "exact"),
        )
    return shown
