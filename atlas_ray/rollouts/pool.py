"""Many episodes on replica actors. The one module here that speaks Ray.

Flows in: requests, as a list or a generator; flows out: each with its episode, as they finish. A Ray call carries many:
as many requests as there is room for, as many episodes as have ended meanwhile.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from atlas_ray.cluster.connection import START_SECONDS, cause_of, fetched_by, is_death, waiting_for
from atlas_ray.cluster.placement import Labels, place_engines
from atlas_ray.config import EnvironmentsConfig, LimitsConfig
from atlas_ray.environments.agentgym.agentboard import absolute
from atlas_ray.environments.agentgym.numbers import numbered
from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.rollouts.backlog import MAX_DEATHS, Attempt, Backlog
from atlas_ray.rollouts.metrics import Meter
from atlas_ray.rollouts.replica import EpisodeRequest, FixedSpec, PolicySpec, Replica
from atlas_ray.types import Episode, StopReason

__all__ = ["EpisodeRequest", "FixedSpec", "PolicySpec", "RolloutPool"]

_log = logging.getLogger(__name__)

_REMIND_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
_CALLS = 8  # that an actor serves at once
_BATCH = 256  # requests in one call
_SEND_SECONDS = 0.05  # that a request waits for company where the source is slow


@dataclass(eq=False, slots=True)
class _Seat:
    """A replica as the driver sees it.

    Attributes:
        since: When it was started, on the monotonic clock.
        flights: The attempts that it plays, by number.
        unsent: Numbers of those among them that it has not been told of.
        asked: Whether a call for ended episodes is under way.
    """

    index: int
    actor: Any
    since: float
    pid: int | None = None
    flights: dict[int, Attempt] = field(default_factory=dict)
    unsent: list[int] = field(default_factory=list)
    asked: bool = False

    @property
    def flying(self) -> int:
        """Episodes that it plays."""
        return len(self.flights)

    @property
    def ready(self) -> bool:
        """Whether it has started."""
        return self.pid is not None


@dataclass(frozen=True, slots=True)
class _Event:
    """A call that ended: a replica's start, requests sent (with their numbers), or ended episodes asked for."""

    seat: _Seat
    call: Literal["start", "send", "ask"]
    future: Any
    numbers: Sequence[int] = ()


_Landing = tuple[_Seat, Attempt, Episode | BaseException]


