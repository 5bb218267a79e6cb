"""A replica actor: it holds one model and works at many requests beside it in one event loop.

Flows in: requests, many a call; flows out: results, as many as there are since they were last asked for. Plain asyncio:
a turn of an episode costs no Ray call, and an episode a share of two.
"""

from __future__ import annotations

import asyncio
import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from atlas_ray.cluster.connection import AGAIN
from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.models.protocol import ModelSpec, build_model
from atlas_ray.runs.local_copy import fetching
from atlas_ray.types import Usage

Request = TypeVar("Request")
Result = TypeVar("Result")

_UNWIND_SECONDS = 8.0  # for what is in flight to end, once cancelled; the driver waits a little longer
_MOST = 256  # results in one answer
_YOUNG = 50_000  # objects between two looks for garbage


class Replica(ABC, Generic[Request, Result]):
    """The actor. Its model may have `load(spec)`, `close()`, `context` (tokens) and `dead` (it broke for good)."""

    def __init__(self, spec: ModelSpec[Any]) -> None:
        self._spec = spec
        self._model: Any = None
        self._inflight: dict[int, asyncio.Task[Result]] = {}
        self._results: list[tuple[int, Result | AtlasError]] = []
        self._some = asyncio.Event()

    @abstractmethod
    async def _answer(self, request: Request) -> Result:
        """Works at one request; an `AtlasError` is a result too."""

    async def start(self) -> tuple[int, int | None]:
        """Makes the model.

        Returns:
            This process's id, and the tokens that a conversation may have, where the model knows.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._model = await build_model(self._spec)
        # Else a turn costs the more the more conversations there are: each look walks through them and all libraries.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG)
        return os.getpid(), self._context

    @property
    def _context(self) -> int | None:
        return getattr(self._model, "context", None)

    async def fetching(self) -> str:
        """What it fetches from a store, before it can start."""
        return fetching()

    async def submit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Begins requests, each with the number under which `completed` will tell of it."""
        for number, request in requests:
            task = self._inflight[number] = asyncio.create_task(self._guarded(request))
            task.add_done_callback(partial(self._on_done, number))
        self._show()

    async def _guarded(self, request: Request) -> Result:
        try:
            return await self._answer(request)
        finally:
            if getattr(self._model, "dead", False):
                os._exit(1)  # the driver replaces this replica and makes its requests again

    async def completed(self) -> list[tuple[int, Result | AtlasError]]:
        """Results that were not told of yet, or why there is none; waits for the first."""
        await self._some.wait()
        told, self._results = self._results[:_MOST], self._results[_MOST:]
        if not self._results:
            self._some.clear()
        return told

    async def cancel(self, numbers: Sequence[int]) -> None:
        """Ends requests that nobody waits for."""
        for number in numbers:
            if number in self._inflight:
                _cancel(self._inflight[number])

    def _on_done(self, number: int, task: asyncio.Task[Result]) -> None:
        """Keeps a result until somebody asks."""
        del self._inflight[number]
        self._show()
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._results.append((number, task.result()))
        elif isinstance(error, AtlasError):
            self._results.append((number, error))
        else:
            self._results.append((number, AtlasError(f"a replica failed: {type(error).__name__}: {error}", AGAIN)))
        self._some.set()

    def _show(self) -> None:
        """Tells how much is in flight."""

    async def usage(self) -> Usage:
        """Of all replies that the model has written so far; of none where it does not count them."""
        return getattr(self._model, "usage", Usage())

    async def load(self, spec: ModelSpec[Any]) -> int | None:
        """Goes on with another model.

        Returns:
            The tokens that a conversation may have, where the model knows.

        Raises:
            AtlasError: If it cannot be made.
        """
        self._spec = spec
        if not hasattr(self._model, "load"):
            await self.close()
            return (await self.start())[1]
        try:
            await self._model.load(spec)
        except AtlasError:
            raise
        except Exception as error:
            raise ModelFailure(f"the model does not load: {type(error).__name__}: {error}") from error
        return self._context

    async def close(self) -> None:
        """Ends what is in flight, e.g. the sessions of episodes, then the model's processes and connections."""
        tasks = list(self._inflight.values())
        for task in tasks:
            _cancel(task)
        if tasks:
            await asyncio.wait(tasks, timeout=_UNWIND_SECONDS)
        if hasattr(self._model, "close"):
            await self._model.close()


def _cancel(task: asyncio.Task[Any]) -> None:
    if not task.cancelling():
        task.cancel()
