"""The one protocol behind every environment.

A `Simulator` is plain, synchronous, deterministic from task index and actions. An `EnvironmentSpec` is the
environment's row: how an action is taken from a reply, round cap, success rule, reward scale. A `Session` is one
episode's connection, in process (`local.LocalSession`) or over HTTP (`client.HttpSession`); rollouts see sessions only.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from atlas_ray.environments.http.dialects import GENERIC, Dialect
from atlas_ray.environments.replay import compare, same_answer
from atlas_ray.errors import UserError
from atlas_ray.text import split_thoughts
from atlas_ray.types import Category, Message, Replay, Task, ToolCall, Trajectory

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Opening:
    """What an episode opens with: three turns as in AgentTraj-L, or a system turn and the task.

    Attributes:
        instruction: How to play, and the form of answers.
        observation: The task's first one.
        acknowledgement: What the agent says to the instruction. Empty: nothing, and the instruction, if there is any,
            is a system turn.
        tools: Schemas of the tools that the agent acts by, as `Trajectory.tools` holds them; None: it acts by text.
    """

    instruction: str
    observation: str
    acknowledgement: str = "OK"
    tools: str | None = None

    def messages(self) -> list[Message]:
        """The turns, up to the first observation."""
        if not self.acknowledgement:
            system = [Message("system", self.instruction)] if self.instruction else []
            return [*system, Message("user", self.observation)]
        return [
            Message("user", self.instruction),
            Message("assistant", self.acknowledgement),
            Message("user", self.observation),
        ]

    @classmethod
    def recorded(cls, trajectory: Trajectory) -> Opening | None:
        """A trajectory's, where it starts with such turns; with its tools where it calls any."""
        turns = trajectory.messages
        first = next((i for i, m in enumerate(turns) if m.trainable), len(turns))
        texts, tools = [m.content for m in turns[:first]], trajectory.tools or "[]" if trajectory.calls_tools else None
        match [m.role for m in turns[:first]]:
            case ["user", "assistant", "user"]:
                return cls(texts[0], texts[2], texts[1], tools)
            case ["system", "user"] | ["user"]:
                return cls("".join(texts[:-1]), texts[-1], "", tools)
        return None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The environment's answer to one reply. `reward` is the environment's own figure so far, unscaled.

    Attributes:
        turns: What is told in place of the observation to an agent that calls tools: each call's result, with its id.
    """

    observation: str
    reward: float
    done: bool
    progress: float | None = None
    turns: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """A scripted agent's reply, with its mark where the agent was at a decisive step.

    Attributes:
        category: The paper's category of a decisive step, or None where the step decides nothing.
        weight: How decisive (higher ranks first); ignored without a category.
    """

    thought: str
    action: str
    category: Category | None = None
    weight: float = 0.0

    @property
    def reply(self) -> str:
        """The ReAct text."""
        return f"Thought: {self.thought}\nAction: {self.action}"


@dataclass(frozen=True)
class ToolUse:
    """How an environment is played by native calls of tools, beside its actions as text.

    A call is played as the text of an action: simulators and servers know of no other.

    Attributes:
        schemas: Of its tools, as `Trajectory.tools` holds them.
        instruction: What the system turn says.
        action: A call as the text of an action.
        call: The action of a scripted agent as a call.
        result: What an answer of the environment says without the frame that is for text.
    """

    schemas: str
    instruction: str
    action: Callable[[ToolCall], str]
    call: Callable[[str], ToolCall]
    result: Callable[[str], str] = str


class Simulator(Protocol):
    """A built-in environment's simulator: state is a function of the task index and the actions since."""

    def reset(self, index: int) -> Opening:
        """Starts task `index`."""
        ...

    def step(self, action: str) -> StepResult:
        """Plays one action; nonsense gets an observation that says so, never an exception."""
        ...

    def expert(self, rng: random.Random) -> Decision:
        """The scripted expert's decision in the present state (does not change it)."""
        ...

    def novice(self, rng: random.Random) -> Decision:
        """The same with errors at decisive steps; what the base model is trained on."""
        ...


@runtime_checkable
class Detouring(Protocol):
    """A simulator whose expert can be given wasteful habits, as experts that are language models have them."""

    def detour(self, rng: random.Random, share: float) -> Decision | None:
        """A step that the expert could do without, where its habits have one; it recovers from it.

        Args:
            share: Of the expert's steps, how many lie on detours, about.
        """
        ...