class RolloutPool:
    """Replicas of one policy. Use it as a context manager, in a process that is connected to Ray.

    Args:
        spec: What every replica makes its policy from.
        replicas: How many.
        in_flight: Episodes that a replica plays at once.
        environments: Servers of environments that are not built in.
        limits: Seconds for a turn and for an episode.
        retries: Further attempts at an episode that infrastructure spoilt, on other replicas where there are any.
        max_restarts: Replicas that may die in a row, without an episode finished in between; None: three each.
        labels: Of the nodes that replicas run on; None: those of the group for rollouts, where they need GPUs.
        start_s: Seconds that a replica may take to start.

    Attributes:
        restarts: Replicas replaced so far.
        context: Tokens that a conversation may have; None where the policy does not know.

    Raises:
        UserError: If the cluster has no room for them.
        ModelFailure: If the replicas die before they have started.
        AtlasError: If the replicas do not start.
    """

    def __init__(
        self,
        spec: PolicySpec,
        *,
        replicas: int = 1,
        in_flight: int = 256,
        environments: EnvironmentsConfig | None = None,
        limits: LimitsConfig | None = None,
        retries: int = 2,
        max_restarts: int | None = None,
        labels: Labels | None = None,
        start_s: float = START_SECONDS,
    ) -> None:
        self._spec, self._in_flight, self._retries = spec, in_flight, retries
        self._environments, self._limits = absolute(environments or EnvironmentsConfig()), limits or LimitsConfig()
        self._max_restarts = 3 * replicas if max_restarts is None else max_restarts
        self.restarts = self._deaths_in_a_row = 0
        self.context: int | None = None
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._numbers, self._sent = count(), 0.0
        self._seats: list[_Seat] = []
        self._meter = Meter()
        self._start_s = start_s
        self._place = place_engines(spec.gpus, replicas, labels)
        try:
            self._seats = [self._seat(index) for index in range(replicas)]
            self._await_starts()
        except BaseException:
            self.close()
            raise

    def run(self, requests: Iterable[EpisodeRequest | None]) -> Generator[tuple[EpisodeRequest, Episode], None, None]:
        """Plays all requests; each comes back once, with its episode, as they finish.

        The next request is taken only when a replica has room for it.

        Args:
            requests: What to play. None among them means: not yet, ask again when another episode has finished.

        Raises:
            UserError: If an environment or a task of a request cannot be played.
            AtlasError: If replicas keep dying.
        """
        # numbers are looked up here, for the files that tell them may lie on this machine alone
        known = (r and replace(r, task=numbered(r.task, self._environments)) for r in requests)
        backlog, homes = Backlog(known, self._in_flight), dict[str, int]()
        try:
            while True:
                while seats := [s for s in self._seats if s.ready and s.flying < self._in_flight]:
                    attempt = backlog.take()
                    if attempt is None:
                        break
                    self._board(attempt, _choose(attempt, seats, homes, self._in_flight))
                self._send()
                flying = any(seat.flights for seat in self._seats)
                if not flying and backlog.ended:
                    return
                if not flying and seats and backlog.next_due is None:
                    raise ValueError("the source of requests waits, but no episode is under way")
                due = backlog.next_due if seats else None  # without a place, an event has to tell of one first
                for seat, attempt, end in self._next_event(due):
                    episode = self._settle(attempt, seat, end)
                    backlog.land(attempt, again=episode is None)
                    self._meter.show("atlas_attempts_waiting", backlog.waiting)
                    if episode is not None:
                        yield attempt.request, episode
        finally:
            for seat in self._seats:
                if seat.flights:
                    seat.actor.drop.remote(list(seat.flights))
                seat.flights, seat.unsent = {}, []

    def _board(self, attempt: Attempt, seat: _Seat) -> None:
        number = next(self._numbers)
        seat.flights[number] = attempt
        seat.unsent.append(number)
        if len(seat.unsent) == _BATCH or time.monotonic() > self._sent + _SEND_SECONDS:
            self._send()

    def _send(self) -> None:
        """Tells the replicas of new requests, and asks those that play for what has ended."""
        self._sent = time.monotonic()
        for seat in self._seats:
            if numbers := seat.unsent:
                seat.unsent = []
                ref = seat.actor.play.remote([(number, seat.flights[number].request) for number in numbers])
                _post(self._events, ref, seat, "send", numbers)
            if seat.flights and not seat.asked:
                seat.asked = True
                _post(self._events, seat.actor.ended.remote(), seat, "ask")

    def _settle(self, attempt: Attempt, seat: _Seat, end: Episode | BaseException) -> Episode | None:
        """The episode of a finished attempt, or None where it has to be made again."""
        if isinstance(end, Episode):
            self._deaths_in_a_row = 0
            if not end.stop_reason.is_infrastructure or attempt.failures == self._retries:
                return end
            attempt.failures += 1
            attempt.avoid.add(seat.index)
            return None
        if not is_death(end):
            raise end if isinstance(end, AtlasError) else cause_of(end) from None
        attempt.deaths += 1
        return _given_up(attempt.request) if attempt.deaths == MAX_DEATHS else None

    def load(self, spec: PolicySpec) -> None:
        """Goes on with another policy on all replicas; no episode may be under way.

        Raises:
            AtlasError: If it cannot be loaded.
        """
        import ray

        self._await_starts()
        self._spec = spec
        for seat, ref in [(seat, seat.actor.load.remote(spec)) for seat in self._seats]:
            try:
                self.context = ray.get(ref)
            except ray.exceptions.RayError as error:
                if not is_death(error):
                    raise cause_of(error) from None
                self._replace(seat, error)
        self._await_starts()

    def close(self) -> None:
        """Ends all replicas and their processes."""
        import ray

        seats, self._seats = self._seats, []
        self._count_ready()
        if not ray.is_initialized():
            return
        closing = [seat.actor.close.remote() for seat in seats if seat.ready]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_SECONDS)
        for seat in seats:
            ray.kill(seat.actor)

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seat(self, index: int) -> _Seat:
        """Starts a replica; an event says when it is ready."""
        import ray

        replica: Any = ray.remote(Replica)
        actor = replica.options(
            **self._place,
            max_concurrency=_CALLS,
            enable_task_events=False,  # else Ray's head keeps a record of 100,000 calls
        ).remote(self._spec, self._environments, self._limits)
        seat = _Seat(index, actor, time.monotonic())
        _post(self._events, actor.start.remote(), seat, "start")
        return seat

    def _replace(self, seat: _Seat, error: BaseException) -> None:
        """Starts another replica for one that died.

        Raises:
            AtlasError: If too many died in a row.
        """
        import ray

        if self._seats[seat.index] is not seat:
            return
        self.restarts += 1
        self._meter.count("atlas_replica_deaths")
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row > self._max_restarts:
            cause = cause_of(error)
            reason = " ".join(str(error if is_death(error) else cause.what).split())[:500]
            raise ModelFailure(
                f"{self._deaths_in_a_row} replicas died in a row, without an episode finished; the last: {reason}",
                "check memory (engine.cpu_kv_cache_gb, engine.episodes_in_flight); ATLAS_RAY_LOGS=1 shows more",
            )
        _log.warning("replica %d (process %s) died and is started again", seat.index, seat.pid)
        ray.kill(seat.actor)
        self._seats[seat.index] = self._seat(seat.index)
        self._count_ready()

    def _count_ready(self) -> None:
        self._meter.show("atlas_replicas_ready", sum(seat.ready for seat in self._seats))

    def _await_starts(self) -> None:
        while not all(seat.ready for seat in self._seats):
            self._next_event(None, everyone=True)

    def _next_event(self, until: float | None, everyone: bool = False) -> list[_Landing]:
        """What landed next; nothing where something else happened or the time `until` has come.

        Raises:
            AtlasError: If a replica cannot start.
        """
        wait = _REMIND_SECONDS if until is None else min(_REMIND_SECONDS, max(0.0, until - time.monotonic()))
        try:
            event = self._events.get(timeout=wait)
        except queue.Empty:
            self._remind(everyone)
            return []
        seat, error = event.seat, event.future.exception()
        if event.call != "start":
            return self._landed(event, error)
        if self._seats[seat.index] is not seat:
            return []
        if error is None:
            seat.pid, self.context = event.future.result()
            self._count_ready()
        elif is_death(error) or self.restarts:
            # What a dead replica held, such as memory of a GPU, may not be free at once.
            self._replace(seat, error)
        else:
            raise cause_of(error) from None
        return []

    def _landed(self, event: _Event, error: BaseException | None) -> list[_Landing]:
        """The attempts that a call tells of: ended as it says, or all that it was for where it failed."""
        seat, ends = event.seat, []
        if event.call == "ask":
            seat.asked = False
        if error is not None:
            death = is_death(error)
            ends = [(number, error) for number in (seat.flights if death else event.numbers or list(seat.flights))]
            if death:
                self._replace(seat, error)
        elif event.call == "ask":
            ends = event.future.result()
        return [(seat, seat.flights.pop(number), end) for number, end in ends if number in seat.flights]

    def _remind(self, everyone: bool) -> None:
        """Says what a replica that does not start is waiting for; too long a wait ends the run."""
        starting = [seat for seat in self._seats if not seat.ready]
        if not starting:
            return
        if told := fetched_by(seat.actor for seat in starting):
            for seat in starting:
                seat.since = time.monotonic()
            _log.warning("replicas fetch %s", told)
            return
        waited = time.monotonic() - min(seat.since for seat in starting)
        words = waiting_for(len(starting), len(self._seats), waited, self._spec.gpus)
        if waited > self._start_s and (everyone or len(starting) == len(self._seats)):
            raise AtlasError(words, "ask for fewer replicas (engine.replicas), raise engine.start_s, or give Ray more")
        if waited > _REMIND_SECONDS:
            _log.warning(words)


