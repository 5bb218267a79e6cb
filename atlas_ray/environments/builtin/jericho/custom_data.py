"""The user's own Z-machine games in Frotz, with the user's subgoals.

Flows in: a folder of story files, a `NAME.goals.yaml` or `NAME.goals.json` beside a story; flows out: a task per story.
A subgoal is a text that the story tells when it is reached, as in AgentBoard; a game that jericho knows needs none, its
score counts then. Where AgentBoard's `test.jsonl` is there, its rows are the tasks, in its order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atlas_ray.environments.agentgym.agentboard import Row, find_rows, folder_with
from atlas_ray.environments.builtin.jericho.simulator import INSTRUCTION, interpreter, understand
from atlas_ray.environments.builtin.scripted import task_at
from atlas_ray.environments.custom_data import CustomData
from atlas_ray.environments.protocol import Opening, StepResult, Unscripted
from atlas_ray.errors import UserError

_VERSIONS = {".z3": (3, 2), ".z5": (5, 4), ".z8": (8, 8)}  # the story format, and the unit of the length in its header
_MOST_BYTES, _MOST_LABEL_BYTES, _MOST_LABELS = 2**20, 2**16, 200
_PLACES = ("data/jericho/z-machine-games-master/jericho-game-suite", "jericho", "data/jericho", ".")
# AgentBoard's games in the order of its rows
_AGENTBOARD = (
    "905 acorncourt afflicted balances dragon jewel library omniquest reverb snacktime zenon zork1 zork2 zork3 "
    "detective night pentari weapon huntdark loose"
)
_PROMPT = re.compile(r"\n\s*>[^\n]*\s*\Z")  # and a status line after it
_ASKS_HOW_TO_GO_ON = re.compile(r"\brestart,?\s+(?:or\s+)?restore\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Game:
    """One story.

    Attributes:
        goal: What the player is told to reach; "" for nothing.
        subgoals: Texts that tell of it, as `_plain` makes them; none where the score counts.
        best: The highest score, where it counts.
    """

    file: Path
    goal: str
    subgoals: tuple[str, ...]
    best: int


def load(folder: str) -> CustomData:
    """The games that AgentBoard's rows name, else those of a folder, sorted by name.

    Raises:
        UserError: If there is none, one is damaged, or it is not known when one is won.
    """
    if (rows := find_rows("jericho", folder)) is not None:
        return _agentboard(rows, folder)
    found = sorted(file for file in Path(folder).glob("*") if file.suffix.lower() in _VERSIONS)
    if not found:
        raise UserError(f"there is no game in {folder}", f"jericho=FOLDER looks there for {', '.join(_VERSIONS)}")
    games = tuple(_game(file) for file in found)
    return CustomData(functools.partial(OwnJericho, games), {game.file.name: 1 for game in games})


def _agentboard(rows: list[Row], folder: str) -> CustomData:
    """A row names its game; where none does, AgentBoard's list of 20 tells, in the order of its rows."""
    wanted = "*.z[358]"
    place = folder_with(folder, _PLACES, wanted)
    if place is None:
        raise UserError(f"AgentBoard's games are not in {folder}", f"it keeps them in {_PLACES[0]}")
    stories = {file.stem: file for file in sorted(place.glob(wanted))}
    listed: Sequence[str] = _AGENTBOARD.split() if len(rows) == len(_AGENTBOARD.split()) else ()
    games: dict[str, Game] = {}
    for number, row in enumerate(rows):
        names = [n for n in dict.fromkeys(row.names) if n in stories] or list(listed[number : number + 1])
        if len(names) != 1 or names[0] not in stories:
            told = ", ".join([*row.names, *names]) or "none"
            raise UserError(f"{row.where}: its game ({told}) is not in {place}", "add the game's .z5 or .z8 file")
        _check(stories[names[0]])
        subgoals = tuple(dict.fromkeys(_plain(text) for text in row.subgoals))
        if not all(subgoals):
            raise UserError(f"{row.where}: a subgoal without a letter", "fetch the file again")
        title = names[0] if names[0] not in games else f"{names[0]} ({number})"
        games[title] = Game(stories[names[0]], row.goal, subgoals, 0)
    return CustomData(functools.partial(OwnJericho, tuple(games.values())), dict.fromkeys(games, 1))


