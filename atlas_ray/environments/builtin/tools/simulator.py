"""The simulators over a toolbox, and their scripted agents.

A task's solution is a generator of calls that gets each call's result: the agents know what the tools have told them.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atlas_ray.environments.builtin.scripted import any_category, errs, task_at
from atlas_ray.environments.builtin.tools.core import (
    FINISH,
    FORMAT_ERROR,
    Toolbox,
    ToolError,
    agrees,
    read_action,
    shown,
)
from atlas_ray.environments.http.dialects import TOOL
from atlas_ray.environments.protocol import Decision, EnvironmentSpec, Opening, StepResult
from atlas_ray.types import Category

PLAN, SEEN = Category.PLAN_CREATION, Category.CRITICAL_OBSERVATION
ACT, MEND = Category.CRITICAL_ACTION, Category.SELF_CORRECTION


@dataclass(frozen=True)
class Call:
    """One call of a solution.

    Attributes:
        why: What it is for: the end of a sentence that starts with "I".
        category: Set where it is a decision.
        wrong: Inputs that a novice takes for the right one.
    """

    tool: str
    input: dict[str, Any]
    why: str
    category: Category | None = None
    wrong: tuple[dict[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Equal for equal calls."""
        return _key(self.tool, self.input)


def finish(answer: Any, why: str, *wrong: Any) -> Call:
    """The last call of a solution, a decision unless it only says "done"; `wrong` are answers that a novice gives."""
    others = tuple({"answer": other} for other in wrong if not agrees(other, answer))
    return Call(FINISH, {"answer": answer}, why, ACT if answer != "done" else None, others)


Solution = Generator[Call, Any, None]
_MOST_RESULTS = 1_000  # kept of an episode


@dataclass(frozen=True)
class ToolTask:
    """One task.

    Attributes:
        kind: Its family.
        open: Makes the state that the tools work on.
        solve: Starts its solution.
        judge: The reward in [0, 1] of a state and the final answer (None before there is one).
    """

    kind: str
    goal: str
    open: Callable[[], Any]
    solve: Callable[[], Solution]
    judge: Callable[[Any, Any], float]

    @property
    def text(self) -> str:
        """The first observation."""
        asked = f"You should perform actions to accomplish the goal: {self.goal}"
        return f"Now new trial starts.\n{asked}\nGive me one action."


def judge_answer(expected: Any) -> Callable[[Any, Any], float]:
    """The reward for an answer alone."""
    return lambda _, answer: float(answer is not None and agrees(answer, expected))


def collect(count: int, name: str, draw: Callable[[random.Random], ToolTask | None]) -> tuple[ToolTask, ...]:
    """`count` tasks with goals of their own, in a fixed random order."""
    rng, found = random.Random(name), dict[str, ToolTask]()
    while len(found) < count:
        task = draw(rng)
        if task is not None:
            found.setdefault(task.goal, task)
    return tuple(found.values())


