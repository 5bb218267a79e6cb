"""OpenAI's Batch API as a `Backend`: the same requests at half the price, answered within a day.

Requests that arrive together travel together. Every batch is on record before it is submitted, so that a later run
collects what an earlier one paid for. Flows in: requests; flows out: completions, when their batch is done.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.client import ChatClient, Completion, TransientError
from atlas_ray.models.request import CompletionRequest
from atlas_ray.models.throttle import back_off
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm.backends.submissions import (
    BATCHES,
    MOST_BATCHED,
    Failure,
    Results,
    Submission,
    codes,
    errors,
    missing_from,
    parsed,
    unanswered,
)
from atlas_ray.types import Usage

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

    from atlas_ray.selection.llm.settings import LlmSettings

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

MAX_BYTES = 190_000_000  # of one batch, by the API's own limit
MAX_BATCHES = 3  # that may leave one request unanswered
_WINDOW_SECONDS = 2.0  # without a new request close a batch
_FIRST_POLL, _LAST_POLL = 5.0, 60.0  # seconds
_TRANSFER_SECONDS = 1800.0  # of a file
_PATIENCE_SECONDS = 1800.0  # with an endpoint that cannot be reached, while a batch is under way
_TAG = "atlas_ray"  # of our own name in a batch's metadata
_FINAL = ("completed", "expired", "cancelled", "failed")
_TOO_MUCH = "token_limit_exceeded"
_A_DAY = 86_400.0


@dataclass(slots=True)
class _Gathering:
    """A batch that still takes requests."""

    lines: dict[str, bytes] = field(default_factory=dict)
    size: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None
    results: asyncio.Task[Results] | None = None


class BatchBackend:
    """Gathers requests into batches and waits for these.

    A batch is closed when it is full, or when no request has come for `window_s`. What a batch leaves unanswered
    (expired, overloaded) goes into another one.

    Args:
        config: The selector's section.
        folder: The run's: holds the record of batches.
        window_s: See above.
        poll_s: Seconds between two looks at a batch: at first, and at most.
        max_requests: Of one batch.
        key: Of the endpoint; None: as its settings say.
    """

    def __init__(
        self,
        config: LlmSettings,
        folder: RunFolder,
        *,
        window_s: float = _WINDOW_SECONDS,
        poll_s: tuple[float, float] = (_FIRST_POLL, _LAST_POLL),
        max_requests: int = MOST_BATCHED,
        key: str | None = None,
    ) -> None:
        self._config, self._folder = config, folder
        self._window, self._poll, self._most = window_s, poll_s, max_requests
        self._chat = ChatClient(config.model, config.endpoint, price=config.price, key=key)
        self._past = {q: s for s in sorted(folder.read(BATCHES), key=lambda s: s.created) for q in s.questions}
        self._answers: dict[str, asyncio.Task[Completion]] = {}
        self._collected: dict[str, asyncio.Task[Results]] = {}
        self._gathering: _Gathering | None = None
        self._work: set[asyncio.Task[Results]] = set()
        self._limited = False
        self._turn = asyncio.Lock()

    @property
    def address(self) -> str:
        """The endpoint's base URL: a batch answers as the endpoint itself does."""
        return self._chat.address

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply, once its batch is done; `Backend.complete` says what is raised."""
        body = self._chat.form.applied(request.body(self._config.model))
        digest = hashlib.sha256(json.dumps([self.address, body], sort_keys=True).encode()).hexdigest()[:32]
        asked_before = digest in self._answers
        if not asked_before:
            self._answers[digest] = asyncio.create_task(self._answer(digest, body, request))
        # Who gives up does not take the reply from others that asked the same; it was paid for once.
        done = await asyncio.shield(self._answers[digest])
        return replace(done, usage=Usage()) if asked_before else done

    async def close(self) -> None:
        """Stops waiting. Batches under way go on at the endpoint, and the next run collects them."""
        tasks = [*self._answers.values(), *self._collected.values(), *self._work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._chat.close()

    async def _answer(self, digest: str, body: dict[str, Any], request: CompletionRequest) -> Completion:
        line = json.dumps({"custom_id": digest, "method": "POST", "url": "/v1/chat/completions", "body": body})
        past, failure = self._past.get(digest), Failure("it was never asked")
        for _ in range(MAX_BATCHES + (past is not None)):
            if past:
                results, past, mine = await self._collect_past(past), None, False
            else:
                results, mine = await self._gather(digest, line.encode() + b"\n"), True
            answer = results.get(digest)
            if not isinstance(answer, Failure):
                try:
                    return self._chat.completion(answer)
                except TransientError as error:
                    answer = Failure(error.what, again=True)
            failure = answer
            if mine and not failure.again:
                break
        if failure.remedy:
            raise AtlasError(failure.what, failure.remedy)
        raise self._chat.refusal(failure.what, request)

    async def _gather(self, digest: str, line: bytes) -> Results:
        """Puts a request into the batch that is being gathered; returns when that is done."""
        batch = self._gathering
        if batch is None or batch.closed.is_set() or batch.size + len(line) > MAX_BYTES:
            if batch is not None:
                batch.closed.set()
            batch = self._gathering = _Gathering()
            batch.results = asyncio.create_task(self._process(batch))
            self._work.add(batch.results)
        batch.lines[digest] = line
        batch.size += len(line)
        if batch.timer:
            batch.timer.cancel()
        batch.timer = asyncio.get_running_loop().call_later(self._window, batch.closed.set)
        if len(batch.lines) >= self._most:
            batch.closed.set()
        assert batch.results is not None
        return await asyncio.shield(batch.results)

    async def _process(self, gathering: _Gathering) -> Results:
        """Submits what was gathered and waits for it, in parts where the endpoint takes no more at once."""
        await gathering.closed.wait()
        waiting, results = list(gathering.lines.items()), Results({}, unanswered())
        while waiting:
            part = dict(waiting[: self._most])
            async with self._one_at_a_time():
                batch = await self._await_end(await self._submit(part))
            if batch.status == "failed" and _TOO_MUCH in codes(batch):
                if len(part) == 1:
                    remedy = "run the same command again later; replies so far are kept"
                    raise AtlasError(f"the endpoint takes no batch of the smallest size: {errors(batch)}", remedy)
                self._most, self._limited = max(1, len(part) // 2), True
                continue
            done = await self._results(batch)
            results.found |= {digest: done.get(digest) for digest in part}
            del waiting[: len(part)]
        return results

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        """One batch after another, where the endpoint's limit of queued tokens has shown itself."""
        if not self._limited:
            yield
            return
        async with self._turn:
            yield

    async def _submit(self, lines: Mapping[str, bytes]) -> Batch:
        submission = Submission(uuid.uuid4().hex, "", time.time(), tuple(lines))
        await self._record(submission)
        client = self._chat.opened()
        content = b"".join(lines.values())
        upload = partial(client.files.create, file=("questions.jsonl", content), purpose="batch")
        file = await self._call(partial(upload, timeout=_TRANSFER_SECONDS))

        async def create() -> Batch:
            # An attempt that seemed to fail may have made the batch after all; two would be paid twice.
            return await self._tagged(client, submission) or await client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={_TAG: submission.id},
            )

        batch = await self._call(create)
        await self._record(replace(submission, batch_id=batch.id))
        _log.warning(
            "batch %s: %d requests are submitted; the endpoint takes up to 24 h. This command may be stopped and run "
            "again: it then waits for the same batch",
            batch.id,
            len(lines),
        )
        return batch

    async def _record(self, submission: Submission) -> None:
        await asyncio.to_thread(self._folder.write_shard, BATCHES, [submission])

    async def _await_end(self, batch: Batch) -> Batch:
        """Looks at a batch, ever less often, until it has ended; patient with an endpoint out of reach."""
        client, pause, reached = self._chat.opened(), self._poll[0], time.monotonic()
        while batch.status not in _FINAL:
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, self._poll[1])
            try:
                batch = await self._call(partial(client.batches.retrieve, batch.id))
                reached = time.monotonic()
            except UserError:
                raise
            except AtlasError:
                if time.monotonic() - reached > _PATIENCE_SECONDS:
                    raise
        return batch

    async def _results(self, batch: Batch) -> Results:
        """What a batch that has ended gave."""
        client = self._chat.opened()
        found: dict[str, dict[str, Any] | Failure] = {}
        for file in filter(None, (batch.error_file_id, batch.output_file_id)):
            content = await self._call(partial(client.files.content, file, timeout=_TRANSFER_SECONDS))
            found |= dict(parsed(content.content))
        return Results(found, missing_from(batch))

    async def _collect_past(self, submission: Submission) -> Results:
        """What a batch of an earlier run gave."""
        if submission.id not in self._collected:
            self._collected[submission.id] = asyncio.create_task(self._past_results(submission))
        return await asyncio.shield(self._collected[submission.id])

    async def _past_results(self, submission: Submission) -> Results:
        client = self._chat.opened()
        try:
            if submission.batch_id:
                batch = await self._call(partial(client.batches.retrieve, submission.batch_id))
            elif found := await self._call(partial(self._tagged, client, submission)):
                batch = found
                await self._record(replace(submission, batch_id=batch.id))
            else:  # it never reached the endpoint
                return Results({}, unanswered())
            _log.warning("batch %s of an earlier run is %s and is collected", batch.id, batch.status)
            return await self._results(await self._await_end(batch))
        except _GoneError as error:
            _log.warning("batch %s of an earlier run is lost: %s", submission.batch_id, error.what)
            return Results({}, unanswered())

    async def _tagged(self, client: openai.AsyncOpenAI, submission: Submission) -> Batch | None:
        """The batch that bears our name, of a run that was killed before it learnt the endpoint's name for it."""
        async for batch in client.batches.list(limit=100):
            if (batch.metadata or {}).get(_TAG) == submission.id:
                return batch
            if batch.created_at < submission.created - _A_DAY:
                break
        return None

    async def _call(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """One call that manages batches, with retries; one that fails, fails for all requests."""
        import openai

        what = ""
        for attempt in range(self._config.endpoint.max_retries + 1):
            if attempt:
                await asyncio.sleep(back_off(attempt - 1))
            try:
                return await call()
            except openai.NotFoundError as error:
                words = f"{self.address} has no Batch API, or no such file or batch: {self._chat.short(error)}"
                raise _GoneError(words, "set selector.mode=live") from None
            except openai.APIStatusError as error:
                try:
                    self._chat.explain(error)
                except TransientError as failure:
                    what = failure.what
                except ModelFailure as failure:
                    what = failure.what
                    break
            except (openai.OpenAIError, ValueError) as error:
                what = self._chat.short(error)
        raise AtlasError(f"{self.address}: {what}", "run the same command again; batches under way are kept")


class _GoneError(UserError):
    """The endpoint knows no such thing."""
