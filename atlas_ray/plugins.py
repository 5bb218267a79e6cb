"""Parts found by name: the package's own, those of other packages' entry points, and any named as `module:NAME`.

Nothing is imported before it is asked for. Parts that a configuration names are known to this process, to those that it
starts, and to Ray's workers, which the files of their modules are sent to as Ray starts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ValidationInfo

from atlas_ray.errors import UserError

T = TypeVar("T")

_NAMED = "ATLAS_PLUGINS"  # variable: as JSON, per group `module:NAME` by name
_used: set[str] = set()  # modules from outside of the package that parts of this process come from


def object_at(place: str, whose: str, remedy: str) -> object:
    """What is called `module:NAME`, or None; modules are looked for in the working directory too.

    Args:
        place: Its module and name.
        whose: What the error says of the module.
        remedy: Of the error.

    Raises:
        UserError: If the module cannot be imported.
    """
    module, _, attribute = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:
        raise UserError(f"cannot import {module}{whose}: {error}", remedy) from error
    send_to_workers(module)
    return found


def is_own(module: str) -> bool:
    """Whether a module is of this package, which every worker has."""
    return module.partition(".")[0] == __name__.partition(".")[0]


def source_digest(module: str) -> str:
    """SHA-256 of the source of an imported module: what a run is made by.

    Raises:
        UserError: If it has no source.
    """
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        raise UserError(f"{module} has no source file", "put the function in a module of your own")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def send_to_workers(module: str) -> None:
    """Has a module, or the package that it is of, sent to Ray's workers when Ray is started or joined."""
    if not is_own(module) and module != "__main__":  # what a script defines travels by itself
        _used.add(module.partition(".")[0])


def chosen_by(choose: Callable[[Mapping[str, Any]], type[BaseModel]]) -> BeforeValidator:
    """For a section whose class `choose` finds by what stands in it."""

    def read(section: Any, info: ValidationInfo) -> Any:
        if not isinstance(section, Mapping):
            return section
        try:
            kind = choose(section)
        except UserError as error:
            raise ValueError(f"{error.what}; {error.remedy}") from None
        return kind.model_validate(section, context=info.context)

    return BeforeValidator(read)


def add_named(group: str, places: Mapping[str, str]) -> None:
    """Makes parts of a group known by name, to the processes that this one starts too."""
    named = json.loads(os.environ.get(_NAMED, "{}"))
    named[group] = named.get(group, {}) | dict(places)
    os.environ[_NAMED] = json.dumps(named)


def runtime_env() -> dict[str, Any]:
    """What Ray's workers need for parts from outside of the package: the names that configurations gave them, and the
    files of modules that lie elsewhere than where packages are installed."""
    named = os.environ.get(_NAMED, "{}")
    places = [place for parts in json.loads(named).values() for place in parts.values()]
    # the module of `module:NAME`, and of `gymnasium:module:ID`
    modules = {part.partition(".")[0] for place in places for part in place.split(":")[:-1]}
    files = [*filter(None, map(_file_of, sorted(_used | modules)))]
    variables = {"env_vars": {_NAMED: named}} if places else {}
    return variables | ({"py_modules": files} if files else {})


def lacking(modules: Iterable[str]) -> list[str]:
    """Which modules this process does not find; for a worker, which has those that were named as Ray began."""
    return [module for module in modules if find_spec(module) is None]


def _file_of(module: str) -> str | None:
    """A module's file, or its package's folder; None where workers have it, or nobody."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    everywhere = not module.isidentifier() or is_own(module) or module in sys.stdlib_module_names
    found = None if everywhere else find_spec(module)
    if found is None or found.origin is None or "site-packages" in Path(found.origin).parts:
        return None
    return str(Path(found.origin).parent if found.submodule_search_locations else found.origin)


class Registry(MutableMapping[str, T], Generic[T]):
    """The parts of one kind by name; assigning adds one for this process alone.

    Args:
        what: What such a part is called, e.g. "data format".
        kind: Their class, or the one that they are subclasses of.
        own: `module:NAME` of each of the package's own.
        group: Entry points (`name = "module:NAME"`) by which installed packages add theirs.
        makers: By what stands before the colon, `module:FUNCTION` that makes a part from its name and what follows.
    """

    def __init__(
        self, what: str, kind: type[Any], own: Mapping[str, str], group: str, makers: Mapping[str, str] | None = None
    ) -> None:
        self._what, self._kind, self._own, self._group = what, kind, dict(own), group
        self._makers = dict(makers or {})
        self._found: dict[str, T] = {}

    @cached_property
    def _installed(self) -> dict[str, str]:
        others = {entry.name: entry.value for entry in entry_points(group=self._group)}
        return self._own | {name: place for name, place in others.items() if name not in self._own}

    @property
    def _places(self) -> dict[str, str]:
        named = os.environ.get(_NAMED)
        return self._installed | json.loads(named).get(self._group, {}) if named else self._installed

    def find(self, name: str) -> T:
        """The part of this name, or the one at `module:NAME`; modules are looked for in the working directory too.

        Raises:
            UserError: If there is none, naming the closest names.
        """
        if name not in self._found:
            if name not in self._places and ":" not in name:
                close = difflib.get_close_matches(name, self) or list(self)
                raise UserError(f"no {self._what} is called {name!r}", f"did you mean {', '.join(close)}?")
            self._found[name] = self._load(name, self._places.get(name, name))
        return self._found[name]

    def _load(self, name: str, place: str) -> T:
        module, _, attribute = place.partition(":")
        if module in self._makers:
            make: Any = object_at(self._makers[module], "", "")
            made: T = make(name, attribute)
            return made
        found = object_at(place, f" of the {self._what} {place}", "check its name")
        if isinstance(found, self._kind) or (isinstance(found, type) and issubclass(found, self._kind)):
            return cast("T", found)
        raise UserError(f"{module} has no {self._what} {attribute}", f"it must be a {self._kind.__name__}")

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    def __setitem__(self, name: str, part: T) -> None:
        self._found[name] = part

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found or name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter([*self._places, *(name for name in self._found if name not in self._places and ":" not in name)])

    def __len__(self) -> int:
        return sum(1 for _ in self)
