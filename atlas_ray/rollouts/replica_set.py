"""The supervisor of replicas: starts, deaths, restarts, and the requests in flight at each.

Flows in: requests, as a list or a generator; flows out: each with its result, as they finish. A Ray call carries many:
as many requests as there is room for, as many results as there are meanwhile.
"""

from __future__ import annotations

import logging
import queue
import time
from abc import abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar, Generic, Literal, Self

from atlas_ray.cluster.connection import START_SECONDS, cause_of, fetched_by, is_death, waiting_for
from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.models.protocol import ModelSpec
from atlas_ray.rollouts.affinity import AffinityQueue
from atlas_ray.rollouts.metrics import Meter
from atlas_ray.rollouts.replica import Replica, Request, Result
from atlas_ray.rollouts.replica_handle import ReplicaHandle
from atlas_ray.rollouts.retry_queue import MAX_DEATHS, Attempt, RetryQueue
from atlas_ray.types import Usage

_log = logging.getLogger(__name__)

_REMIND_SECONDS = 60.0
_DEATHS_PER_REPLICA = 3  # in a row, without a result in between
_CALLS = 8  # that an actor serves at once
_BATCH = 256  # requests in one call
_Call = Literal["start", "submit", "completed"]
_USAGE_SECONDS = 5.0  # that replicas have to say what they have written
_SEND_SECONDS = 0.05  # that a request waits for a full batch where the source is slow


@dataclass(frozen=True, slots=True)
class _Event(Generic[Request]):
    """A call that ended: a replica's start, requests submitted (with their numbers), or results asked for."""

    handle: ReplicaHandle[Request]
    call: _Call
    future: Any
    numbers: Sequence[int] = ()


class _Cancelled(Exception, Generic[Request]):
    """Nobody waits for a request any longer."""

    def __init__(self, request: Request) -> None:
        self.request = request


Completion = tuple[ReplicaHandle[Request], Attempt[Request], Result | BaseException]


