"""Questions to a model on vLLM engines of our own, one Ray actor a replica: a `Backend` without endpoint and price.

Flows in: questions, as many at once as are asked; flows out: completions.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from atlas_ray.cluster.connection import START_SECONDS, cause_of, connect, fetched_by, is_death, waiting_for
from atlas_ray.cluster.placement import Labels, place_engines
from atlas_ray.config import EngineConfig, RayConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure, UserError
from atlas_ray.models.client import Completion, CompletionRequest
from atlas_ray.models.engine import EngineSpec
from atlas_ray.models.protocol import ModelSpec, Reply, Sampling, build_model
from atlas_ray.runs.folder import reachable
from atlas_ray.runs.local_copy import fetching
from atlas_ray.types import Message

_log = logging.getLogger(__name__)

MAX_DEATHS = 4  # replicas that may die under one question
_SHRINK = 8  # times smaller is the company after each death
_DEATHS_PER_REPLICA = 3  # in a row, without a reply in between
_REMIND_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
_SPARE_CALLS = 8  # of an actor, beside its questions


class Answerer(Protocol):
    """What a replica holds: a `VllmPolicy`, or a test's stand-in. `dead` says that it broke for good."""

    @property
    def dead(self) -> bool:
        """Whether the replica has to be replaced."""
        ...

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        """One reply to a conversation."""
        ...

    async def close(self) -> None:
        """Ends the model's processes."""
        ...


AnswererSpec = ModelSpec[Answerer]


