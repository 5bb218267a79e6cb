"""Replicas for an event loop: each request is awaited by itself. Flows in: requests; flows out: results."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic

from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.models.protocol import ModelSpec
from atlas_ray.rollouts.replica import Request, Result
from atlas_ray.rollouts.replica_set import ReplicaSet


class AsyncReplicaSet(Generic[Request, Result]):
    """Runs a replica set in a thread, from the first request on.

    Args:
        make: Makes the replicas, in that thread.

    Attributes:
        replicas: Once they are made.
    """

    def __init__(self, make: Callable[[], ReplicaSet[Request, Result]]) -> None:
        self._make = make
        self.replicas: ReplicaSet[Request, Result] | None = None
        self._thread: threading.Thread | None = None
        self._queued: deque[Request] = deque()
        self._futures: dict[int, asyncio.Future[Result]] = {}
        self._error: BaseException | None = None
        self._stopping = False

    async def result(self, request: Request) -> Result:
        """A request's result; raised where it is an error. The object must be another one than any in flight.

        Raises:
            AtlasError: If the replicas do not start or keep dying.
        """
        future = self._futures[id(request)] = asyncio.get_running_loop().create_future()
        if (error := self._error) is not None:  # looked at now, lest the thread ends in between
            del self._futures[id(request)]
            raise error
        self._queued.append(request)
        if self._thread is None:
            self._stopping = False
            self._thread = threading.Thread(target=self._work, name="replicas", daemon=True)
            self._thread.start()
        elif self.replicas is not None:
            self.replicas.wake()
        try:
            return await future
        except asyncio.CancelledError:
            if self.replicas is not None:
                self.replicas.cancel(request)
            raise
        finally:
            del self._futures[id(request)]

    def open(self) -> ReplicaSet[Request, Result]:
        """Makes the replicas where that is not done."""
        if self.replicas is None:
            self.replicas = self._make()
            self.replicas.is_woken = True
        return self.replicas

    @property
    def context(self) -> int | None:
        """Tokens that a conversation may have; None where that is not known."""
        return self.replicas.context if self.replicas else None

    async def load(self, spec: ModelSpec[Any]) -> None:
        """See `ReplicaSet.load`."""
        await self.stop()
        await asyncio.to_thread(self.open().load, spec)

    async def stop(self) -> None:
        """Ends the thread; the replicas stay, and the next request starts it again."""
        self._stopping = True
        if self.replicas is not None:
            self.replicas.wake(stop=True)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            self._thread = None

    async def close(self) -> None:
        """Ends the thread and the replicas."""
        await self.stop()
        if self.replicas is not None:
            await asyncio.to_thread(self.replicas.close)
            self.replicas = None

    def _work(self) -> None:
        try:
            for request, result in self.open().run(self._source()):
                self._tell(id(request), result)
        except BaseException as error:  # noqa: BLE001 (all who wait are told)
            # what ends all replicas is no failure of one request
            self._error = AtlasError(error.what, error.remedy) if isinstance(error, ModelFailure) else error
            for key in list(self._futures):
                self._tell(key, self._error)

    def _source(self) -> Iterator[Request | None]:
        """Requests as they come in; those that nobody waits for any longer are passed over."""
        while not self._stopping:
            request = self._queued.popleft() if self._queued else None
            if request is None or id(request) in self._futures:
                yield request

    def _tell(self, key: int, result: Result | BaseException) -> None:
        future = self._futures.get(key)
        if future is None:
            return

        def settle() -> None:
            if future.done():
                return
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        with suppress(RuntimeError):  # the loop has ended
            future.get_loop().call_soon_threadsafe(settle)
