"""A small STRIPS simulator: typed domains in PDDL, states as frozen sets of facts.

Flows in: a domain's text and a problem's objects; flows out: the ground actions, and the states that they lead to.
Supported: `:strips` and `:typing`; conditions are conjunctions of positive facts, effects add and delete facts.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

Fact = tuple[str, ...]
State = frozenset[Fact]


@dataclass(frozen=True, slots=True)
class Action:
    """A ground action; as a fact of its own (`key`) it is its name and arguments."""

    key: Fact
    needs: State
    adds: State
    deletes: State

    def is_possible(self, state: State) -> bool:
        """Whether its condition holds."""
        return self.needs <= state

    def after(self, state: State) -> State:
        """The state that it leads to."""
        return (state - self.deletes) | self.adds


@dataclass(frozen=True, slots=True)
class Schema:
    """An action with parameters: (variable, type) in order."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    needs: tuple[Fact, ...]
    adds: tuple[Fact, ...]
    deletes: tuple[Fact, ...]

    def bind(self, arguments: Sequence[str]) -> Action:
        """The ground action; the arguments' types are the caller's business."""
        adds = self.ground(self.adds, arguments)
        deletes = self.ground(self.deletes, arguments) - adds
        return Action((self.name, *arguments), self.ground(self.needs, arguments), adds, deletes)

    def ground(self, facts: tuple[Fact, ...], arguments: Sequence[str]) -> State:
        """Facts with arguments in place of the parameters."""
        names = {variable: name for (variable, _), name in zip(self.parameters, arguments, strict=True)}
        return frozenset(tuple(names.get(word, word) for word in fact) for fact in facts)


@dataclass(frozen=True, eq=False)  # the same one only: what is made for it is kept
class Domain:
    """A parsed domain. `types` names each type's parent, `constants` each constant's type."""

    name: str
    types: Mapping[str, str]
    constants: Mapping[str, str]
    schemas: Mapping[str, Schema]

    def is_a(self, kind: str, wanted: str) -> bool:
        """Whether a type is another or below it."""
        while kind != wanted and kind in self.types:
            kind = self.types[kind]
        return kind == wanted

    def ground(self, objects: Mapping[str, str], initial: State) -> dict[Fact, Action]:
        """All actions of a problem whose unchanging conditions hold, by key, in a fixed order."""
        objects = {**self.constants, **objects}
        changing = {fact[0] for schema in self.schemas.values() for fact in (*schema.adds, *schema.deletes)}
        found = {}
        for schema in self.schemas.values():
            lasting = tuple(fact for fact in schema.needs if fact[0] not in changing)
            choices = [
                [
                    name
                    for name, kind in objects.items()
                    if self.is_a(kind, wanted)
                    # a domain without types says by facts what an object is
                    and all((fact[0], name) in initial for fact in lasting if fact[1:] == (variable,))
                ]
                for variable, wanted in schema.parameters
            ]
            for arguments in itertools.product(*choices):
                if schema.ground(lasting, arguments) <= initial:
                    action = schema.bind(arguments)
                    found[action.key] = action
        return found


def parse_domain(text: str) -> Domain:
    """Reads a domain.

    Raises:
        ValueError: If it is malformed or uses what is not supported.
    """
    name, types, constants, schemas = "", {}, {}, {}
    for part in _defined(text):
        match part[0]:
            case "domain":
                name = part[1]
            case ":types":
                types = dict(_typed(part[1:]))
            case ":constants":
                constants = dict(_typed(part[1:]))
            case ":action":
                schema = _schema(part)
                schemas[schema.name] = schema
            case ":requirements":
                if set(part[1:]) - {":strips", ":typing"}:
                    raise ValueError(f"requirements beyond :strips and :typing in {part}")
            case ":predicates":
                pass
            case other:
                raise ValueError(f"{other} is not supported")
    return Domain(name, types, constants, schemas)


def parse_problem(text: str) -> tuple[dict[str, str], State, tuple[Fact, ...]]:
    """Reads a problem.

    Returns:
        Each object's type, the initial state, and the goal's facts.

    Raises:
        ValueError: If it is malformed or uses what is not supported.
    """
    parts = {part[0]: part[1:] for part in _defined(text)}
    if not {":init", ":goal"} <= parts.keys():
        raise ValueError("a problem has an (:init ...) and a (:goal ...)")
    initial, _ = _conjunction(["and", *parts[":init"]])
    goal, negated = _conjunction(parts[":goal"][0] if parts[":goal"] else [])
    if negated or not goal:
        raise ValueError("a goal is a conjunction of facts")
    return dict(_typed(parts.get(":objects", []))), frozenset(initial), goal


@functools.cache
def load_domain(name: str) -> Domain:
    """One of the domains that lie beside this module."""
    return parse_domain(resources.files(__package__).joinpath(f"{name}.pddl").read_text("utf-8"))


def _defined(text: str) -> list[Any]:
    """The parts of a text that is one (define ...)."""
    # a variable begins a word wherever it stands: "?l - level?m - level" occurs
    tokens = iter(re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text.lower()).replace("?", " ?")))
    if next(tokens, None) != "(":
        raise ValueError("PDDL starts with a parenthesis")
    tree = _read(tokens)
    if not tree or tree[0] != "define" or next(tokens, None) is not None:
        raise ValueError("PDDL is one (define ...)")
    if not all(isinstance(part, list) and part and isinstance(part[0], str) for part in tree[1:]):
        raise ValueError("every part of a (define ...) is a list with a name")
    return tree[1:]


def _read(tokens: Iterator[str]) -> list[Any]:
    """What stands up to the closing parenthesis."""
    found: list[Any] = []
    for token in tokens:
        if token == ")":
            return found
        found.append(_read(tokens) if token == "(" else token)
    raise ValueError("a parenthesis is not closed")


def _typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """`a b - t c` as (name, type) pairs; what has no type is an object."""
    pairs, waiting, words = list[tuple[str, str]](), list[str](), list(words)
    while words:
        word = words.pop(0)
        if word == "-":
            kind = words.pop(0)
            pairs += [(name, kind) for name in waiting]
            waiting = []
        else:
            waiting.append(word)
    return pairs + [(name, "object") for name in waiting]


def _schema(part: list[Any]) -> Schema:
    parts = dict(zip(part[2::2], part[3::2], strict=True))
    if set(parts) - {":parameters", ":precondition", ":effect"}:
        raise ValueError(f"action {part[1]}: {sorted(parts)} is not supported")
    needs, negated = _conjunction(parts.get(":precondition", []))
    if negated:
        raise ValueError(f"action {part[1]}: negative conditions are not supported")
    adds, deletes = _conjunction(parts[":effect"])
    return Schema(part[1], tuple(_typed(parts.get(":parameters", []))), needs, adds, deletes)


def _conjunction(tree: list[Any]) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The facts of a conjunction, and those that it negates."""
    if not tree:
        return (), ()
    items = tree[1:] if tree[0] == "and" else [tree]
    positive = tuple(tuple(item) for item in items if item[0] != "not")
    negative = tuple(tuple(item[1]) for item in items if item[0] == "not")
    if any(not all(isinstance(word, str) for word in fact) for fact in (*positive, *negative)):
        raise ValueError(f"only conjunctions of facts are supported: {tree}")
    return positive, negative
