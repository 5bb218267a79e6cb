"""A house as a game file of ALFWorld's rules, and its play in TextWorld's own engine.

Flows in: a `House`, or a problem and a sentence, and commands; flows out: the engine's texts and the commands that it
allows. TextWorld lists things in the order of a set, which hangs on PYTHONHASHSEED; here they are listed by name.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import threading
import types
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from atlas_ray.environments.builtin.alfworld.house import (
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    LAMP,
    OPENABLE,
    PLACES,
    House,
    Type,
    kind,
)
from atlas_ray.errors import UserError

_GOALS: dict[Type, str] = {
    "put": "(inReceptacle ?o ?r)",
    "clean": "(cleanable ?o) (isClean ?o) (inReceptacle ?o ?r)",
    "heat": "(heatable ?o) (isHot ?o) (inReceptacle ?o ?r)",
    "cool": "(coolable ?o) (isCool ?o) (inReceptacle ?o ?r)",
    "two": "(inReceptacle ?o ?r) (exists (?p - object) (and (not (= ?o ?p)) (objectType ?p {what}Type)"
    " (inReceptacle ?p ?r)))",
}
_LIGHT = """(and
 (exists (?t - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?t {where}Type) (toggleable ?t)
  (isToggled ?t) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?t ?r)))
 (exists (?o - object ?a - agent) (and (objectType ?o {what}Type) (holds ?a ?o))))"""
_PUT = "(exists (?r - receptacle ?o - object) (and (objectType ?o {what}Type) (receptacleType ?r {where}Type) %s))"
_WORDS = (  # AgentGym's names and texts, which are those of ALFWorld before 0.4
    (re.compile(r"move (\w+ \d+) to (\w+ \d+)"), r"put \1 in/on \2"),
    (re.compile(r"You move the (\w+ \d+) to the (\w+ \d+)\."), r"You put the \1 in/on the \2."),
)
_UNSAFE = re.compile(r"[^A-Za-z0-9 ,.'-]+")
_KEPT = 8  # games whose translations are kept
_SEEN = re.compile(r"(?<=you see )(a .*?)(?=\.(?:\s|$))")


def problem(house: House) -> str:
    """The house in PDDL, on ALFWorld's domain.

    Returns:
        Objects whose ids are the names with `_` for the space; each piece of furniture stands at its own location.
    """
    rooms = PLACES[house.room]
    rtypes = {kind(one) for one in house.furniture} | {"sinkbasin", "fridge", "microwave"}  # the rules name these
    otypes = {kind(one) for one in house.things} | {"knife", "butterknife"}
    typed = {
        "agent": ["agent1"],
        "location": ["start", *(f"at_{_id(one)}" for one in house.furniture)],
        "receptacle": [_id(one) for one in house.furniture],
        "object": [_id(one) for one in house.things],
        "rtype": [f"{one}Type" for one in sorted(rtypes)],
        "otype": [f"{one}Type" for one in sorted(otypes)],
    }
    facts = ["(= (total-cost) 0)", "(atLocation agent1 start)"]
    for one in house.furniture:
        facts += [f"(receptacleAtLocation {_id(one)} at_{_id(one)})", f"(receptacleType {_id(one)} {kind(one)}Type)"]
        if kind(one) in OPENABLE:
            facts.append(f"(openable {_id(one)})")
    for one, place in house.things.items():
        name, what = _id(one), kind(one)
        facts += [f"(objectType {name} {what}Type)", f"(inReceptacle {name} {_id(place)})"]
        facts.append(f"(objectAtLocation {name} at_{_id(place)})")
        traits = {"cleanable": CLEANABLE, "heatable": HEATABLE, "coolable": COOLABLE, "toggleable": (LAMP,)}
        facts += [f"({trait} {name})" for trait, kinds in traits.items() if what in kinds]
        if what != LAMP:
            facts.append(f"(pickupable {name})")
    for what in sorted(otypes):
        facts += [f"(canContain {place}Type {what}Type)" for place in rooms.get(what, ()) if place in rtypes]
    goal = (_LIGHT if house.type == "light" else _PUT % _GOALS[house.type]).format(what=house.what, where=house.where)
    objects = "\n ".join(f"{' '.join(names)} - {type_}" for type_, names in typed.items())
    init = "\n ".join(facts)
    return f"(define (problem house)\n(:domain alfred)\n(:objects\n {objects})\n(:init\n {init})\n(:goal {goal})\n)"


def data(problem: str, sentence: str) -> dict[str, Any]:
    """What a game file holds that `alfworld-generate` makes of a problem and the task's sentence.

    TextWorld evaluates pieces of the grammar as Python, so the grammar is ALFWorld's own and never one from a file,
    and a sentence must not hold the signs that would begin such a piece.
    """
    domain, grammar = _rules()
    told = grammar.replace("UNKNOWN GOAL", _UNSAFE.sub(" ", sentence))
    return {"pddl_domain": domain, "grammar": told, "pddl_problem": problem, "solvable": True}


class Engine:
    """TextWorld's engine with one game at a time.

    Raises:
        UserError: If alfworld or textworld is not installed.
    """

    def __init__(self) -> None:
        made = _engine_class()
        library = _LIBRARIES.pop() if _LIBRARIES else _library()
        self._env = made(library)
        self._release = weakref.finalize(self, _give_back, library)

    def load(self, house: House) -> str:
        """Starts a house's game; the opening text."""
        return self.begin(problem(house), house.sentence)

    def begin(self, problem: str, sentence: str) -> str:
        """Starts the game of a problem in PDDL, with the task's sentence; the opening text, without the greeting."""
        with _lock, _kept():
            self._env.load(data(problem, sentence))
            self._state = self._env.reset()
            _forget()
            self._commands = self._named()
        return "\n".join(_ordered(self._state.feedback).split("\n\n")[1:])  # as AgentGym's

    @property
    def commands(self) -> list[str]:
        """What can be done now, sorted, in AgentGym's names."""
        return list(self._commands)

    def play(self, command: str) -> tuple[str, bool]:
        """Plays a command: the text, and whether the goal is reached. What cannot be done changes nothing."""
        if command not in self._commands:
            return "Nothing happens.", False
        with _lock:
            self._state, _, _ = self._env.step(self._commands[command])
            _forget()
            self._commands = self._named()
        text = _ordered(self._state.feedback)
        return _WORDS[1][0].sub(_WORDS[1][1], text), bool(self._state["won"])

    def _named(self) -> dict[str, str]:
        """The engine's command by the name shown for it."""
        shown = {_WORDS[0][0].sub(_WORDS[0][1], one): one for one in self._state["admissible_commands"]}
        return dict(sorted(shown.items()))

    def close(self) -> None:
        """Frees the game; the engine cannot be used after it."""
        self._release()


