"""Jericho: text adventures in their own interpreter, with four small stories of this project.

A task is a story's variant and where in it one starts: what lies before was done already. The progress is the share of
the subgoals that follow, as in AgentBoard, and so is the reward.
"""

from __future__ import annotations

import functools
import random
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any

from atlas_ray.environments.builtin.jericho.stories import STORIES, VARIANTS, Milestone, Story, story
from atlas_ray.environments.builtin.scripted import any_category, errs, task_at
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import UserError
from atlas_ray.types import Category

MAX_ROUNDS = 15
INSTRUCTION = """\
You are in a text adventure and want to reach its goals. Every round you get an observation, what the story tells, and \
answer with a thought and one action, a short command as such stories understand it, for example:
- north, south, east, west, up, down: go there
- look, inventory, examine THING, search THING, look under THING
- take THING, drop THING, put THING in THING, put THING on THING, give THING to SOMEBODY, show THING to SOMEBODY
- open THING, unlock THING with THING, pull THING, switch on THING, light THING, fill THING, read THING, wave THING
- set THING to NUMBER, enter THING
Answer in this form:
Thought: your thought
Action: your command"""

_STARTS = 2  # of each variant: at the beginning, and half-way
_TEST_VARIANTS = 5
N_TEST = _TEST_VARIANTS * len(STORIES) * _STARTS
N_TRAIN = (VARIANTS - _TEST_VARIANTS) * len(STORIES) * _STARTS

PLAN, MEND = Category.PLAN_CREATION, Category.SELF_CORRECTION
# commands to the interpreter, wherever one may begin, and what takes back what the story has told
_META = re.compile(
    r"\b(save|restore|restart|quit|q|die|undo|oops|again|g|script|unscript|noscript|transcript|recording|replay|verify"
    r"|notify|version|pronouns|zzvar\w*|then)\b|^(brief|normal|verbose|long|superbrief|short)\b"
)
_STATUS = re.compile(r">?\s*([A-Z][A-Za-z ]*?)Moves: \d+\s*$")

_SAY: dict[Category | None, tuple[str, ...]] = {
    PLAN: (
        "The plan: {goals}. I begin, for {why}.",
        "I have to {goals}. First: {why}.",
        "What is there to do? {goals}, one after the other. And {why}.",
    ),
    Category.CRITICAL_OBSERVATION: (
        "I was told that {why}. So I do just that.",
        "The text matters here: {why}.",
        "I remember that {why}.",
    ),
    Category.CRITICAL_ACTION: (
        "This is the moment, for {why}.",
        "Now it counts: {why}.",
        "I am in the right place, and {why}.",
    ),
    MEND: (
        "That was no use. I set it right: {why}.",
        "I made a mistake. But {why}, so I do that instead.",
        "Wrong. Once more: {why}.",
    ),
    None: ("As {why}, I go on.", "Next: {why}.", "Well, {why}."),
}
_WAY = ("I have to be at the {room}, so I go {way}.", "The {room} lies that way: {way}.", "On to the {room}.")


@dataclass(frozen=True, slots=True)
class _Task:
    name: str
    variant: int
    start: int  # milestones that are done already


