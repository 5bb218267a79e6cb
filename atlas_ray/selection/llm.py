"""An LLM reads the trajectory and names its critical steps (paper section 3.2, Eq. 4, App. D.1): plain asyncio.

Flows in: trajectories and the journal of paid replies; flows out: selections, in the order of completion.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TableSpec
from atlas_ray.selection.answer import Judgement, Problem, parse_answer
from atlas_ray.selection.asker import Question
from atlas_ray.selection.budget import budget, record
from atlas_ray.selection.client import ChatClient, price
from atlas_ray.selection.prompt import ChatMessages, load_prompt
from atlas_ray.selection.settings import LlmSelector
from atlas_ray.types import Selection, Trajectory, Usage

_CHARS_PER_TOKEN = 4  # rule of thumb for English; the estimate says so


@dataclass(frozen=True, slots=True)
class PaidReply:
    """One reply as it came; `id` is a digest of everything that was asked."""

    id: str
    trajectory_id: str
    text: str
    finish: str
    usage: Usage


REPLIES: TableSpec[PaidReply] = TableSpec(
    "replies",
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "trajectory_id", "text", "finish")),
            ("usage", SELECTIONS.schema.field("usage").type),
        ]
    ),
    asdict,
    lambda row: PaidReply(**row | {"usage": Usage(**row["usage"])}),
)


class Journal:
    """Replies on disk, each before it is used: none is paid for twice, whatever is killed.

    Attributes:
        spent: US dollars for all replies held.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        folder.compact(REPLIES)
        self._held = {reply.id: reply for reply in folder.read(REPLIES)}
        self.spent = sum(reply.usage.cost for reply in self._held.values())
        self._waiting: list[PaidReply] = []
        self._writing = asyncio.Lock()

    def get(self, digest: str) -> PaidReply | None:
        """The reply to a request that was paid for before."""
        return self._held.get(digest)

    async def keep(self, reply: PaidReply) -> None:
        """Returns once the reply is on disk; replies that arrive during a write share the next one."""
        self.spent += reply.usage.cost
        self._waiting.append(reply)
        async with self._writing:
            if self._waiting:
                batch, self._waiting = self._waiting, []
                await asyncio.to_thread(self._folder.write_shard, REPLIES, batch)
        self._held[reply.id] = reply


