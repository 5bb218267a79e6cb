"""The words of the system: what every stage passes to the next.

Plain frozen dataclasses; imports nothing heavy. Steps count from 1 wherever people, prompts or files see them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]
# how answers compare with the recorded ones: the same, within the environment's tolerance, or neither
Replay = Literal["exact", "near", "differs"]


class Category(StrEnum):
    """Why a step is critical (paper section 3.1)."""

    PLAN_CREATION = "Plan Creation"
    CRITICAL_OBSERVATION = "Critical Observation"
    CRITICAL_ACTION = "Critical Action"
    SELF_CORRECTION = "Self Correction"


class StopReason(StrEnum):
    """Why an episode ended; a closed list.

    The first four are the policy's own outcomes and count with the reward reached. The others are
    infrastructure: retried, then excluded from the average and counted by cause.
    """

    DONE = "done"
    MAX_ROUNDS = "max_rounds"
    CONTEXT_OVERFLOW = "context_overflow"
    PARSE_ERROR = "parse_error"
    MODEL_ERROR = "model_error"
    ENV_ERROR = "env_error"
    ENV_TIMEOUT = "environment_timeout"
    REPLAY_MISMATCH = "replay_mismatch"

    @property
    def is_infrastructure(self) -> bool:
        """Whether the episode says nothing about the policy."""
        return self not in (
            StopReason.DONE,
            StopReason.MAX_ROUNDS,
            StopReason.CONTEXT_OVERFLOW,
            StopReason.PARSE_ERROR,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One task of one environment.

    Attributes:
        item_id: The data set's, e.g. `maze_17`.
        index: Its number at the environment's server, where the id does not carry it.
    """

    env: str
    item_id: str
    index: int | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """`env/item_id`, unique across environments."""
        return f"{self.env}/{self.item_id}"


_MOST_TOKENS = 2**40  # of one call, so that sums stay within a column of integers


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one or more model calls consumed; `cost` in US dollars where the price is known."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    cost: float = 0.0

    @classmethod
    def reported(cls, prompt: object, cached: object, completion: object) -> Usage:
        """Of one call, as an endpoint tells it; what it leaves out, or what is no number of tokens, counts as 0."""
        told = [v if isinstance(v, int) and 0 <= v < _MOST_TOKENS else 0 for v in (prompt, cached, completion)]
        return cls(told[0], min(told[1], told[0]), told[2], calls=1)

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens that came from a prefix cache; 0 where there were none."""
        return self.cached_tokens / max(1, self.prompt_tokens)

    def __add__(self, other: Usage) -> Usage:
        return Usage(  # written out: it is done at every turn
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
            self.cost + other.cost,
        )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        arguments: A JSON object, as text.
        id: By which its result names it, or empty.
    """

    name: str
    arguments: str = "{}"
    id: str = ""

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"

    @property
    def is_well_formed(self) -> bool:
        """Whether its arguments are a JSON object."""
        try:
            return isinstance(json.loads(self.arguments), dict)
        except (ValueError, RecursionError):
            return False

    @property
    def key(self) -> str:
        """Equal for calls of the same tool with the same arguments, however these are written."""
        try:
            return self.name + json.dumps(json.loads(self.arguments), sort_keys=True)
        except (ValueError, RecursionError):
            return str(self)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        content: Its text; may be empty where an assistant calls tools, or a tool returns nothing.
        trainable: Marks the assistant turns that are steps.
        thought: What an assistant thought before it replied, apart from the reply.
        calls: The tools that an assistant calls, all at once.
        call_id: Of the call that a tool's result answers.
    """

    role: Role
    content: str
    trainable: bool = False
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""

    @property
    def text(self) -> str:
        """All of it, for reading: thought, content and calls."""
        thought = [f"Thinking: {self.thought}"] if self.thought else []
        content = [self.content] if self.content else []
        return "\n".join([*thought, *content, *(f"Call: {call}" for call in self.calls)])


def last_seen(messages: Sequence[Message]) -> str:
    """What the next reply answers: the texts of the turns since the last assistant turn."""
    last = next((i for i in reversed(range(len(messages))) if messages[i].role == "assistant"), -1)
    return "\n".join(m.content for m in messages[last + 1 :])


def with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """The same, with an id for each call that has none, and in each tool's result the id of the call it answers."""
    found, unanswered = list[Message](), list[str]()
    for place, message in enumerate(messages):
        if message.calls:
            calls = tuple(replace(c, id=c.id or f"call{place:04}{n % 10}") for n, c in enumerate(message.calls))
            unanswered = [call.id for call in calls]
            found.append(replace(message, calls=calls))
        elif message.role == "tool":
            id_ = message.call_id or next(iter(unanswered), "")
            unanswered = [other for other in unanswered if other != id_]
            found.append(replace(message, call_id=id_))
        else:
            found.append(message)
    return found