@functools.cache
def tasks() -> tuple[_Task, ...]:
    """All tasks; those of a variant are all in one split."""
    return tuple(
        _Task(name, variant, half * (len(story(name, variant).milestones) // _STARTS))
        for variant in range(VARIANTS)
        for name in STORIES
        for half in range(_STARTS)
    )


def understand(action: str) -> tuple[str, str]:
    """The command in an action, in plain letters, and what is said instead of playing it: "" where it is played."""
    command = " ".join(re.sub(r"[^a-z0-9' -]+", " ", action[:500].lower()).split())[:120]
    if not command:
        return "", "What do you want to do?"
    return command, "That is no part of the story." if _META.search(command) else ""


def interpreter() -> Callable[[Any], Any]:
    """What starts Frotz on a story's file.

    Raises:
        UserError: If jericho is not installed.
    """
    try:
        from jericho import FrotzEnv
    except ImportError:
        raise UserError("the built-in jericho needs jericho", "pip install 'atlas-ray[jericho]'") from None

    def begin(file: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it does not know a story
            return FrotzEnv(str(file), seed=1)

    return begin


class Jericho:
    """The simulator: a story in Frotz, its progress, and done when it ends.

    Raises:
        UserError: If jericho is not installed.
    """

    def __init__(self) -> None:
        self._open, self._name = interpreter(), ""
        self._frotz: Any = None
        self._room = ""

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        task = task_at(tasks(), index, "jericho")
        self._story: Story = story(task.name, task.variant)
        self._task = (task.name, task.variant)
        self._done, self._rounds, self._failed, self._mistakes, self._ended = 0, 0, False, 0, False
        if self._frotz is None or self._name != task.name:
            file = resources.files("atlas_ray.environments.builtin.jericho") / "stories" / f"{task.name}.z5"
            self._name, self._frotz = task.name, self._open(file)
        self._frotz.reset()
        told = self._tell(f"zzvariant {task.variant}")
        while self._done < task.start:
            self._tell(self._due[0])
        self._start = task.start
        if task.start:
            told = f"{told.split(chr(10), maxsplit=1)[0]}\n\n{self._tell('look')}\n\n{self._tell('inventory')}"
        left = ", ".join(m.goal for m in self._story.milestones[task.start :] if m.goal)
        return Opening(INSTRUCTION, f"Your goals: {left}.\n\n{told}")

    def step(self, action: str) -> StepResult:
        """Plays one command; what is no command of the story changes nothing."""
        if self._ended:
            return StepResult("The story has ended.", self._progress, True, self._progress)
        due, _ = self._due
        command, refusal = understand(action)
        self._rounds += 1
        before = self._done
        told = refusal or self._tell(command)
        self._failed = command != due and self._done == before
        self._mistakes += self._failed
        self._ended |= self._done == len(self._story.milestones)
        return StepResult(told, self._progress, self._ended, self._progress)

    def expert(self, rng: random.Random) -> Decision:
        """Knows the way; in some episodes it does the wrong thing once, and corrects that at once."""
        command, milestone, category = self._situation()
        left = len(self._story.milestones) - self._done
        spare = not self._mistakes and self._rounds + 2 * left < MAX_ROUNDS
        if milestone and milestone.wrong and spare and rng.random() < 0.25:
            return self._decide(rng, rng.choice(milestone.wrong), milestone, None, category)
        return self._decide(rng, command, milestone, category, category)

    def novice(self, rng: random.Random) -> Decision:
        """Knows the way too, but does not read well and tries things that do not help."""
        command, milestone, category = self._situation()
        spoken = any_category(rng, category)
        if milestone and milestone.wrong and errs(rng, 0.28, *self._task, milestone.command):
            mistaken = random.Random(f"{self._task}/{milestone.command}").choice(milestone.wrong)  # the same each time
            return self._decide(rng, mistaken, milestone, category, spoken)
        return self._decide(rng, command, milestone, category, spoken)

    def close(self) -> None:
        """Ends the interpreter."""
        self._frotz = None

    @property
    def _goals(self) -> list[int]:
        return [n for n, milestone in enumerate(self._story.milestones) if milestone.goal]

    @property
    def _progress(self) -> float:
        goals = [n for n in self._goals if n >= self._start]
        return sum(n < self._done for n in goals) / len(goals)

    def _tell(self, command: str) -> str:
        """What the story answers; notes where one is and what is done by it."""
        answer, _, over, _ = self._frotz.step(command)
        if status := _STATUS.search(answer):
            self._room, answer = status[1], answer[: status.start()]
        told = answer.split("\n\n\n")[0].strip()
        if self._done < len(self._story.milestones):
            ahead = self._story.milestones[self._done]
            self._done += ahead.heard in answer and ahead.about in command
        self._ended |= bool(over)
        return re.sub(r"\n\s*\n+", "\n", told)

    @property
    def _due(self) -> tuple[str, Milestone | None]:
        """The next command, and the milestone that it reaches; None on the way there."""
        milestone = self._story.milestones[min(self._done, len(self._story.milestones) - 1)]
        way = None if self._room == milestone.room else self._story.route(self._room, milestone.room)
        return (milestone.command, milestone) if way is None else (way, None)

    def _situation(self) -> tuple[str, Milestone | None, Category | None]:
        command, milestone = self._due
        if self._failed:
            return command, milestone, MEND
        if not self._rounds:
            return command, milestone, PLAN
        return command, milestone, milestone.category if milestone else None

    def _decide(
        self,
        rng: random.Random,
        command: str,
        milestone: Milestone | None,
        category: Category | None,
        said: Category | None,
    ) -> Decision:
        """A decision for a command, marked as of one category and spoken as of one that may be another."""
        ahead = self._story.milestones[min(self._done, len(self._story.milestones) - 1)]
        goals = [m.goal for m in self._story.milestones[self._done :] if m.goal]
        if milestone is None and said not in (PLAN, MEND):
            thought = rng.choice(_WAY).format(room=ahead.room, way=command)
        else:
            thought = rng.choice(_SAY[said]).format(goals=", then ".join(goals[:3]), why=ahead.why)
        return Decision(thought, command, category, 0.3 + 0.7 * rng.random() if category else 0.0)


SPEC = EnvironmentSpec(
    *("jericho", "out", MAX_ROUNDS, "progress", "last"),
    instruction=INSTRUCTION,
    simulator=Jericho,
    n_train=N_TRAIN,
    n_test=N_TEST,
    extra="jericho",
    custom_data="atlas_ray.environments.builtin.jericho.custom_data",
)