class Judge:
    """Asks the model about trajectories, `endpoint.concurrency` at once.

    Raises:
        UserError: If the prompt is unusable, or `max_cost` is set for a model without a known price.
    """

    def __init__(self, config: LlmSelector, journal: Journal) -> None:
        self._config, self._journal = config, journal
        self._prompt, self._price = load_prompt(config.prompt_file), price(config.model)
        self._client = ChatClient(config)
        self._reserved: list[float] = []  # US dollars, one entry a call in flight
        self._settled = asyncio.Condition()
        if config.max_cost is not None and self._price is None:
            raise UserError(
                f"selector.max_cost cannot be kept: no price is known for {config.model}",
                "unset selector.max_cost, or add the model to selection/prices.json",
            )

    async def judge(self, trajectories: Iterable[Trajectory]) -> AsyncGenerator[Selection, None]:
        """Selections as they come; after an error that stops all, calls in flight still come in: they are paid for.

        Raises:
            AtlasError: If the endpoint is dead, or `max_cost` was reached.
            UserError: If the key or the model is refused.
        """
        waiting = iter(trajectories)
        running: set[asyncio.Task[Selection]] = set()
        stopped: AtlasError | None = None
        try:
            while True:
                while not stopped and len(running) < self._config.endpoint.concurrency:
                    trajectory = next(waiting, None)
                    if trajectory is None:
                        break
                    running.add(asyncio.create_task(self._judge(trajectory)))
                if not running:
                    break
                finished, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    try:
                        yield task.result()
                    except AtlasError as error:
                        stopped = stopped or error
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._client.close()
        if stopped:
            raise stopped

    async def _judge(self, trajectory: Trajectory) -> Selection:
        """One trajectory: a request, and one more that says what was wrong with the answer."""
        config, n_steps = self._config, len(trajectory.steps)
        k = budget(config.ratio, n_steps)
        messages = self._prompt.messages(trajectory, k)
        asked: dict[str, Any] = {"model": config.model, "prompt_hash": self._prompt.hash}
        usage, cut, answer = Usage(), None, Problem("")
        for _ in range(2):
            try:
                reply = await self._ask(trajectory.id, messages)
            except ModelFailure as error:
                return record(trajectory, config, usage=usage, error=f"no answer: {error.what}", **asked)
            usage += reply.usage
            found = parse_answer(reply.text, n_steps, k)
            if isinstance(found, Judgement):
                return _chosen(trajectory, config, found, usage, asked)
            shortened = " (the reply was cut off at max_tokens)" if reply.finish == "length" else ""
            answer = Problem(found.what + shortened, found.judgement)
            cut = answer.judgement or cut
            messages = [
                *messages,
                {"role": "assistant", "content": reply.text.strip() or "(empty)"},
                {"role": "user", "content": _repair(answer, n_steps, k)},
            ]
        if cut:
            return _chosen(trajectory, config, cut, usage, asked)
        return record(trajectory, config, usage=usage, error=f"unusable answer: {answer.what}", **asked)

    async def _ask(self, trajectory_id: str, messages: ChatMessages) -> PaidReply:
        config = self._config
        asked = [config.endpoint.base_url, config.model, config.temperature, config.max_tokens, trajectory_id, messages]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        if paid := self._journal.get(digest):
            return paid
        async with self._within_cost(messages):
            done = await self._client.complete(Question(messages, config.temperature, config.max_tokens))
            reply = PaidReply(digest, trajectory_id, done.text, done.finish, done.usage)
            await self._journal.keep(reply)
        return reply

    @asynccontextmanager
    async def _within_cost(self, messages: ChatMessages) -> AsyncIterator[None]:
        """Sets aside what a call may cost at most; waits for calls in flight where that could exceed `max_cost`.

        Raises:
            _SpentError: If it could with none in flight.
        """
        limit, known = self._config.max_cost, self._price
        if limit is None or known is None:
            yield
            return
        most = known.of(Usage(prompt_tokens=_tokens(messages), completion_tokens=self._config.max_tokens))
        async with self._settled:
            while self._journal.spent + sum(self._reserved) + most > limit:
                if not self._reserved:
                    raise _SpentError(
                        f"stopped at ${self._journal.spent:.4f}: one more call could exceed max_cost={limit:g}",
                        "raise selector.max_cost and run the same command again; it goes on from here",
                    )
                await self._settled.wait()
            self._reserved.append(most)
        try:
            yield
        finally:
            async with self._settled:
                self._reserved.remove(most)
                self._settled.notify_all()


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a selection would ask for, repairs not counted.

    Attributes:
        prompt_tokens: At 4 characters a token.
        completion_tokens: At most (`max_tokens` a call).
        dollars: At most, at list price; None where the model's price is unknown.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float | None


def estimate(trajectories: Iterable[Trajectory], config: LlmSelector) -> Estimate:
    """Calls, tokens and dollars of a selection, without a call.

    Raises:
        UserError: If the prompt is unusable.
    """
    prompt, known = load_prompt(config.prompt_file), price(config.model)
    tokens = [_tokens(prompt.messages(t, budget(config.ratio, len(t.steps)))) for t in trajectories]
    usage = Usage(prompt_tokens=sum(tokens), completion_tokens=len(tokens) * config.max_tokens)
    dollars = None if known is None else known.of(usage)
    return Estimate(len(tokens), usage.prompt_tokens, usage.completion_tokens, dollars)


class _SpentError(AtlasError):
    """`max_cost` allows no further call."""


def _chosen(
    trajectory: Trajectory, config: LlmSelector, judgement: Judgement, usage: Usage, asked: dict[str, Any]
) -> Selection:
    return record(
        trajectory,
        config,
        judgement.steps,
        categories=judgement.categories,
        plan=judgement.plan,
        reason=judgement.reason,
        usage=usage,
        **asked,
    )


def _repair(problem: Problem, n_steps: int, k: int) -> str:
    return (
        f"This answer cannot be used: {problem.what}. The conversation's steps are numbered 1 to {n_steps}, and at "
        f"most {k} may be chosen. Give the whole answer again, in these three lines:\n"
        "1. The high-level plan is: [...]\n"
        "2. The critical steps are: conversation[step numbers, separated by commas]\n"
        "3. Reason: [Step n (category): ...]"
    )


def _tokens(messages: ChatMessages) -> int:
    return sum(len(m["content"]) for m in messages) // _CHARS_PER_TOKEN + 1
