"""Policies, conversations and replies: what a vLLM engine, an endpoint and a scripted agent have in common.

A policy answers with a message: a text, a thought apart from it, calls of tools.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.text import split_thoughts
from atlas_ray.types import Category, Message, Task, ToolCall, Usage

STOP = "\nObservation:"  # where a reply of text ends: before an observation that the policy writes itself


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn. Temperature 0 is greedy (evaluation); value rollouts use 1.0.

    Attributes:
        tools: Schemas of the tools that replies may call, as `Trajectory.tools` holds them; None: replies are text.
    """

    temperature: float = 0.0
    max_tokens: int = 512
    top_p: float = 1.0
    tools: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply. `finish` is "length" where it was cut at `max_tokens`.

    Attributes:
        text: What the policy wrote beside calls; thoughts may stand in it in `<think>`.
        category: With `weight` a scripted agent's mark on its own decisive step.
        thought: What the policy gives apart as a thought.
        calls: Of tools, to be made in this order.
    """

    text: str
    usage: Usage = Usage()
    finish: Literal["stop", "length"] = "stop"
    category: Category | None = None
    weight: float = 0.0
    thought: str = ""
    calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> Message:
        """The turn: thoughts apart from the text, and that without what the policy says for the environment."""
        inside, said = split_thoughts(self.text)
        thought = "\n".join(filter(None, (self.thought.strip(), inside)))
        return Message("assistant", said.partition(STOP)[0], True, thought, self.calls)


class Conversation(Protocol):
    """A policy's side of one episode. Turns are appended; the history is never rendered again."""

    async def generate(self, seed: int) -> Reply:
        """Draws the next reply and appends it.

        Raises:
            ContextOverflow: If the conversation no longer fits the model.
            ModelFailure: If the engine or endpoint fails.
        """
        ...

    def append(self, message: Message) -> None:
        """Appends the environment's answer (an observation, or the result of a call), or a reply that is given as if
        it had been generated (replay of an expert's prefix)."""
        ...


class Policy(Protocol):
    """Makes conversations."""

    @property
    def name(self) -> str:
        """Stands in every episode's record."""
        ...

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Conversation:
        """Starts a conversation with its opening turns (instruction, "OK", first observation)."""
        ...


@dataclass(frozen=True, slots=True)
class ModelUse:
    """A model that is loaded.

    Attributes:
        tokens: Longest conversation that it is given; None for as long as it takes.
        chat_template: In place of its tokenizer's.
        tokenizer_only: Whether its weights are left alone.
    """

    path: str
    tokens: int | None = None
    chat_template: str | None = None
    revision: str | None = None
    tokenizer_only: bool = False


Made_co = TypeVar("Made_co", covariant=True)


class ModelSpec(Protocol[Made_co]):
    """What a replica makes its model from; pickled to it."""

    @property
    def gpus(self) -> int:
        """GPUs that one replica takes, where there are any."""
        ...

    async def build(self) -> Made_co:
        """Makes the model in the replica's process and event loop."""
        ...


async def build_model(spec: ModelSpec[Made_co]) -> Made_co:
    """Makes a replica's model.

    Raises:
        AtlasError: If it cannot be made; of this project's own kinds alone, which need no engine where they are read.
    """
    try:
        return await spec.build()
    except AtlasError:
        raise
    except Exception as error:
        raise ModelFailure(f"the model does not start: {type(error).__name__}: {error}") from error


@asynccontextmanager
async def opened(spec: ModelSpec[Made_co]) -> AsyncIterator[Made_co]:
    """A model in this process, for as long as a block: its engine or its connections end on every way out.

    Raises:
        AtlasError: If it cannot be made.
    """
    made = await spec.build()
    try:
        yield made
    finally:
        if hasattr(made, "close"):
            await made.close()
