"""An LLM reads the trajectory and names its critical steps (paper section 3.2, Eq. 4, App. D.1): plain asyncio.

Flows in: trajectories, a backend, and a link to the run's coordinator; flows out: selections.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import AtlasError, ContextOverflow, DataError, ModelFailure, UserError
from atlas_ray.models.client import Completion, RefusedReply, SchemaRefusal
from atlas_ray.models.request import ChatMessages, CompletionRequest
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.selection.budget import record
from atlas_ray.selection.llm.answer import Judgement, parse_answer
from atlas_ray.selection.llm.backends.protocol import Backend
from atlas_ray.selection.llm.coordinator import CREDIBLE, Link
from atlas_ray.selection.llm.journal import PaidReply, digest
from atlas_ray.selection.llm.prompt import Prompt, ReplyForm, load_prompt
from atlas_ray.selection.llm.self_consistency import tally
from atlas_ray.selection.llm.structured import parse_structured, reply_schema
from atlas_ray.selection.llm.tokens import Counter, counter
from atlas_ray.selection.llm.truncation import fitted
from atlas_ray.types import Selection, Trajectory, Usage

if TYPE_CHECKING:
    from atlas_ray.selection.llm.settings import LlmSettings

_log = logging.getLogger(__name__)

_FORMS = {
    "text": "in these three lines:\n"
    "1. The high-level plan is: [...]\n"
    "2. The critical steps are: conversation[step numbers, separated by commas]\n"
    "3. Reason: [Step n (category): ...]",
    "json": "as one JSON object:\n"
    '{"plan": "...", "steps": [{"step": number, "category": "...", "reason": "..."}, ...]}',
}


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
        backend: Who is asked.
        link: To the run's coordinator, which keeps replies and money.
        seed: The run's; only votes draw on it.

    Raises:
        UserError: If prompt, price list or context are unusable.
    """

    def __init__(self, config: LlmSettings, backend: Backend, link: Link, seed: int) -> None:
        self._config, self._backend, self._link, self._seed = config, backend, link, seed
        self._prompt: Prompt = load_prompt(config.prompt_file, config.prompt)
        self._price = config.price
        self._form: ReplyForm = config.reply_form
        self._limit = config.prompt_limit
        self._at_once = asyncio.Semaphore(config.at_once)

    async def judge_all(self, trajectories: Sequence[Trajectory]) -> list[Selection]:
        """Selections of all, in order.

        After an error that stops the run, calls in flight still come in: they are paid for.

        Raises:
            AtlasError: If the endpoint is dead, or `max_cost` was reached.
            UserError: If the key or the model is refused, or the tokenizer is unusable.
        """
        found = await asyncio.gather(*map(self.judge, trajectories), return_exceptions=True)
        for error in found:
            if isinstance(error, AtlasError):
                await self._link.ask("end", error)  # raises it, or what came before
            if isinstance(error, BaseException):
                raise error
        return [selection for selection in found if isinstance(selection, Selection)]

    async def judge(self, trajectory: Trajectory) -> Selection:
        """What the model chose, or why there is nothing; raises what concerns all trajectories."""
        async with self._at_once:
            return await self._judge(trajectory)

    async def _judge(self, trajectory: Trajectory) -> Selection:
        config, n_steps = self._config, len(trajectory.steps)
        k = config.budget(trajectory)
        asked: dict[str, Any] = {"model": config.model, "prompt_hash": self._prompt.hash}
        while True:
            form = self._form
            try:
                messages, left_out = fitted(self._prompt, trajectory, k, form, self._limit, self._count)
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
        why = (unreached or verdicts[0]).error if unreached or not judgements else None
        self._link.tell("judged", why)
        if why:
            return record(trajectory, config, error=why, **asked)
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
        self, trajectory: Trajectory, messages: ChatMessages, form: ReplyForm, k: int, seed: int | None
    ) -> _Verdict:
        """A request, and one more that says what was wrong with the reply."""
        n_steps, usage = len(trajectory.steps), Usage()
        usable = cut = None
        what = ""
        for _ in range(2):
            try:
                reply = await self._ask(trajectory, self._request(messages, form, n_steps, k, seed))
            except (ModelFailure, ContextOverflow) as error:
                usage += error.usage if isinstance(error, RefusedReply) else Usage()
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

    def _request(
        self, messages: ChatMessages, form: ReplyForm, n_steps: int, k: int, seed: int | None
    ) -> CompletionRequest:
        config = self._config
        temperature = config.temperature if seed is None else config.vote_temperature
        # OpenAI takes no `maxLength`; it needs none, for its models come to an end.
        known = self._price is not None and self._price.structured and config.engine is None
        schema = reply_schema(n_steps, k, None if known else config.max_tokens) if form == "json" else None
        return CompletionRequest(messages, temperature, config.max_tokens, seed, schema)

    async def _ask(self, trajectory: Trajectory, request: CompletionRequest) -> PaidReply:
        key = digest(self._backend.address, self._config.model, trajectory.id, request)
        most = 0.0
        if self._config.max_cost is not None and self._price is not None:
            most = self._price.of(Usage(self._count(request.messages), 0, request.max_tokens))
        paid: PaidReply | None = await self._link.ask("claim", key, most)
        if paid:
            return paid
        try:
            done = await self._backend.complete(request)
        except RefusedReply as error:  # kept for its cost alone: the request is made again in the next run
            usage = self._counted(request, Completion("", "refused", error.usage), most)
            refused = PaidReply(f"{key} {uuid.uuid4().hex}", trajectory.id, "", "refused", usage)
            await self._link.ask("keep", refused, key, error.usage.cost)
            raise
        except BaseException:
            self._link.tell("release", key)
            raise
        usage = self._counted(request, done, most)
        reply = PaidReply(key, trajectory.id, done.text, done.finish, usage)
        await self._link.ask("keep", reply, key, done.usage.cost)
        return reply

    def _counted(self, request: CompletionRequest, done: Completion, most: float) -> Usage:
        """What a reply took: by our own count where the endpoint reports nothing, or more than can be."""
        told, price = done.usage, self._price
        if price is None or not told.calls:
            return told
        if most and told.cost > CREDIBLE * most:
            told = Usage(calls=told.calls)
        prompt = told.prompt_tokens or self._count(request.messages)
        written = told.completion_tokens
        if done.text and not written:
            written = min(request.max_tokens, self._count([{"role": "assistant", "content": done.text}]))
        counted = Usage(prompt, told.cached_tokens, written, told.calls)
        return counted + Usage(cost=price.of(counted))


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


def _repair(what: str, form: ReplyForm, n_steps: int, k: int) -> str:
    return (
        f"This answer cannot be used: {what}. The conversation's steps are numbered 1 to {n_steps}, and at "
        f"most {k} may be chosen. Give the whole answer again, {_FORMS[form]}"
    )