def _post(
    events: queue.SimpleQueue[_Event],
    ref: Any,
    seat: _Seat,
    call: Literal["start", "send", "ask"],
    numbers: Sequence[int] = (),
) -> None:
    """Has a call's end put into the queue."""
    ref.future().add_done_callback(lambda future: events.put(_Event(seat, call, future, numbers)))


def _choose(attempt: Attempt, seats: list[_Seat], homes: dict[str, int], in_flight: int) -> _Seat:
    """The home of the attempt's group unless it is much busier than others, else who plays least."""
    free = [seat for seat in seats if seat.index not in attempt.avoid] or seats
    least = min(free, key=lambda seat: (seat.flying, seat.index))
    if attempt.request.group is None:
        return least
    home = homes.setdefault(attempt.request.group, least.index)
    at_home = [seat for seat in free if seat.index == home and seat.flying - least.flying <= in_flight // 4]
    return at_home[0] if at_home else least


def _given_up(request: EpisodeRequest) -> Episode:
    """The record of an episode under which replicas die."""
    return Episode(
        id=request.id,
        env=request.task.env,
        item_id=request.task.item_id,
        policy="",
        sample=request.sample,
        start_step=len(request.prefix),
        seed=request.seed,
        messages=(),
        reward=0.0,
        raw_reward=0.0,
        success=False,
        progress=0.0,
        rounds=0,
        stop_reason=StopReason.MODEL_ERROR,
        error=f"{MAX_DEATHS} replicas died while they played this episode",
        trajectory=request.trajectory,
    )