def require() -> None:
    """Sees that the engine can be had.

    Raises:
        UserError: If alfworld or textworld is not installed.
    """
    _engine_class()


def _id(name: str) -> str:
    return name.replace(" ", "_")


def _names(ids: Iterable[str]) -> dict[str, str]:
    """The names shown for ids: the ones made here differ by a sign alone, those of ALFRED's scenes tell a place.

    Those of one kind are numbered as ALFWorld does it, the last in the alphabet first.
    """
    found, numbers = {one: one.replace("_", " ") for one in ids}, Counter[str]()
    for one in sorted(found, reverse=True):
        what, placed, _ = one.partition("_bar_")
        if placed:
            what += "basin" if "basin" in one else ""
            numbers[what] += 1
            found[one] = f"{what} {numbers[what]}"
    return found


def _ordered(text: str) -> str:
    """The same with each list of things by name and number."""

    def order(found: re.Match[str]) -> str:
        names = re.split(r", and |, ", found[1])
        if not all(re.fullmatch(r"a \w+ \d+", name) for name in names):
            return found[1]
        names.sort(key=lambda name: (name.split()[1], int(name.split()[2])))
        return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f", and {names[-1]}"

    return _SEEN.sub(order, text)


_lock = threading.Lock()  # TextWorld's parsers and the arguments of the process are the same for all games

# The planner's library holds one game at a time, so each engine has a copy. A copy that is unloaded may bring the
# process down at the next one, so copies wait here for other engines.
_LIBRARIES: list[Any] = []


def _library() -> Any:
    import fast_downward

    return fast_downward.load_lib()


def _give_back(library: Any) -> None:
    library.cleanup()
    _LIBRARIES.append(library)


def _forget() -> None:
    """Lets go of the parsers' last failures, whose tracebacks would keep whoever plays."""
    from textworld.envs.pddl import logic, textgen

    for parser in (logic._PARSER, textgen._PARSER):
        parser._initialize_caches()


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Keeps the arguments of the process, which the translator overwrites."""
    before = sys.argv
    try:
        yield
    finally:
        sys.argv = before


@functools.cache
def _rules() -> tuple[str, str]:
    """ALFWorld's domain and grammar; its package is found but not imported, for that makes a folder in the home."""
    import importlib.util

    found = importlib.util.find_spec("alfworld")
    if found is None or found.origin is None:
        raise _missing()
    data = Path(found.origin).parent / "data"
    return (data / "alfred.pddl").read_text("utf-8"), (data / "alfred.twl2").read_text("utf-8")


def _missing() -> UserError:
    return UserError("alfworld needs alfworld and textworld", "pip install 'atlas-ray[alfworld]'")


@functools.cache
def _engine_class() -> Any:
    """TextWorld's engine for ALFWorld's rules, with readable names; it parses and translates a game once."""
    _rules()
    try:
        import fast_downward
        from textworld import Environment
        from textworld.envs.pddl import PddlEnv, logic
    except ImportError:
        raise _missing() from None

    logic.fast_downward = types.SimpleNamespace(
        **vars(fast_downward) | {"pddl2sas": functools.lru_cache(_KEPT)(fast_downward.pddl2sas)}
    )

    @functools.lru_cache(_KEPT)
    def parsed(domain: str, grammar: str) -> Any:
        found = logic.GameLogic(domain=domain, grammar=grammar)
        derive, known = found.grammar.derive, {}

        def remembering(start: str, context: Any) -> str:
            """Commands are made anew at every step, though they hang on names alone; texts hang on the state."""
            if "#" in start:
                return str(derive(start, context))
            key = (start, *sorted((name, one.name) for name, one in context["variables"].items()))
            if key not in known:
                known[key] = str(derive(start, context))
            return known[key]

        found.grammar.derive = remembering
        return found

    class Env(PddlEnv):  # type: ignore[misc]
        def __init__(self, library: Any) -> None:
            Environment.__init__(self, None)  # the parent's loads a library of its own
            self.downward_lib = library

        def load(self, data: dict[str, Any]) -> None:
            self._game_file, self._game_data, self.walkthrough = None, data, None
            self._logic = parsed(self._game_data["pddl_domain"], self._game_data["grammar"])
            self._pddl_state = logic.PddlState(self.downward_lib, self._game_data["pddl_problem"], self._logic)
            self._entity_infos = self._get_entity_infos()

        def _get_entity_infos(self) -> Any:
            infos = super()._get_entity_infos()
            for one, name in _names(infos).items():
                infos[one].name = name
            return infos

    return Env
