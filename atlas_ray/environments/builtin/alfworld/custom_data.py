"""ALFWorld's real games, as `alfworld-download` lays them out, in TextWorld's engine.

Flows in: the folder that ALFWORLD_DATA names; flows out: a task per game. A game file brings its scene and the task's
sentence; rules and texts are those of the installed alfworld, for TextWorld evaluates a grammar as Python.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from atlas_ray.environments.builtin.alfworld.game import Engine, require
from atlas_ray.environments.builtin.alfworld.simulator import INSTRUCTION, known
from atlas_ray.environments.builtin.scripted import task_at
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.http.dialects import AVAILABLE_ACTIONS
from atlas_ray.environments.protocol import Opening, StepResult, Unscripted
from atlas_ray.errors import EnvironmentFailure, UserError

_PARTS = ("valid_unseen", "train", "valid_seen")  # test tasks come first
_MOST_BYTES = 2**22
_SENTENCE = re.compile(r'Your task is to: ([^"\\\n]{1,1000})"')


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played of a game file: the problem in PDDL, and the task's sentence."""

    problem: str
    sentence: str


def load(folder: str) -> CustomData:
    """The games that are said to be solvable, by part and path; as in ALFWorld, none with movable or sliced things.

    Raises:
        UserError: If there is none, or a file is no game.
    """
    parts, games = games_in(folder)
    return CustomData(functools.partial(OwnAlfWorld, tuple(games)), parts)


def games_in(folder: str) -> tuple[dict[str, int], list[Path]]:
    """How many games each part has, and all of them in the order of their numbers.

    Raises:
        UserError: As `load`.
    """
    root, parts, games = Path(folder) / "json_2.1.1", dict[str, int](), list[Path]()
    for part in _PARTS:
        found = sorted(file for file in root.glob(f"{part}/*/*/game.tw-pddl") if _is_played(file.relative_to(root)))
        if playable := [file for file in found if _read(file)]:
            parts[part] = len(playable)
            games += playable
    if not games:
        raise UserError(
            f"there is no game in {folder}",
            f"alfworld=FOLDER looks for json_2.1.1/{_PARTS[0]}/TASK/TRIAL/game.tw-pddl, as alfworld-download makes it",
        )
    return parts, games


class OwnAlfWorld(Unscripted):
    """The simulator: reward 1 and done at the goal, 0 before it.

    Raises:
        UserError: If alfworld or textworld is not installed.
    """

    def __init__(self, games: tuple[Path, ...]) -> None:
        require()
        self._games = games
        self._engine: Engine | None = None
        self._end: StepResult | None = None
        self.task_type = ""  # TASK/TRIAL, as AgentGym's server tells it

    def reset(self, index: int) -> Opening:
        """Starts game `index`.

        Raises:
            UserError: If there is no such game.
            EnvironmentFailure: If its file is damaged or gone.
        """
        file = task_at(self._games, index, "alfworld")
        try:
            scene = _read(file)
        except UserError as error:
            raise EnvironmentFailure(error.what, error.remedy) from None
        if scene is None:
            raise EnvironmentFailure(f"{file}: said to be unsolvable now", "start the server again")
        self._end, self.task_type = None, f"{file.parent.parent.name}/{file.parent.name}"
        self._engine = self._engine or Engine()
        try:
            text = self._engine.begin(scene.problem, scene.sentence)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the translator's and parsers', of any kind
            self.close()
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise EnvironmentFailure(f"{file}: no game of ALFWorld's rules: {said[0][:200]}") from None
        return Opening(INSTRUCTION, text + AVAILABLE_ACTIONS + ",".join(self.available_actions))

    def step(self, action: str) -> StepResult:
        """Plays one action; one that is not possible, or comes after the end, changes nothing."""
        if self._end:
            return self._end
        text, won = self._ready().play(known(action))
        result = StepResult(text, float(won), won)
        self._end = result if won else None
        return result

    @property
    def available_actions(self) -> list[str]:
        """What can be done now."""
        return self._ready().commands

    def close(self) -> None:
        """Frees the engine's memory; a reset takes a new one."""
        if self._engine:
            self._engine.close()
        self._engine = None

    def _ready(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the simulator was not reset")
        return self._engine


def _is_played(file: Path) -> bool:
    return "movable" not in str(file) and "Sliced" not in str(file)


def _read(file: Path) -> Scene | None:
    """A file's game; None if it is not known to be solvable, as ALFWorld wants it.

    Raises:
        UserError: If it is no game.
    """
    remedy = "run alfworld-download again, or take it out of the folder"
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{file}: too large for a game", remedy)
        data = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", remedy) from None
    except (ValueError, RecursionError):
        raise UserError(f"{file}: not JSON, so no game", remedy) from None
    if not isinstance(data, dict) or not all(isinstance(data.get(key), str) for key in ("pddl_problem", "grammar")):
        raise UserError(f"{file}: no game, it needs pddl_problem and grammar", remedy)
    if data.get("solvable") is not True:
        return None
    told = _SENTENCE.search(data["grammar"])
    if told is None or "UNKNOWN GOAL" in told[1]:
        raise UserError(f"{file}: its grammar does not tell the task", remedy)
    return Scene(data["pddl_problem"], told[1].strip().removesuffix("."))