class ToolSimulator:
    """The simulator: the judge's reward, and done at `finish`.

    Args:
        toolbox: Its actions.
        tasks: Gives its tasks.
        share: Share of situations that the novice misjudges.
    """

    def __init__(self, toolbox: Toolbox, tasks: Callable[[], Sequence[ToolTask]], share: float) -> None:
        self._box, self._tasks, self._share = toolbox, tasks, share

    def reset(self, index: int) -> Opening:
        """Starts task `index`.

        Raises:
            UserError: If there is no such task.
        """
        self._task = task_at(self._tasks(), index, self._box.name)
        self._state = self._task.open()
        self._results: dict[str, Any] = {}
        self._steps, self._mistakes, self._failed = 0, 0, False
        self._end: StepResult | None = None
        return Opening(self._box.instruction, self._task.text)

    def step(self, action: str) -> StepResult:
        """Plays the action that a whole reply names."""
        if self._end is not None:
            text = shown("ERROR | The task has finished.")
            return StepResult(text, self._end.reward, True)
        due = self._due()
        read = read_action(action)
        self._steps, self._failed = self._steps + 1, True
        answer: Any = None
        if read is None:
            text = FORMAT_ERROR
        else:
            name, given = read
            try:
                result = self._box.call(self._state, name, given)
            except ToolError as error:
                text = shown(f"ERROR | {error}")
            else:
                text, key = shown(result), _key(name, given or {})
                if len(self._results) < _MOST_RESULTS:
                    self._results.setdefault(key, result)
                self._failed = key != due.key
                if name == FINISH:
                    answer = result if result is not None else "done"
        self._mistakes += self._failed
        result_so_far = StepResult(text, self._task.judge(self._state, answer), answer is not None)
        if result_so_far.done:
            self._end = result_so_far
        return result_so_far

    def expert(self, rng: random.Random) -> Decision:
        """Follows the solution; in some episodes a harmless wrong input, corrected at once."""
        category, call = self._situation()
        harmless = call.wrong and call.tool != FINISH and not self._box.tools[call.tool].changes
        if harmless and category in (SEEN, None) and not self._mistakes and rng.random() < 0.12:
            return _say(rng, call, None, call.wrong[rng.randrange(len(call.wrong))])
        return _say(rng, call, category, call.input)

    def novice(self, rng: random.Random) -> Decision:
        """Knows the routine; at decisions it gives many tools and answers the wrong input."""
        category, call = self._situation()
        if category is None or not call.wrong or not errs(rng, self._share, self._task.kind, call.tool, call.why[:24]):
            said = _say(rng, call, any_category(rng, category), call.input)
            return Decision(said.thought, said.action, category, said.weight or 0.3 + 0.7 * rng.random())
        mistaken = random.Random(call.key).choice(call.wrong)  # the same mistake each time
        vague = Call(call.tool, call.input, f"use {call.tool}")
        said = _say(rng, vague, category, mistaken)
        return said

    def _due(self) -> Call:
        """The first call of the solution that has not been made."""
        solution = self._task.solve()
        try:
            call = next(solution)
            while call.key in self._results:
                call = solution.send(self._results[call.key])
        except StopIteration:
            pass
        except (LookupError, ValueError, RuntimeError):  # what it looks for has been deleted or overwritten
            call = finish("done", "end it, for what the goal is about is gone")
        return call

    def _situation(self) -> tuple[Category | None, Call]:
        """The call that is due and, if it is a decision, its category."""
        call = self._due()
        if self._failed:
            return MEND, call
        return (call.category if self._steps else PLAN), call


def _key(tool: str, given: dict[str, Any]) -> str:
    return tool + json.dumps(given, sort_keys=True)


def _say(rng: random.Random, call: Call, category: Category | None, given: dict[str, Any]) -> Decision:
    thought = rng.choice(_SAY[category]).format(why=call.why)
    action = f"{call.tool} with Action Input: {json.dumps(given, ensure_ascii=False)}"
    # decisions of every kind reach the top somewhere
    return Decision(thought, action, category, 0.3 + 0.7 * rng.random() if category else 0.0)


_SAY: dict[Category | None, tuple[str, ...]] = {
    PLAN: (
        "I go step by step: first I {why}.",
        "The goal needs several actions. At first I {why}.",
        "My plan is to collect what I need and then finish. So I {why}.",
    ),
    SEEN: (
        "The last observations tell me what I need. With that I {why}.",
        "From what I have seen I can go on: I {why}.",
        "I know enough now, so I {why}.",
    ),
    ACT: (
        "This decides it: I {why}.",
        "Everything that it takes is here, so I {why}.",
        "That settles it. I {why}.",
    ),
    MEND: ("That was not right. Instead I {why}.", "The last action did not help, so now I {why}."),
    None: ("Next I {why}.", "I {why}.", "I go on and {why}.", "Then I {why}."),
}


def tool_spec(
    box: Toolbox,
    held: Literal["in", "out"],
    max_rounds: int,
    tasks: Callable[[], Sequence[ToolTask]],
    share: float,
    metric: Literal["success", "reward"] = "success",
    **others: Any,
) -> EnvironmentSpec:
    """The specification of an environment of tools; `share` as of `ToolSimulator`."""
    return EnvironmentSpec(
        *(box.name, held, max_rounds, metric, "whole"),
        instruction=box.instruction,
        simulator=functools.partial(ToolSimulator, box, tasks, share),
        quick=True,
        dialect=TOOL,
        agentgym=box.name,
        tools=box.use,
        **others,
    )