class OwnJericho(Unscripted):
    """The simulator: the share of subgoals told of, or of the score; done at all of it, or when the story ends."""

    def __init__(self, games: tuple[Game, ...]) -> None:
        self._games, self._begin = games, interpreter()
        self._game: Game | None = None
        self._frotz: Any = None

    def reset(self, index: int) -> Opening:
        """Starts game `index`.

        Raises:
            UserError: If there is no such game.
        """
        game = task_at(self._games, index, "jericho")
        if self._frotz is None or self._game is not game:
            self._game, self._frotz = game, self._begin(game.file)
            known = (self._frotz.bindings or {}).get("seed", 1)  # with which a known game's walkthrough works
            self._frotz.seed(known if known > 0 else 1)
        self._told: set[str] = set()
        self._progress, self._ended = 0.0, False
        told = self._tell(game, self._frotz.reset)
        return Opening(INSTRUCTION, f"Your goal: {game.goal}\n\n{told}" if game.goal else told)

    def step(self, action: str) -> StepResult:
        """Plays one command; those to the interpreter change nothing."""
        if self._game is None:
            raise RuntimeError("the simulator was not reset")
        if self._ended:
            return StepResult("The story has ended.", self._progress, True, self._progress)
        command, told = understand(action)
        if not told:
            told = self._tell(self._game, functools.partial(self._frotz.step, command))
        return StepResult(told, self._progress, self._ended, self._progress)

    def close(self) -> None:
        """Ends the interpreter."""
        self._frotz = None

    def _tell(self, game: Game, act: Callable[[], tuple[Any, ...]]) -> str:
        """What the story answers; notes how far it has come by that."""
        try:
            answer = str(act()[0])
        except UnicodeDecodeError as error:  # it was played; a few bytes have no meaning in jericho's alphabet
            answer = error.object.decode("cp1252", "replace")
        frotz = self._frotz
        if game.subgoals:
            heard = _plain(answer)
            self._told |= {text for text in game.subgoals if text in heard}
            self._progress = len(self._told) / len(game.subgoals)
        else:
            self._progress = max(self._progress, min(1.0, frotz.get_score() / game.best))
        over = frotz.game_over() or frotz.victory() or frotz._emulator_halted()
        self._ended = self._progress >= 1 or bool(over or _ASKS_HOW_TO_GO_ON.search(answer))
        return re.sub(r"\n\s*\n+", "\n", _PROMPT.sub("", answer)).strip()


def _game(file: Path) -> Game:
    """A story with its subgoals.

    Raises:
        UserError: If it is damaged, or it is not known when it is won.
    """
    _check(file)
    goal, subgoals = _labels(file)
    frotz = interpreter()(file)
    best = int(frotz.get_max_score()) if frotz.is_fully_supported else 0
    if not subgoals and best <= 0:
        raise UserError(
            f"{file}: jericho does not know this game's score",
            f"write {file.stem}.goals.yaml beside it, a list of texts that the story tells when a subgoal is reached",
        )
    return Game(file, goal, subgoals, best)


def _check(file: Path) -> None:
    """Sees that a story is whole: the interpreter would bring the process down.

    Raises:
        UserError: If it is not.
    """
    remedy = "take a whole one, or move it out of the folder"
    if not 64 <= file.stat().st_size <= _MOST_BYTES:
        raise UserError(f"{file}: no story of the Z-machine, for its size", remedy)
    data, (version, unit) = file.read_bytes(), _VERSIONS[file.suffix.lower()]
    if data[0] != version:
        raise UserError(f"{file}: no story of the Z-machine's version {version}", remedy)
    length, sum_ = unit * int.from_bytes(data[0x1A:0x1C]), int.from_bytes(data[0x1C:0x1E])
    if length > len(data) or (length and sum_ and sum(data[64:length]) % 2**16 != sum_):
        raise UserError(f"{file}: a damaged story, its length or checksum is not what its header says", remedy)


def _labels(story: Path) -> tuple[str, tuple[str, ...]]:
    """What a story's labels tell: the goal, the subgoals.

    Raises:
        UserError: If they are not in the right form.
    """
    beside = [story.with_name(f"{story.stem}.goals.{suffix}") for suffix in ("yaml", "json")]
    file = next((one for one in beside if one.exists()), None)
    if file is None:
        return "", ()
    wrong = UserError(
        f"{file}: not a list of texts",
        f"write 1 to {_MOST_LABELS} texts of the story as a list, or `goal:` with a text and `subgoals:` with the list",
    )
    if file.stat().st_size > _MOST_LABEL_BYTES:
        raise wrong
    try:
        told = yaml.safe_load(file.read_text("utf-8"))  # JSON too
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise wrong from None
    goal, texts = (told.get("goal", ""), told.get("subgoals")) if isinstance(told, dict) else ("", told)
    if not isinstance(goal, str) or not isinstance(texts, list) or not 0 < len(texts) <= _MOST_LABELS:
        raise wrong
    if not all(isinstance(text, str) and _plain(text) for text in texts):
        raise wrong
    return goal.strip(), tuple(dict.fromkeys(_plain(text) for text in texts))


def _plain(text: str) -> str:
    """Letters and digits without capitals, single spaces: a story breaks its lines anywhere; AgentBoard drops marks."""
    return " ".join(re.sub(r"[^\w\s]", "", text).split()).casefold()