class ReplicaSet(Generic[Request, Result]):
    """Replicas of one model. Use it as a context manager, in a process that is connected to Ray.

    Args:
        actor: The replicas' class.
        spec: What every replica makes its model from.
        arguments: Further ones of the class.
        replicas: How many.
        in_flight: Requests that a replica works at, at once.
        place: Ray's options for the actors.
        retries: Further attempts at a request that infrastructure spoilt, on other replicas where there are any.
        start_s: Seconds that a replica may take to start.

    Attributes:
        restarts: Replicas replaced so far.
        context: Tokens that a conversation may have; None where the model does not know.
        is_woken: Whether `wake` is called when a source that waits has requests again; else it waits for results alone.
    """

    replica: ClassVar[str] = "replica"  # what people call one
    result: ClassVar[str] = "a result"
    settings: ClassVar[str] = "engine"  # the section that makes replicas
    close_s: ClassVar[float] = 10.0

    def __init__(
        self,
        actor: type[Replica[Request, Result]],
        spec: ModelSpec[Any],
        *arguments: Any,
        replicas: int,
        in_flight: int,
        place: Mapping[str, Any],
        retries: int = 0,
        start_s: float = START_SECONDS,
    ) -> None:
        self._actor, self._arguments, self._place = actor, arguments, place
        self._spec: Any = spec
        self._in_flight, self._retries, self._start_s = in_flight, retries, start_s
        self._max_restarts = _DEATHS_PER_REPLICA * replicas
        self.restarts = self._deaths_in_a_row = 0
        self.context: int | None = None
        self._events: queue.SimpleQueue[_Event[Request] | _Cancelled[Request] | None] = queue.SimpleQueue()
        self.is_woken = self._stopped = False
        self._numbers, self._sent = count(), 0.0
        self._meter = Meter()
        self._handles = list[ReplicaHandle[Request]]()
        self._affinity: AffinityQueue[Request] | None = None
        try:
            for index in range(replicas):
                self._handles.append(self._start(index))
        except BaseException:
            self.close()
            raise

    def run(self, requests: Iterable[Request | None]) -> Generator[tuple[Request, Result], None, None]:
        """Works at all requests; each comes back once, with its result, as they finish.

        The next request is taken only when a replica has room; one of a group may then wait for its group's replica.

        Args:
            requests: None among them means: none yet, ask again when another result is there or after `wake`.

        Raises:
            AtlasError: If replicas keep dying, or a request cannot be worked at.
        """
        queued = RetryQueue(iter(requests), self._in_flight)
        self._affinity = affinity = AffinityQueue(queued, self._in_flight)
        self._stopped = False
        try:
            while not self._stopped:
                while taken := affinity.take([handle for handle in self._handles if handle.ready]):
                    self._dispatch(*taken)
                self._send()
                free = any(handle.ready and len(handle.inflight) < self._in_flight for handle in self._handles)
                inflight = any(handle.inflight for handle in self._handles)
                if not inflight and queued.ended and not affinity.waiting:
                    return
                if not inflight and free and queued.next_due is None and not self.is_woken:
                    raise ValueError("the source of requests waits, but nothing is in flight")
                due = queued.next_due if free else None  # without room, an event has to tell of some first
                for handle, attempt, end in self._next_completions(due):
                    unwanted = isinstance(end, _Cancelled)
                    result = None if isinstance(end, _Cancelled) else self._settle(attempt, handle, end)
                    queued.on_done(attempt, again=result is None and not unwanted)
                    self._meter.show("atlas_attempts_waiting", queued.waiting)
                    if result is not None:
                        yield attempt.request, result
        finally:
            for handle in self._handles:
                if handle.inflight:
                    handle.actor.cancel.remote(list(handle.inflight))
                handle.inflight, handle.unsent = {}, []

    def wake(self, *, stop: bool = False) -> None:
        """Has a `run` in another thread look for requests, or end."""
        self._stopped = self._stopped or stop
        self._events.put(None)

    def cancel(self, request: Request) -> None:
        """Ends a request that a `run` in another thread has in flight."""
        self._events.put(_Cancelled(request))

    def _dispatch(self, attempt: Attempt[Request], handle: ReplicaHandle[Request]) -> None:
        number = next(self._numbers)
        handle.inflight[number] = attempt
        handle.unsent.append(number)
        if len(handle.unsent) == _BATCH or time.monotonic() > self._sent + _SEND_SECONDS:
            self._send()

    def _send(self) -> None:
        """Tells the replicas of new requests, and asks those that work for results."""
        self._sent = time.monotonic()
        for handle in self._handles:
            if numbers := handle.unsent:
                handle.unsent = []
                ref = handle.actor.submit.remote([(number, handle.inflight[number].request) for number in numbers])
                self._post(ref, handle, "submit", numbers)
            if handle.inflight and not handle.asked:
                handle.asked = True
                self._post(handle.actor.completed.remote(), handle, "completed")

    def _settle(
        self, attempt: Attempt[Request], handle: ReplicaHandle[Request], end: Result | BaseException
    ) -> Result | None:
        """The result of a finished attempt, or None where it has to be made again."""
        if not isinstance(end, BaseException):
            self._deaths_in_a_row = 0
            if attempt.failures == self._retries or not self._is_spoilt(end):
                return end
            attempt.failures += 1
            attempt.avoid.add(handle.index)
            return None
        if not is_death(end):
            return self._failed(end if isinstance(end, AtlasError) else cause_of(end))
        attempt.deaths += 1
        return self._given_up(attempt.request) if attempt.deaths == MAX_DEATHS else None

    def _spec_of(self, index: int) -> Any:
        """What one replica makes its model from."""
        return self._spec

    def _is_spoilt(self, result: Result) -> bool:
        """Whether infrastructure spoilt it, so that another attempt may fare better."""
        return False

    def _failed(self, error: AtlasError) -> Result:
        """The result of a request that a replica refuses; where there is none, the run ends."""
        raise error from None

    @abstractmethod
    def _given_up(self, request: Request) -> Result:
        """The result of a request under which `MAX_DEATHS` replicas died."""

    def load(self, spec: ModelSpec[Any]) -> None:
        """Goes on with another model on all replicas; nothing may be in flight.

        Raises:
            AtlasError: If it cannot be loaded.
        """
        import ray

        self.wait_until_started()
        self._spec = spec
        for handle, ref in [(h, h.actor.load.remote(self._spec_of(h.index))) for h in self._handles]:
            try:
                self.context = ray.get(ref)
            except ray.exceptions.RayError as error:
                if not is_death(error):
                    raise cause_of(error) from None
                self._replace(handle, error)
        self.wait_until_started()

    def wait_until_started(self) -> None:
        """Returns once all replicas have started; where one cannot, all are ended.

        Raises:
            ModelFailure: If they die before.
            AtlasError: If they do not start.
        """
        try:
            while not all(handle.ready for handle in self._handles):
                self._next_completions(None, everyone=True)
        except BaseException:
            self.close()
            raise

    def usage(self) -> Usage:
        """Of all replies that the replicas' models have written so far; of those that answer at once."""
        import ray

        found, asked = Usage(), [handle.actor.usage.remote() for handle in self._handles if handle.ready]
        told, _ = ray.wait(asked, num_returns=len(asked), timeout=_USAGE_SECONDS) if asked else ([], [])
        for ref in told:
            with suppress(ray.exceptions.RayError):
                found += ray.get(ref)
        return found

    def close(self) -> None:
        """Ends all replicas and their processes."""
        import ray

        handles, self._handles = self._handles, []
        self._count_ready()
        if not ray.is_initialized():
            return
        closing = [handle.actor.close.remote() for handle in handles if handle.ready]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=self.close_s)
        for handle in handles:
            ray.kill(handle.actor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, index: int) -> ReplicaHandle[Request]:
        """Starts a replica; an event says when it is ready."""
        import ray

        actor: Any = ray.remote(self._actor)
        made = actor.options(
            **self._place,
            max_concurrency=_CALLS,
            enable_task_events=False,  # else Ray's head keeps a record of 100,000 calls
        ).remote(self._spec_of(index), *self._arguments)
        handle = ReplicaHandle[Request](index, made, time.monotonic())
        self._post(made.start.remote(), handle, "start")
        return handle

    def _post(self, ref: Any, handle: ReplicaHandle[Request], call: _Call, numbers: Sequence[int] = ()) -> None:
        """Has a call's end put into the queue."""
        events = self._events
        ref.future().add_done_callback(lambda future: events.put(_Event(handle, call, future, numbers)))

    def _replace(self, handle: ReplicaHandle[Request], error: BaseException) -> None:
        """Starts another replica for one that died.

        Raises:
            ModelFailure: If too many died in a row.
        """
        import ray

        if self._handles[handle.index] is not handle:
            return
        self.restarts += 1
        self._meter.count("atlas_replica_deaths")
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > self._max_restarts:
            reason = " ".join(str(error if is_death(error) else cause_of(error).what).split())[:500]
            raise ModelFailure(
                f"{self._deaths_in_a_row} {self.replica}s died in a row, without {self.result}; the last: {reason}",
                f"check memory ({self.settings}.cpu_kv_cache_gb, {self.settings}.episodes_in_flight); "
                "ATLAS_RAY_LOGS=1 shows more",
            )
        _log.warning("%s %d (process %s) died and is started again", self.replica, handle.index, handle.pid)
        ray.kill(handle.actor)
        self._handles[handle.index] = self._start(handle.index)
        self._count_ready()

    def _count_ready(self) -> None:
        self._meter.show("atlas_replicas_ready", sum(handle.ready for handle in self._handles))

    def _next_completions(self, until: float | None, everyone: bool = False) -> list[Completion[Request, Result]]:
        """What ended next; nothing where something else happened or the time `until` has come.

        Raises:
            AtlasError: If a replica cannot start.
        """
        wait = _REMIND_SECONDS if until is None else min(_REMIND_SECONDS, max(0.0, until - time.monotonic()))
        try:
            event = self._events.get(timeout=wait)
        except queue.Empty:
            self._remind(everyone)
            return []
        if event is None:
            return []
        if isinstance(event, _Cancelled):
            return self._cancelled(event)
        handle, error = event.handle, event.future.exception()
        if event.call != "start":
            return self._completions(event, error)
        if self._handles[handle.index] is not handle:
            return []
        if error is None:
            handle.pid, self.context = event.future.result()
            self._count_ready()
        elif is_death(error) or self.restarts:
            # What a dead replica held, such as memory of a GPU, may not be free at once.
            self._replace(handle, error)
        else:
            raise cause_of(error) from None
        return []

    def _completions(self, event: _Event[Request], error: BaseException | None) -> list[Completion[Request, Result]]:
        """The attempts that a call tells of: ended as it says, or all that it was for where it failed."""
        handle, ends = event.handle, []
        if event.call == "completed":
            handle.asked = False
        if error is not None:
            death = is_death(error)
            numbers = handle.inflight if death else event.numbers or handle.inflight
            ends = [(number, error) for number in numbers]
            if death:
                self._replace(handle, error)
        elif event.call == "completed":
            ends = event.future.result()
        return [(handle, handle.inflight.pop(number), end) for number, end in ends if number in handle.inflight]

    def _cancelled(self, event: _Cancelled[Request]) -> list[Completion[Request, Result]]:
        if self._affinity is not None:
            self._affinity.discard(event.request)
        for handle in self._handles:
            for number, attempt in handle.inflight.items():
                if attempt.request is event.request:
                    handle.actor.cancel.remote([number])
                    return [(handle, handle.inflight.pop(number), event)]
        return []

    def _remind(self, everyone: bool) -> None:
        """Says what a replica that does not start is waiting for; too long a wait ends the run."""
        starting = [handle for handle in self._handles if not handle.ready]
        if not starting:
            return
        if told := fetched_by(handle.actor for handle in starting):
            for handle in starting:
                handle.since = time.monotonic()
            _log.warning("%ss fetch %s", self.replica, told)
            return
        waited = time.monotonic() - min(handle.since for handle in starting)
        words = waiting_for(len(starting), len(self._handles), waited, self._spec.gpus)
        if waited > self._start_s and (everyone or len(starting) == len(self._handles)):
            settings = self.settings
            remedy = f"ask for fewer replicas ({settings}.replicas), raise {settings}.start_s, or give Ray more"
            raise AtlasError(words, remedy)
        if waited > _REMIND_SECONDS:
            _log.warning(words)