class Unscripted:
    """A simulator without scripted agents: nobody has written any for what is not ours."""

    def expert(self, rng: random.Random) -> Decision:
        """Refuses.

        Raises:
            UserError: Always.
        """
        raise UserError("there is no scripted agent for material of your own", "play it with a model")

    novice = expert


# a name and one number; the last one in `trial_T20190907_174127_043461` belongs to a time
_NUMBERED = re.compile(r"(?:[A-Za-z][A-Za-z0-9]*_)+([0-9]{1,18})")


@dataclass(frozen=True)
class EnvironmentSpec:
    """All that is to be known of one environment.

    Attributes:
        held: Whether the paper trains on it ("in") or only evaluates ("out").
        max_rounds: Cap on the policy's turns.
        metric: What the paper's tables print.
        action_rule: How the action is taken from a reply, see `take_action`.
        success_at: Scaled reward from which an episode counts as a success.
        reward_scale: The raw reward is multiplied by this and clipped to [0, 1].
        instruction: What opens a conversation, where nothing else is given and the environment is built in.
        simulator: Makes the built-in simulator, or None where there is none.
        session: Opens a session with a server of another kind than AgentGym's; None: it has none.
        quick: Whether each call of the simulator is a computation of well below a millisecond, and waits for nothing:
            then it needs no thread.
        n_train, n_test: Sizes of the built-in splits; test tasks come first, train tasks next.
        sizes: Asks its server for the sizes of the splits; None: they are `n_train` and `n_test`.
        indices: Task indices in the order of the splits, or None for 0, 1, 2 and so on.
        extra: The extra of this package that the built-in simulator needs, or None.
        names_task: What of the first observation names the task, where the rest differs between servers or tellings:
            a pattern, whose last match counts. None: all of it.
        plain: What AgentGym's client is told of a task, from the first observation as it is composed here. None: the
            same.
        tolerance: Share of an answer's words and numbers that may differ from the recorded ones where an episode is
            played again; 0 where the same actions give the same texts, but for the order of lines.
        dialect: How its server is spoken to.
        item_prefixes: How item ids of it may begin beside its name.
        custom_data: Module whose `load(path)` makes a `CustomData` of the user's own material; None: nothing can be
            given.
        agentgym: AgentGym's command that serves it; None: AgentGym has no such environment.
        probe_actions: What AgentGym's server answers with a state where the built-in simulator has other data.
        tools: How it is played by calls of tools; None: it offers none, or its sessions tell them.
        tells_tools: Whether its sessions tell their tools, and take calls of them (`tool_session.ToolSession`).
    """

    name: str
    held: Literal["in", "out"]
    max_rounds: int
    metric: Literal["success", "reward", "progress"]
    action_rule: Literal["first", "last", "single", "whole"]
    success_at: float = 1.0
    reward_scale: float = 1.0
    instruction: str | None = None
    simulator: Callable[[], Simulator] | None = None
    session: Callable[[EnvironmentSpec], Session] | None = None
    quick: bool = False
    n_train: int = 0
    n_test: int = 0
    sizes: Callable[[], Mapping[Split, int]] | None = None
    indices: Callable[[], Iterable[int]] | None = None
    extra: str | None = None
    names_task: str | None = None
    plain: Callable[[str], str] | None = None
    tolerance: float = 0.0
    dialect: Dialect = GENERIC
    item_prefixes: tuple[str, ...] = ()
    custom_data: str | None = None
    agentgym: str | None = None
    probe_actions: tuple[str, ...] = ()
    tools: ToolUse | None = None
    tells_tools: bool = False

    @property
    def offers_tools(self) -> bool:
        """Whether it is played by calls of tools too; whether a task has any, sessions tell where these do so."""
        return self.tells_tools or self.tools is not None

    def index(self, item_id: str) -> int:
        """The task index that an item id of the form NAME_NUMBER carries.

        Raises:
            UserError: If it has another form.
        """
        found = _NUMBERED.fullmatch(item_id)
        if not found:
            raise UserError(
                f"{self.name}: item id {item_id[:200]!r} carries no number of a task",
                f"ids of {self.name} are of the form NAME_NUMBER, e.g. {self.name}_17",
            )
        return int(found[1])

    @property
    def knows_tasks(self) -> bool:
        """Whether `tasks` are those that are played; a server of AgentGym's kind alone knows which it has."""
        return self.simulator is not None or self.session is not None

    def number(self, task: Task) -> int:
        """The number under which the environment knows a task.

        Raises:
            UserError: If it was not looked up (`agentgym.task_numbers`), and the id does not carry it.
        """
        return self.index(task.item_id) if task.index is None else task.index

    def tasks(self, split: Split, limit: int | None = None) -> list[Task]:
        """The first `limit` built-in tasks of a split; the splits never overlap.

        Raises:
            UserError: If more tasks are asked for than there are, or its server does not tell.
        """
        sizes = self.sizes() if self.sizes else {"test": self.n_test, "train": self.n_train}
        first, size = 0 if split == "test" else sizes["test"], sizes[split]
        if limit is not None and limit > size:
            raise UserError(f"{self.name} has {size} {split} tasks, {limit} were asked for", "ask for fewer")
        indices = self.indices() if self.indices else itertools.count()
        chosen = itertools.islice(indices, first, first + (size if limit is None else limit))
        return [Task(self.name, f"{self.name}_{i}") for i in chosen]

    def scale(self, raw_reward: float) -> float:
        """Raw reward to [0, 1]."""
        return min(1.0, max(0.0, raw_reward * self.reward_scale))

    def same_task(self, one: str, other: str) -> bool:
        """Whether two first observations may be of one task: they agree in what names it, as far as both do."""
        if self.names_task is None:
            return self.compare(one, other) != "differs"
        found = [re.findall(self.names_task, text) for text in (one, other)]
        return not all(found) or same_answer(found[0][-1], found[1][-1])

    def compare(self, recorded: str, told: str) -> Replay:
        """How an answer compares with the one that was recorded for the same actions."""
        return compare(recorded, told, self.tolerance)

    def take_action(self, reply: str) -> str | None:
        """The action in a model's reply, or None where the reply is malformed (an error turn, no call).

        What stands in `<think>` is no part of it. The rules are those of AgentGym's clients, per environment:
        `first`: what stands between the first "Action:" and the next one; without a marker the whole text.
        `last`: what follows the last one; without a marker nothing, but the whole text where it holds WebShop's
            `search[` or `click[`.
        `single`: the line after the only one, without what is no letter, digit, comma or space, each white space one
            space; nothing without a marker. More than one marker is malformed.
        `whole`: the text as it is; the tools look for the action themselves.
        """
        text = split_thoughts(reply)[1].removesuffix("</s>").strip()
        parts = text.split("Action:")
        match self.action_rule:
            case "whole":
                return text
            case "first":
                return parts[min(1, len(parts) - 1)].strip()
            case "last":
                bare = len(parts) == 1 and "search[" not in text and "click[" not in text
                return "" if bare else parts[-1].strip()
        found = re.findall(r"Action:\s*(.*?)(?=\n|$)", text)
        if len(found) > 1:
            return None
        return " ".join(re.sub(r"[^A-Za-z0-9, ]+", "", found[0]).split()) if found else ""


class Session(Protocol):
    """One episode's connection to an environment; reused for further episodes after `reset`."""

    spec: EnvironmentSpec

    async def reset(self, task: Task) -> Opening:
        """Starts the task.

        Raises:
            EnvironmentFailure: If the server cannot.
        """
        ...

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply; a malformed one gets an error observation without a call.

        Raises:
            EnvironmentFailure: If the server fails and recovery (create, reset, replay) does not help.
        """
        ...

    async def close(self) -> None:
        """Gives the session back."""
        ...


MALFORMED = "Error: the reply must hold exactly one line that starts with Action: and names one action."


def gold_ranks(weights: Sequence[tuple[int, float]]) -> dict[int, int]:
    """Ranks decisive steps: 1 for the highest weight, ties to the earlier step.

    Args:
        weights: (step, weight) pairs.

    Returns:
        Rank by step.
    """
    ordered = sorted(weights, key=lambda pair: (-pair[1], pair[0]))
    return {step: rank for rank, (step, _) in enumerate(ordered, 1)}
