"""Plays built-in environments in this process: `LocalSession` behind the one `Session` protocol.

Flows in: tasks and replies; flows out: what the simulator answers. Its calls run in threads, so that one which blocks
holds up no other session, and is given up when its caller's time is over.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from atlas_ray.environments.protocol import MALFORMED, EnvironmentSpec, Opening, StepResult
from atlas_ray.errors import UserError
from atlas_ray.types import Task

A = TypeVar("A")
T = TypeVar("T")

_STUCK_SECONDS = 1.0  # of a call, from which others no longer wait for its thread
_IDLE_SECONDS = 10.0  # of a thread that has nothing to do
_CLOSE_SECONDS = 5.0


class LocalSession:
    """A session with a built-in simulator in this process.

    Raises:
        UserError: If the environment is not built in, or its extra is missing.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        if spec.simulator is None:
            raise UserError(
                f"{spec.name} is not built in", f"name its server: environments.servers.{spec.name}=http://..."
            )
        self.spec, self._calls = spec, SimulatorCalls(spec)
        self._reward = 0.0

    async def reset(self, task: Task) -> Opening:
        """Starts the task."""
        self._reward = 0.0
        return await self._calls.run(self._calls.simulator.reset, self.spec.number(task))

    async def step(self, reply: str) -> StepResult:
        """Plays the action in a model's reply."""
        action = self.spec.take_action(reply)
        if action is None:
            return StepResult(MALFORMED, self._reward, False)
        step = self._calls.simulator.step
        result = step(action) if self.spec.quick else await self._calls.run(step, action)
        self._reward = result.reward
        return result

    async def close(self) -> None:
        """Ends what the simulator holds; one that is in the middle of a call is killed."""
        await self._calls.close()


class SimulatorCalls:
    """One simulator, whose calls run in the threads of its environment, unless all are quick.

    Attributes:
        simulator: What is called.
    """

    def __init__(self, spec: EnvironmentSpec) -> None:
        assert spec.simulator is not None
        self._spec, self.simulator = spec, spec.simulator()
        self._busy = False

    async def run(self, call: Callable[[A], T], about: A) -> T:
        """What a call of the simulator returns or raises."""
        if self._spec.quick:
            return call(about)

        def run() -> T:
            self._busy = True
            try:
                return call(about)
            finally:
                self._busy = False

        return await _threads_of(self._spec.name).run(run)

    async def close(self) -> None:
        """Ends what the simulator holds beside its own memory: an interpreter, a Java machine; a hung one is killed."""
        close, kill = (getattr(self.simulator, name, None) for name in ("close", "kill"))
        if close and not self._busy:
            with suppress(TimeoutError):
                await asyncio.wait_for(_threads_of(self._spec.name).run(close), _CLOSE_SECONDS)
                return
        if kill:
            kill()


class _Threads:
    """Threads that take one environment's calls in order: one thread, and more while calls are stuck.

    They are none of `concurrent.futures`', which the process would wait for at its end.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = self._waiting = self._begun = 0
        self._watch: asyncio.TimerHandle | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns or raises."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._calls.put((answer, call))
            if not self._threads:
                self._add()
        self._waiting += 1
        if self._watch is None:
            self._watch = loop.call_later(_STUCK_SECONDS, self._look, self._begun)
        try:
            return await answer
        finally:
            self._waiting -= 1

    def _look(self, begun: int) -> None:
        """Adds threads where no call has begun since the last look, though some wait."""
        if begun == self._begun and not self._calls.empty():
            with self._lock:
                for _ in range(min(self._threads, self._calls.qsize())):
                    self._add()
        self._watch = None
        if self._waiting:
            self._watch = asyncio.get_running_loop().call_later(_STUCK_SECONDS, self._look, self._begun)

    def _add(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name=f"simulator of {self._name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            try:
                answer, call = self._calls.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                if self._ends(spare=False):
                    return
                continue
            self._begun += 1
            begun = time.monotonic()
            if not answer.cancelled():
                _answer(answer, call)
            del answer, call  # an idle thread holds nothing
            if time.monotonic() - begun > _STUCK_SECONDS and self._ends(spare=True):
                return

    def _ends(self, *, spare: bool) -> bool:
        """Whether a thread may end: because others are there, or because nothing is to do."""
        with self._lock:
            ends = self._threads > 1 if spare else self._calls.empty()
            self._threads -= ends
            return ends


def _answer(answer: asyncio.Future[T], call: Callable[[], T]) -> None:
    """Makes a call, and tells its caller's event loop."""
    tell: Callable[[], None]
    try:
        tell = partial(answer.set_result, call())
    except BaseException as error:  # noqa: BLE001 (its caller's)
        # a future takes any error but this one
        tell = partial(answer.set_exception, RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)
    with suppress(RuntimeError):  # the loop has ended
        answer.get_loop().call_soon_threadsafe(_unless_given_up, answer, tell)


def _unless_given_up(answer: asyncio.Future[T], tell: Callable[[], None]) -> None:
    if not answer.done():
        tell()


_threads: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Threads]] = WeakKeyDictionary()


def _threads_of(name: str) -> _Threads:
    own = _threads.setdefault(asyncio.get_running_loop(), {})
    if name not in own:
        own[name] = _Threads(name)
    return own[name]
