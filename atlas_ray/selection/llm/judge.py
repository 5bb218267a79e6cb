"""An LLM reads the trajectory and names its critical steps (paper section 3.2, Eq. 4, App. D.1): plain asyncio.

Flows in: trajectories, a backend, and the journal of paid replies; flows out: selections, in the order of completion.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from atlas_ray.config import RayConfig
from atlas_ray.errors import AtlasError, DataError, ModelFailure, UserError
from atlas_ray.models.prices import Price, price_of
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import budget, record
from atlas_ray.selection.llm.answer import Judgement, parse_answer
from atlas_ray.selection.llm.backends.batch import BatchBackend
from atlas_ray.selection.llm.backends.chat import ChatBackend
from atlas_ray.selection.llm.backends.protocol import Backend, CompletionRequest, SchemaRefusal
from atlas_ray.selection.llm.journal import Journal, PaidReply, digest
from atlas_ray.selection.llm.prompt import ChatMessages, Form, Prompt, load_prompt
from atlas_ray.selection.llm.self_consistency import tally
from atlas_ray.selection.llm.structured import parse_structured, reply_schema
from atlas_ray.selection.llm.tokens import Counter, counter
from atlas_ray.selection.llm.truncation import fitted
from atlas_ray.types import Selection, Trajectory, Usage

if TYPE_CHECKING:
    from atlas_ray.selection.llm.settings import LlmSelector

_log = logging.getLogger(__name__)

_REPAIR_TOKENS = 200  # of the request that says what was wrong
_FORMS = {
    "text": "in these three lines:\n"
    "1. The high-level plan is: [...]\n"
    "2. The critical steps are: conversation[step numbers, separated by commas]\n"
    "3. Reason: [Step n (category): ...]",
    "json": "as one JSON object:\n"
    '{"plan": "...", "steps": [{"step": number, "category": "...", "reason": "..."}, ...]}',
}


def backend_of(config: LlmSelector, folder: RunFolder, ray: RayConfig) -> Backend:
    """Whom a selector asks.

    Args:
        config: The selector's section.
        folder: The run's, where batches are on record.
        ray: How engines are reached.
    """
    if config.engine is not None:
        from atlas_ray.selection.llm.backends.vllm import EngineBackend

        return EngineBackend.of(config.model, config.engine, ray)
    return ChatBackend(config) if config.mode == "live" else BatchBackend(config, folder)


def form_of(config: LlmSelector) -> Form:
    """The form that replies are asked for in."""
    if config.prompt == "paper":
        return "text"
    if config.structured != "auto":
        return config.structured
    known = price_of(config)
    return "json" if known is not None and known.structured else "text"


def room_of(config: LlmSelector) -> int | None:
    """Tokens that a request may have, so that its reply and a repair still fit the context; None where not known.

    Raises:
        UserError: If the context holds no more than the replies.
    """
    known = price_of(config)
    context = config.context or (known.context if known else None)
    if context is None:
        return None
    room = context - 2 * config.max_tokens - _REPAIR_TOKENS
    if room < 1:
        what = f"a context of {context} tokens leaves no room beside two replies of max_tokens={config.max_tokens}"
        raise UserError(what, "lower selector.max_tokens, or raise selector.context")
    return room


@dataclass(frozen=True, slots=True)
class _Verdict:
    """One vote: a judgement, or why there is none."""

    judgement: Judgement | None
    usage: Usage
    error: str | None = None
    reached: bool = True  # whether the model answered at all


class Judge:
    """Asks the model about trajectories.

    A reply must name a plan, distinct steps that exist, at most k of them, and a category for each (plan and categories
    where the prompt asks for them). One that does not gets a single repair request that says what is wrong. If the
    second reply breaks the rules too, the last reply within the budget counts, with what plan and categories it has;
    else, of the last one over budget, the first k in its order, and of one with repeats the distinct steps; else the
    trajectory has failed. A call that fails after its retries fails the trajectory too. Failures are recorded with
    their cause and tried again in the next run.

    Of several `votes`, those without a usable reply abstain.

    Args:
        config: The selector's section.
        journal: Replies paid for before, and where new ones go.
        backend: Who is asked.
        seed: The run's; only votes draw on it.

    Raises:
        UserError: If prompt, price list, tokenizer or context are unusable, or `max_cost` is set for a model without
            a known price.
    """

    def __init__(self, config: LlmSelector, journal: Journal, backend: Backend, seed: int) -> None:
        self._config, self._journal, self._backend = config, journal, backend
        self._seed = seed
        self._prompt: Prompt = load_prompt(config.prompt_file, config.prompt)
        self._price: Price | None = price_of(config)
        self._form: Form = form_of(config)
        self._room = room_of(config)
        self._reserved, self._calls = 0.0, 0  # US dollars for calls in flight, and how many those are
        self._settled = asyncio.Condition()
        if config.max_cost is not None and self._price is None:
            raise UserError(
                f"selector.max_cost cannot be kept: no price is known for {config.model}",
                "unset selector.max_cost, or name the price in selector.prices_file",
            )

    async def judge(self, trajectories: Iterable[Trajectory]) -> AsyncGenerator[list[Selection], None]:
        """Selections as they come, those together that came together.

        After an error that stops all, calls in flight still come in: they are paid for.

        Raises:
            AtlasError: If the endpoint is dead, or `max_cost` was reached.
            UserError: If the key or the model is refused.
        """
        waiting = iter(trajectories)
        running: set[asyncio.Task[Selection]] = set()
        finished: asyncio.Queue[asyncio.Task[Selection]] = asyncio.Queue()
        stopped: AtlasError | None = None
        try:
            while True:
                while not stopped and len(running) < self._backend.room and (next_ := next(waiting, None)):
                    task = asyncio.create_task(self._judge(next_))
                    task.add_done_callback(finished.put_nowait)
                    running.add(task)
                if not running:
                    break
                tasks = [await finished.get()]
                while not finished.empty():
                    tasks.append(finished.get_nowait())
                found = []
                for task in tasks:
                    running.discard(task)
                    try:
                        found.append(task.result())
                    except AtlasError as error:
                        stopped = stopped or error
                if found:
                    yield found
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await self._backend.close()
        if stopped:
            raise stopped

    async def _judge(self, trajectory: Trajectory) -> Selection:
        config, n_steps = self._config, len(trajectory.steps)
        k = budget(config.ratio, n_steps)
        asked: dict[str, Any] = {"model": config.model, "prompt_hash": self._prompt.hash}
        while True:
            form = self._form
            try:
                messages, left_out = fitted(self._prompt, trajectory, k, form, self._room, self._count)
            except DataError as error:
                return record(trajectory, config, error=error.what, **asked)
            asked["shortened"] = left_out
            seeds = [derive_seed(self._seed, "llm", trajectory.id, i) for i in range(config.votes)]
            votes = [self._vote(trajectory, messages, form, k, seed if config.votes > 1 else None) for seed in seeds]
            try:
                verdicts = await _all(votes)
            except SchemaRefusal as error:
                self._refused(error)
                continue
            break
        asked["usage"] = sum((v.usage for v in verdicts), Usage())
        unreached = next((v for v in verdicts if not v.reached), None)
        judgements = [v.judgement for v in verdicts if v.judgement]
        if unreached or not judgements:
            return record(trajectory, config, error=(unreached or verdicts[0]).error, **asked)
        judgement = judgements[0]
        if config.votes > 1:
            judgement, asked["scores"] = tally(judgements, n_steps, k)
        return record(
            trajectory,
            config,
            judgement.steps,
            categories=judgement.categories,
            plan=judgement.plan,
            reason=judgement.reason,
            **asked,
        )

    @cached_property
    def _count(self) -> Counter:
        return counter(self._config.tokenizer, self._config.model)

    def _refused(self, error: SchemaRefusal) -> None:
        """From here on, replies are asked for as text."""
        if self._config.structured == "json":
            raise UserError(error.what, "set selector.structured=text")
        if self._form != "text":
            _log.warning("%s: replies are asked for as text", error.what)
        self._form = "text"

    async def _vote(
        self, trajectory: Trajectory, messages: ChatMessages, form: Form, k: int, seed: int | None
    ) -> _Verdict:
        """A request, and one more that says what was wrong with the reply."""
        n_steps, usage = len(trajectory.steps), Usage()
        usable = cut = None
        what = ""
        for _ in range(2):
            try:
                reply = await self._ask(trajectory, self._request(messages, form, n_steps, k, seed))
            except ModelFailure as error:
                return _Verdict(None, usage, f"no answer: {error.what}", reached=False)
            usage += reply.usage
            found = (parse_structured if form == "json" else parse_answer)(reply.text, n_steps, k)
            if isinstance(found, Judgement):
                what = _lacking(found, self._prompt)
                if not what:
                    return _Verdict(found, usage)
                usable = found
            else:
                what, cut = found.what, found.judgement or cut
            if reply.finish == "length":
                what += " (the reply was cut off at max_tokens)"
            messages = [
                *messages,
                {"role": "assistant", "content": reply.text.strip() or "(empty)"},
                {"role": "user", "content": _repair(what, form, n_steps, k)},
            ]
        chosen = usable or cut
        return _Verdict(chosen, usage, None if chosen else f"unusable answer: {what}")

    def _request(self, messages: ChatMessages, form: Form, n_steps: int, k: int, seed: int | None) -> CompletionRequest:
        config = self._config
        temperature = config.temperature if seed is None else config.vote_temperature
        # OpenAI takes no `maxLength`; it needs none, for its models come to an end.
        known = self._price is not None and self._price.structured and config.engine is None
        schema = reply_schema(n_steps, k, None if known else config.max_tokens) if form == "json" else None
        return CompletionRequest(messages, temperature, config.max_tokens, seed, schema)

    async def _ask(self, trajectory: Trajectory, request: CompletionRequest) -> PaidReply:
        key = digest(self._backend.address, self._config.model, trajectory.id, request)
        if paid := await self._journal.get(key):
            return paid
        async with self._within_cost(request):
            done = await self._backend.complete(request)
            reply = PaidReply(key, trajectory.id, done.text, done.finish, done.usage)
            await self._journal.keep(reply)
        return reply

    @asynccontextmanager
    async def _within_cost(self, request: CompletionRequest) -> AsyncIterator[None]:
        """Sets aside what a call may cost at most; waits for calls in flight where that could exceed `max_cost`.

        Raises:
            _SpentError: If it could with none in flight.
        """
        limit, known = self._config.max_cost, self._price
        if limit is None or known is None:
            yield
            return
        usage = Usage(prompt_tokens=self._count(request.messages), completion_tokens=request.max_tokens)
        most = known.of(usage)
        async with self._settled:
            while self._journal.spent + self._reserved + most > limit:
                if not self._calls:
                    raise _SpentError(
                        f"stopped at ${self._journal.spent:.4f}: one more call could exceed max_cost={limit:g}",
                        "raise --max-cost (selector.max_cost) and run the same command again; it goes on from here",
                    )
                await self._settled.wait()
            self._reserved, self._calls = self._reserved + most, self._calls + 1
        try:
            yield
        finally:
            async with self._settled:
                self._calls -= 1
                self._reserved = self._reserved - most if self._calls else 0.0
                self._settled.notify_all()


class _SpentError(AtlasError):
    """`max_cost` allows no further call."""


async def _all(votes: list[Any]) -> list[_Verdict]:
    """All votes; an error of one ends only after the others have come in, for they are paid for."""
    if len(votes) == 1:
        return [await votes[0]]
    results = await asyncio.gather(*votes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _lacking(judgement: Judgement, prompt: Prompt) -> str:
    """What a reply within the budget leaves out, in words; nothing where it is complete."""
    if "plan" in prompt.wants and not judgement.plan:
        return "the high-level plan is missing"
    without = sorted(set(judgement.steps) - judgement.categories.keys())
    if "category" in prompt.wants and without:
        return f"no category is given for step {', '.join(map(str, without))}"
    return ""


def _repair(what: str, form: Form, n_steps: int, k: int) -> str:
    return (
        f"This answer cannot be used: {what}. The conversation's steps are numbered 1 to {n_steps}, and at "
        f"most {k} may be chosen. Give the whole answer again, {_FORMS[form]}"
    )