def first_observation(messages: Sequence[Message]) -> str:
    """What the first step answers; without a step, the end of the opening (instruction, "OK", observation)."""
    first = next((i for i, m in enumerate(messages) if m.role == "assistant" and m.trainable), min(3, len(messages)))
    return messages[first - 1].content if first else ""


_REACT = re.compile(r"^\s*(?:Thought:(?P<thought>.*?))?\s*(?<!\w)Action:(?P<action>.*)$", re.DOTALL)


def split_react(reply: str) -> tuple[str, str]:
    """Splits a ReAct reply into thought and action (paper Eq. 2 and 3).

    A reply without an `Action:` marker is all action when it has no `Thought:` either, else all thought.
    """
    found = _REACT.match(reply)
    if found:
        return (found["thought"] or "").strip(), found["action"].strip()
    text = reply.strip()
    return (text.removeprefix("Thought:").strip(), "") if text.startswith("Thought:") else ("", text)


@dataclass(frozen=True, slots=True)
class Step:
    """Step `index` (from 1) of a trajectory: a trainable assistant turn, found at `messages[position]`.

    Attributes:
        observation: What it answers: the texts of the turns since the last assistant turn.
    """

    index: int
    position: int
    message: Message
    observation: str

    @property
    def reply(self) -> str:
        """Its text, without thoughts and calls that stand apart."""
        return self.message.content

    @property
    def thought(self) -> str:
        """h_t of the paper: what stands before the action, apart from it or in the reply."""
        before = self.reply if self.message.calls else split_react(self.reply)[0]
        return "\n".join(filter(None, (self.message.thought, before)))

    @property
    def action(self) -> str:
        """a_t of the paper: the calls, else the reply's action."""
        return "\n".join(map(str, self.message.calls)) or split_react(self.reply)[1]


