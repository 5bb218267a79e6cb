"""SciWorld: experiments of elementary science in a house of eight rooms, in ScienceWorld's own simulator.

A task is one of AgentGym's 4,639; the splits are of those that ScienceWorld's own way solves within the cap on rounds.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Any

from atlas_ray.environments.builtin.sciworld.machines import JavaGame, require
from atlas_ray.environments.builtin.sciworld.tasks import N_TEST, N_TRAIN, aim, games, paths
from atlas_ray.environments.builtin.scripted import any_category, errs, task_at
from atlas_ray.environments.http.dialects import SCORED, Dialect
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import EnvironmentFailure
from atlas_ray.types import Category

MAX_ROUNDS = 30
INSTRUCTION = """\
You are in a house with a workshop, a greenhouse and a foundry, and do experiments of elementary science. Every round \
you get an observation and answer with a thought and one action. OBJ is a thing that you see or hold, LOC a room:
- open OBJ, close OBJ, go to LOC (through an open door)
- activate OBJ, deactivate OBJ, use OBJ, use OBJ on OBJ
- connect OBJ to OBJ, disconnect OBJ
- look around, look at OBJ, look in OBJ, examine OBJ, read OBJ, inventory, task
- pick up OBJ, drop OBJ, move OBJ to OBJ, pour OBJ into OBJ, dunk OBJ into OBJ, mix OBJ
- eat OBJ, flush OBJ
- focus on OBJ: says that this is what the task asks for; a wrong one ends the task
- wait: for ten steps; wait1: for one
Where an action could mean several things you are asked for the number of the one that you mean.
Answer in this form:
Thought: your thought
Action: your action"""

_MOST_MOVES = 100  # as AgentGym's server
_CANCEL = "cancel"  # any text but a number takes back an ambiguous action

PLAN, SEEN = Category.PLAN_CREATION, Category.CRITICAL_OBSERVATION
ACT, MEND = Category.CRITICAL_ACTION, Category.SELF_CORRECTION

_CATEGORIES = {"focus": ACT, "pick": SEEN, "read": SEEN, "use": SEEN} | dict.fromkeys(
    ("connect", "move", "pour", "mix", "activate"), ACT
)
# what a novice errs
_SHARE = {"focus": 0.5, "pick": 0.2, "use": 0.3, "read": 0.2, "connect": 0.25, "move": 0.4, "pour": 0.2, "mix": 0.2}

_PLANS = (
    "My task is to {aim}. I begin so: {action}.",
    "The plan: get to what I need, then {aim}. First: {action}.",
    "To {aim} I have to be in the right place with the right things. I start with: {action}.",
)
_MENDING = (
    "That did not help. To {aim} I have to do something else: {action}.",
    "I made a mistake, and set it right: {action}.",
    "This was no use. What I need is: {action}.",
)
_SAY: dict[str, tuple[str, ...]] = {
    "go": ("What I need is not here, so I go on to the {room}.", "On to the {room}.", "My way leads to the {room}."),
    "door": ("The door to the {room} is closed.", "I open the door to the {room}.", "First the door to the {room}."),
    "look": ("I look at what there is.", "What do I see now?", "I need to know what is around me."),
    "open": ("Something may be in the {thing}.", "I open the {thing}.", "I need to get into the {thing}."),
    "examine": ("How is the {thing} now?", "I check the {thing}.", "I look closely at the {thing}."),
    "wait": ("This takes some time.", "I let it happen.", "Now I have to be patient."),
    "focus": (
        "To {aim}, this is the thing that counts: {thing}. I focus on it.",
        "I have found what the task asks for: {thing}.",
        "The task wants me to focus on it now: {thing}.",
    ),
    "pick": (
        "Here is the {thing}, which I need to {aim}.",
        "I see the {thing}. I take it along, for I have to {aim}.",
        "The {thing} is what I was looking for.",
    ),
    "read": ("The {thing} says what I need.", "What does the {thing} say? I need it to {aim}.", "I read the {thing}."),
    "use": (
        "Now I can measure it: {action}.",
        "What I see now decides what is to be done. I {action}.",
        "To {aim} I have to know how it is now: {action}.",
    ),
    "connect": (
        "The circuit needs this: {action}.",
        "Next part of the circuit: {action}.",
        "To {aim} I wire it up: {action}.",
    ),
    "move": ("It has to go there: {action}.", "To {aim} I {action}.", "This is the moment to {action}."),
    "pour": ("Both have to come together: {action}.", "To {aim} I {action}.", "Next I {action}."),
    "mix": ("All is in it, so I mix it: {thing}.", "To {aim} I mix the {thing}.", "Mixed it becomes what I want."),
    "activate": ("It has to be on: {thing}.", "To {aim} I turn on the {thing}.", "Now I turn on the {thing}."),
    "do": ("Next: {action}.", "I {action}.", "Then {action}."),
}
_SEEN_THING = re.compile(r"^\t(?:an? |the )?(?:substance called )?([a-z][a-z -]*?)(?= \(|,|\.|$)", re.M)
_DOOR = re.compile(r"[Dd]oor to the ([a-z ]+?) \(")


class SciWorld:
    """The simulator: its score so far, and done when nothing is left to do or the wrong thing was focused on.

    Raises:
        UserError: If scienceworld or Java is not installed.
    """

    def __init__(self) -> None:
        require()
        self._taken: JavaGame | None = None
        self._killed = False

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
            EnvironmentFailure: If Java fails, twice.
        """
        self.game = task_at(games(), index, "sciworld")
        self._path = paths().get(index, ())
        self._played: list[str] = []
        self._end: StepResult | None = None
        self._at = self._mistakes = 0
        self._failed = False
        self._back: list[str] = []  # rooms on the way back to the path
        self._room = ""
        try:
            text = self._start()
        except EnvironmentFailure:
            self.close()
            text = self._start()
        self._hear(text)
        return Opening(INSTRUCTION, f"{self.description}\n{text}")

    def step(self, action: str) -> StepResult:
        """Plays one command; what is none changes nothing.

        Raises:
            EnvironmentFailure: If Java fails, and again after a replay on another machine.
        """
        if self._end:
            return self._end
        command = " ".join(action[:500].encode("ascii", "replace").decode().split())[:200]
        due, room = self._due, self._room
        try:
            result = self._play(command)
        except EnvironmentFailure:
            self.close()
            self._start()
            for earlier in self._played:
                self._simulator.step(earlier)
            result = self._play(command)
        self._played.append(command)
        self._follow(command, due, room, result)
        if result.done:
            self._end = result
        return result

    @property
    def described(self) -> dict[str, Any]:
        """The task in AgentGym's names."""
        return {
            "task_name": self.game.kind,
            "var_num": self.game.variation,
            "task_description": self.description,
        }

    @property
    def hints(self) -> dict[str, list[str]]:
        """The forms of actions, and what they can be about now."""
        return self._simulator.hints

    def kill(self) -> None:
        """Ends the Java machine under a call that hangs, and its game with it."""
        self._killed = True
        if self._taken:
            self._taken.kill()

    def close(self) -> None:
        """Gives the simulator back; a reset takes a new one."""
        if self._taken:
            self._taken.close()
        self._taken = None

    def expert(self, rng: random.Random) -> Decision:
        """ScienceWorld's own way; in some episodes it does something useless once, and corrects that at once."""
        due, category = self._situation()
        spare = MAX_ROUNDS - len(self._played) - (len(self._path) - self._at)
        if category in (SEEN, ACT) and not self._mistakes and spare >= 2 and rng.random() < 0.12:
            return replace(self._decide(rng, due, None, None), action=rng.choice(self._useless(due)))
        return self._decide(rng, due, category, category)

    def novice(self, rng: random.Random) -> Decision:
        """Finds its way; it often takes the wrong thing for the right one, or does not see what is to be done."""
        due, category = self._situation()
        decided = self._decide(rng, due, category, any_category(rng, category))
        verb, thing = due.split()[0], due.split()[-1]
        if category is None or not errs(rng, _SHARE.get(verb, 0.0), verb, self.game.kind, thing):
            return decided
        mistaken = random.Random(f"{self.game.kind}/{due}")  # the same mistake each time
        wrong = self._others(due) if verb == "focus" else self._useless(due)
        return replace(decided, action=mistaken.choice(wrong))

    @property
    def _simulator(self) -> JavaGame:
        if self._taken is None:
            raise RuntimeError("the simulator was not reset")
        return self._taken

    def _start(self) -> str:
        if self._killed:
            raise EnvironmentFailure("sciworld's Java machine was ended, for it hung")
        self._taken = self._taken or JavaGame()
        self.description = self._simulator.load(self.game.kind, self.game.variation)
        return self._simulator.step("look around")

    def _play(self, command: str) -> StepResult:
        text, score = self._simulator.step(command), self._simulator.score
        done = self._simulator.completed or score < 0 or self._simulator.moves > _MOST_MOVES
        return StepResult(text, score, done)

    def _follow(self, command: str, due: str, room: str, result: StepResult) -> None:
        """Takes in where the command led: along the path, or off it."""
        self._hear(result.observation)
        moved = self._room != room
        if command == due and self._back:
            self._back = self._back[: -1 if moved else None]
            self._failed = False
        elif command == due:
            self._at += due != _CANCEL
            self._failed = False
        else:
            if moved and room:
                self._back.append(room)
            self._failed = True
            self._mistakes += 1

    def _hear(self, text: str) -> None:
        if found := re.search(r"(?:You move to the|This (?:room|outside location) is called the) ([a-z ]+)\.", text):
            self._room = found[1]
        self._menu = text.startswith("Ambiguous request")

    @property
    def _due(self) -> str:
        """The next action of the path, or one that leads back to it."""
        onward = self._path[self._at] if self._at < len(self._path) else "look around"
        if self._menu and not onward.isdigit():
            return _CANCEL
        return f"go to {self._back[-1]}" if self._back else onward

    def _situation(self) -> tuple[str, Category | None]:
        """What is due and, if it is a decision, its category."""
        due = self._due
        if not self._played:
            return due, PLAN
        if self._failed:
            return due, MEND
        return due, _CATEGORIES.get(due.split()[0])

    def _useless(self, due: str) -> list[str]:
        """Harmless actions that do not lead on."""
        rooms = [room for room in _DOOR.findall(self._simulator.look()) if not due.endswith(room)]
        return ["inventory", "look around", "task", *(f"open door to {room}" for room in rooms)]

    def _others(self, due: str) -> list[str]:
        """What else in sight one could focus on."""
        names = [name for name in _SEEN_THING.findall(self._simulator.look()) if name not in due and name != "agent"]
        return [f"focus on {name}" for name in names if names.count(name) == 1] or ["focus on air"]

    def _decide(self, rng: random.Random, due: str, category: Category | None, said: Category | None) -> Decision:
        """A decision for what is due, marked as of one category and spoken as of one that may be another."""
        verb, _, rest = due.partition(" ")
        kind = {"open": "door" if rest.startswith("door") else "open", "wait1": "wait"}.get(verb, verb)
        words = {
            "aim": aim(self.description),
            "action": due,
            "room": rest.removeprefix("door to ").removeprefix("to "),
            "thing": re.sub(r"^(up|on|in) ", "", rest) or "room",
        }
        choices = {PLAN: _PLANS, MEND: _MENDING}.get(said) if said else None
        thought = rng.choice(choices or _SAY.get(kind, _SAY["do"])).format(**words)
        # decisions of every kind reach the top somewhere
        return Decision(thought, due, category, 0.3 + 0.7 * rng.random() if category else 0.0)


SPEC = EnvironmentSpec(
    *("sciworld", "in", MAX_ROUNDS, "reward", "last"),
    reward_scale=0.01,
    instruction=INSTRUCTION,
    simulator=SciWorld,
    n_train=N_TRAIN,
    n_test=N_TEST,
    indices=paths,
    extra="sciworld",
    tolerance=0.01,  # AgentGym's server swaps numbers in menus; the built-in one repeats itself
    dialect=Dialect(
        reward_key="score",
        opening="description",
        reset_fields=("task_name", "var_num", "task_description", *SCORED),
    ),
    agentgym="sciworld",
)