class AnswerReplica:
    """The actor: one engine, and the questions under way. Its errors are the project's own, which need no vLLM."""

    def __init__(self, spec: AnswererSpec) -> None:
        self._spec = spec
        self._model: Any = None

    async def start(self) -> int:
        """Makes the model.

        Returns:
            This process's id.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._model = await build_model(self._spec)
        return os.getpid()

    async def fetching(self) -> str:
        """What it fetches from a store, before it can start."""
        return fetching()

    async def answer(self, request: CompletionRequest) -> Completion:
        """One reply.

        Raises:
            ModelFailure: If the question does not fit or the engine fails it.
        """
        messages = [Message(m["role"], m["content"]) for m in request.messages]  # type: ignore[arg-type]
        sampling = Sampling(request.temperature, request.max_tokens)
        try:
            reply = await self._model.answer(messages, sampling, request.seed or 0, request.schema)
        except ContextOverflow as error:
            words = f"the question does not fit: {error.what}"
            raise ModelFailure(words, "raise selector.engine.max_model_len") from None
        except Exception as error:
            if self._model.dead:
                # The driver replaces this replica and asks its questions again.
                os._exit(1)
            why = error.what if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
            raise ModelFailure(why) from error
        return Completion(reply.text, reply.finish, reply.usage)

    async def close(self) -> None:
        """Ends the engine."""
        await self._model.close()


@dataclass(eq=False, slots=True)
class _Seat:
    """A replica as the driver sees it; `pid` is None until it has started."""

    index: int
    actor: Any
    pid: int | None = None
    asked: int = 0


class EngineBackend:
    """Replicas of one model. They start with the first question.

    What flew when a replica died may be what killed it: such questions are asked again in ever smaller company, the
    last time alone, lest the innocent are given up with the guilty.

    Args:
        spec: What every replica makes its model from.
        replicas: How many.
        in_flight: Questions that a replica takes at once; more wait.
        ray: How to reach Ray, where this process is not connected.
        address: What judgements are cached by, beside the model's name.
        labels: Of the nodes that replicas run on; None: those of the group for rollouts, where they need GPUs.
        start_s: Seconds that a replica may take to start.
    """

    def __init__(
        self,
        spec: AnswererSpec,
        *,
        replicas: int = 1,
        in_flight: int = 256,
        ray: RayConfig | None = None,
        address: str = "engine",
        labels: Labels | None = None,
        start_s: float = START_SECONDS,
    ) -> None:
        self._spec, self._replicas, self._in_flight, self._ray = spec, replicas, in_flight, ray or RayConfig()
        self._address, self._labels, self._start_s = address, labels, start_s
        self._seats: list[_Seat] = []
        self._starts: set[asyncio.Task[None]] = set()
        self._deaths_in_a_row = 0
        self._failed: AtlasError | None = None
        self._changed = asyncio.Condition()
        self._room = asyncio.Semaphore(replicas * in_flight)
        self._company = [asyncio.Semaphore(max(1, in_flight // _SHRINK**deaths)) for deaths in range(1, MAX_DEATHS)]

    @classmethod
    def of(cls, model: str, config: EngineConfig, ray: RayConfig | None = None) -> EngineBackend:
        """Engines of a model as configured."""
        return cls(
            EngineSpec("selector", reachable(model), config),
            replicas=config.replicas,
            in_flight=config.episodes_in_flight,
            ray=ray,
            address=f"vLLM engine ({config.dtype})",
            labels=config.label_selector,
            start_s=config.start_s,
        )

    @property
    def address(self) -> str:
        """Says that the model runs here, and in which number format."""
        return self._address

    async def complete(self, request: CompletionRequest) -> Completion:
        """One reply.

        Raises:
            AtlasError: If the engines do not start or keep dying (UserError: the model cannot be used).
            ModelFailure: If this question fails: it does not fit, the schema cannot be followed, or replicas die of it.
        """
        self._open()
        async with self._room:
            return await self._answered(request)

    async def close(self) -> None:
        """Ends all replicas and their processes."""
        seats, self._seats = self._seats, []
        if not seats:
            return
        import ray

        starts = list(self._starts)
        for start in starts:
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        if not ray.is_initialized():
            return
        closing = [asyncio.wrap_future(s.actor.close.remote().future()) for s in seats if s.pid is not None]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        for seat in seats:
            ray.kill(seat.actor)

    def _open(self) -> None:
        if not self._seats:
            connect(self._ray)
            self._place = place_engines(self._spec.gpus, self._replicas, self._labels)
            self._seats = [self._seat(index) for index in range(self._replicas)]

    async def _answered(self, request: CompletionRequest) -> Completion:
        for deaths in range(MAX_DEATHS):
            if deaths == 0:
                found = await self._ask(request)
            else:
                async with self._company[deaths - 1]:
                    found = await self._ask(request)
            if found is not None:
                return found
        raise ModelFailure(f"{MAX_DEATHS} engines died while they answered this question")

    async def _ask(self, request: CompletionRequest) -> Completion | None:
        """The reply of the replica that is asked least; None if it died.

        Raises:
            AtlasError: If no replica can be had.
            ModelFailure: If the question fails.
        """
        import ray

        seat = await self._take()
        ref = seat.actor.answer.remote(request)
        try:
            completion: Completion = await ref
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise
        except ray.exceptions.RayError as error:
            if not is_death(error):
                raise cause_of(error) from None
            self._replace(seat, error)
            return None
        else:
            self._deaths_in_a_row = 0
            return completion
        finally:
            seat.asked -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _take(self) -> _Seat:
        """A place at the replica that is asked least, as soon as there is one."""

        def free() -> list[_Seat]:
            return [s for s in self._seats if s.pid is not None and s.asked < self._in_flight]

        async with self._changed:
            await self._changed.wait_for(lambda: self._failed or free())
            if self._failed:
                raise self._failed
            seat = min(free(), key=lambda s: (s.asked, s.index))
            seat.asked += 1
            return seat

    def _seat(self, index: int) -> _Seat:
        """Creates a replica; a task waits for its start."""
        import ray

        replica: Any = ray.remote(AnswerReplica)
        seat = _Seat(
            index,
            replica.options(
                **self._place,
                max_concurrency=self._in_flight + _SPARE_CALLS,
            ).remote(self._spec),
        )
        task = asyncio.create_task(self._start(seat))
        self._starts.add(task)
        task.add_done_callback(self._starts.discard)
        return seat

    async def _start(self, seat: _Seat) -> None:
        """Waits until a replica has started; where it cannot, nobody waits any longer."""
        import ray

        started = asyncio.wrap_future(seat.actor.start.remote().future())
        begun = time.monotonic()
        try:
            while not started.done():
                await asyncio.wait([started], timeout=_REMIND_SECONDS)
                if started.done():
                    break
                if told := await asyncio.to_thread(fetched_by, [seat.actor]):
                    begun = time.monotonic()
                    _log.warning("engine %d fetches %s", seat.index, told)
                else:
                    self._remind(time.monotonic() - begun)
            seat.pid = started.result()
        except ray.exceptions.RayError as error:
            # What a dead replica held, such as memory of a GPU, may not be free at once.
            if is_death(error) or self._deaths_in_a_row:
                self._replace(seat, error)
            else:
                self._failed = _for_all(cause_of(error))
        except AtlasError as error:
            self._failed = error
        finally:
            async with self._changed:
                self._changed.notify_all()

    def _remind(self, waited: float) -> None:
        starting = sum(seat.pid is None for seat in self._seats)
        words = waiting_for(starting, self._replicas, waited, self._spec.gpus)
        if waited > self._start_s and starting == self._replicas:
            raise AtlasError(words, "lower selector.engine.replicas, raise selector.engine.start_s, or give Ray more")
        _log.warning(words)

    def _replace(self, seat: _Seat, error: BaseException) -> None:
        """Starts another replica for one that died; too many deaths in a row end it all."""
        import ray

        if seat not in self._seats:
            return
        self._deaths_in_a_row += 1
        with suppress(ray.exceptions.RayError):
            ray.kill(seat.actor)
        if self._deaths_in_a_row > _DEATHS_PER_REPLICA * self._replicas:
            reason = " ".join(str(error).split())[:500]
            self._failed = AtlasError(
                f"{self._deaths_in_a_row} engines died in a row, without a reply; the last: {reason}",
                "check memory (selector.engine.cpu_kv_cache_gb); ATLAS_RAY_LOGS=1 shows more",
            )
            self._seats.remove(seat)
            return
        _log.warning("engine %d (process %s) died and is started again", seat.index, seat.pid)
        self._seats[self._seats.index(seat)] = self._seat(seat.index)


def _for_all(error: AtlasError) -> AtlasError:
    """An engine that does not start is no failure of one question."""
    return error if isinstance(error, UserError) else AtlasError(error.what, error.remedy)