@dataclass(frozen=True, slots=True)
class GoldStep:
    """A built-in expert's own mark on a step: its category, and its rank (1 = most decisive)."""

    step: int
    rank: int
    category: Category


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One expert conversation for one task.

    Attributes:
        id: Unique in a data set: the task's id, with `#2`, `#3`, ... for further trajectories of the same task.
        reward: Final reward in [0, 1], or None where the data does not say.
        gold: The expert's own annotation, uncut, or None where there is none.
        tools: Schemas of the tools that could be called, a JSON list of OpenAI's form as text; None: there were none.
        budget: Steps that may be chosen in it, where a selection has decided that over the whole data set.
    """

    id: str
    env: str
    item_id: str
    messages: tuple[Message, ...]
    reward: float | None = None
    gold: tuple[GoldStep, ...] | None = None
    tools: str | None = None
    budget: int | None = None

    @property
    def task(self) -> Task:
        """The task that this trajectory solves."""
        return Task(self.env, self.item_id)

    @property
    def calls_tools(self) -> bool:
        """Whether its steps act by calls of tools, not by text: they may, where it shows any."""
        return self.tools is not None or any(m.role == "tool" or m.calls for m in self.messages)

    @property
    def replies(self) -> tuple[Message, ...]:
        """What the agent did at each step."""
        return tuple(step.message for step in self.steps)

    @property
    def answers(self) -> tuple[str, ...]:
        """What answered each step: the texts up to the next assistant turn; a last step may be without an answer."""
        found = []
        for step in self.steps:
            later = self.messages[step.position + 1 :]
            found.append([m.content for m in itertools.takewhile(lambda m: m.role != "assistant", later)])
        return tuple(map("\n".join, found if not found or found[-1] else found[:-1]))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The trainable assistant turns in order, each with the observation it answers."""
        found, seen = list[Step](), list[str]()
        for position, message in enumerate(self.messages):
            if message.role != "assistant":
                seen.append(message.content)
                continue
            if message.trainable:
                found.append(Step(len(found) + 1, position, message, "\n".join(seen)))
            seen = []
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Selection:
    """The steps that one selector chose in one trajectory, and how that came about.

    Attributes:
        selector: Its name in the run, e.g. `gold` or `random`.
        ratio: The requested ratio m, or None where the selector takes none.
        n_steps: |tau|.
        chosen: Chosen steps, from 1, ascending.
        scores: One score per step where the selector scores (higher = chosen first), else empty.
        rewards: Monte-Carlo rewards where values were estimated: entry t holds the rewards of the rollouts
            started after step t (entry 0: from scratch; the last entry: the recorded reward), else empty.
        rounds: Turns that each of those rollouts took, in the shape of `rewards`.
        probed: First turns drawn after steps 0..T-1 where the value selector is economical, else empty.
        rejoined: Those among them that did as the expert did, and were not played on.
        excluded: Rollouts that infrastructure spoilt, by cause.
        replays: Starts by how the environment repeated the expert's steps before them (`Replay`).
        categories: Category by step, for chosen steps that have one.
        shortened: Characters of observations that the model was not shown, for its context is too short.
        error: Why there is no selection, or None.
    """

    trajectory_id: str
    env: str
    item_id: str
    selector: str
    ratio: float | None
    n_steps: int
    chosen: tuple[int, ...]
    scores: tuple[float, ...] = ()
    rewards: tuple[tuple[float, ...], ...] = ()
    rounds: tuple[tuple[int, ...], ...] = ()
    probed: tuple[int, ...] = ()
    rejoined: tuple[int, ...] = ()
    excluded: Mapping[str, int] = field(default_factory=dict)
    replays: Mapping[str, int] = field(default_factory=dict)
    categories: Mapping[int, Category] = field(default_factory=dict)
    plan: str | None = None
    reason: str | None = None
    model: str | None = None
    prompt_hash: str | None = None
    usage: Usage = Usage()
    shortened: int = 0
    error: str | None = None

    @property
    def id(self) -> str:
        """The unit that is never done twice."""
        return self.trajectory_id


@dataclass(frozen=True, slots=True)
class Episode:
    """A policy acting in an environment from step `start_step` on. A bad rollout is data, not a crash.

    Attributes:
        id: Unique in a run, e.g. `maze/maze_17#2@0+3`: of the task's second trajectory, sample 0, after its step 3.
        start_step: Number of expert steps replayed before the policy acted.
        reward: Final reward scaled to [0, 1].
        raw_reward: The environment's own figure.
        rounds: Turns that the policy took (replayed ones not counted).
        seconds: Wall time.
        gold: Marks of a scripted policy on its own turns, else None.
        trajectory: Whose steps were replayed or put in, or None.
        replay: How the environment repeated the expert's steps; None where there were none, or none to compare with.
        tools: Schemas of the tools that it was played by, as a trajectory holds them; None: it was played by text.
    """

    id: str
    env: str
    item_id: str
    policy: str
    sample: int
    start_step: int
    seed: int
    messages: tuple[Message, ...]
    reward: float
    raw_reward: float
    success: bool
    progress: float
    rounds: int
    stop_reason: StopReason
    usage: Usage = Usage()
    seconds: float = 0.0
    error: str | None = None
    gold: tuple[GoldStep, ...] | None = None
    trajectory: str | None = None
    replay: Replay | None = None
    tools: str | None = None
