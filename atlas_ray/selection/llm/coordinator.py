"""What the judging actors of a run share: one throttle, one journal of paid replies, one budget, one end.

Plain asyncio; Ray makes an actor of `Coordinator`, and each judging actor reaches it by a `Link`, which gathers
calls and answers, so that a request costs no round trip of its own. Flows in: what judging actors want to ask, and what
came of it; flows out: leave to ask, and replies that were paid for before.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import isawaitable
from itertools import count
from typing import TYPE_CHECKING, Any

from atlas_ray.errors import AtlasError, TooManyFailed
from atlas_ray.models.client import ChatClient
from atlas_ray.models.throttle import Throttle
from atlas_ray.runs.failures import FailureWatch
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm.journal import Journal, PaidReply

if TYPE_CHECKING:
    from atlas_ray.selection.llm.settings import LlmSettings

_GATHER_SECONDS = 0.005  # calls, and answers, that come within travel together
_POLL_SECONDS = 10.0  # of one wait for answers
_DEAD_SECONDS = 300.0  # without a sign from a judging actor: what it held is free again
CREDIBLE = 2.0  # times what a reply may cost by our count: what reports more is not believed, and ends the run

_Call = tuple[int | None, str, tuple[Any, ...]]  # a number where an answer is wanted, a method, its arguments


class SpentError(AtlasError):
    """`max_cost` allows no further call."""


@dataclass(slots=True)
class _Worker:
    """A judging actor: its calls in flight, its claims with the US dollars set aside, and answers it has yet to get."""

    actor: str
    seen: float = field(default_factory=time.monotonic)
    turns: int = 0
    claims: dict[str, float] = field(default_factory=dict)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    some: asyncio.Event = field(default_factory=asyncio.Event)


class Coordinator:
    """Grants turns and money, keeps replies, and ends it all once one call has met what every call would.

    Args:
        config: The selector's section.
        folder: The run's.
    """

    def __init__(self, config: LlmSettings, folder: RunFolder) -> None:
        self._config = config
        self._journal = Journal(folder, RunFolder(config.cache) if config.cache else None)
        self._throttle = Throttle.of(config.endpoint)
        self._settled = asyncio.Event()  # a new one each time
        self._watch = FailureWatch("judgements")
        self._workers: dict[str, _Worker] = {}
        self._overrun = 0.0  # US dollars that replies report beyond what they can have cost
        # The first reply shows what the endpoint reports; a batch's come together.
        self._one_by_one = config.max_cost is not None and config.mode == "live"
        self._tasks: set[asyncio.Task[None]] = set()
        self._key, self._opened = "", asyncio.Event()

    async def open(self, key: str) -> None:
        """Makes sure, by one request, that the endpoint answers and takes the key; else nothing is asked.

        Raises:
            AtlasError: If it does not answer (UserError: it refuses the key).
        """
        self._key = key
        client = ChatClient(self._config.model, self._config.endpoint, gate=self._throttle, key=key)
        try:
            if self._config.engine is None and not await client.check():
                self._throttle.probe()
        except AtlasError as error:
            self._throttle.stop(error)
            raise
        finally:
            self._opened.set()
            await client.close()

    async def join(self, worker: str, actor: str) -> str:
        """The endpoint's key, once it was asked whether it takes it; a judging actor's first call, which admits it."""
        await self._opened.wait()
        return self._key

    def admit(self, worker: str, actor: str) -> None:
        """Begins to serve a judging actor, and frees what it held before it was started again.

        Args:
            worker: Its name in this life.
            actor: Its name in all of its lives.
        """
        for name in [name for name, held in self._workers.items() if held.actor == actor]:
            self._bury(name)
        self._workers[worker] = _Worker(actor)

    # --- a call: claimed, in its turn, kept ---

    async def claim(self, worker: str, key: str, dollars: float) -> PaidReply | None:
        """The reply that was paid for before; None where the caller is to ask, and then to `keep` or `release`.

        Waits for calls under way where this one could exceed `max_cost`.

        Args:
            key: Digest of the request.
            dollars: What a reply may cost at most.

        Raises:
            SpentError: If it could exceed `max_cost` with none under way.
            AtlasError: If the run has been stopped.
        """
        if paid := await self._journal.get(key):
            return paid
        limit = self._config.max_cost
        while limit is not None and self._throttle.stopped is None:
            spent, set_aside = self._journal.spent, [d for w in self._workers.values() for d in w.claims.values()]
            if spent + sum(set_aside) + dollars <= limit and not (set_aside and self._one_by_one):
                break
            if not set_aside:
                error = SpentError(
                    f"stopped at ${spent:.4f}: one more call could exceed max_cost={limit:g}",
                    "raise --max-cost (selector.max_cost) and run the same command again; it goes on from here",
                )
                self._throttle.stop(error)
                break
            await self._settled.wait()
        if self._throttle.stopped:
            raise self._throttle.stopped
        if held := self._workers.get(worker):
            held.claims[key] = dollars
        return None

    async def keep(self, worker: str, reply: PaidReply, key: str = "", reported: float = 0.0) -> None:
        """Returns once the reply is on disk.

        Args:
            reply: With what it costs by our count, where its own is not to be believed.
            key: Of the claim, where it is not the reply's.
            reported: US dollars by the endpoint's own count.

        Raises:
            SpentError: If more than `max_cost` is spent by either count: no limit can be kept.
        """
        try:
            await self._journal.keep(reply)
        finally:  # `end` waits for claims, on a full disk too
            self.release(worker, key or reply.id)
        self._overrun += max(0.0, reported - reply.usage.cost)
        if error := self._overspent():
            self._throttle.stop(error)
            raise error

    def _overspent(self) -> SpentError | None:
        """What to say once replies have cost more than was set aside for them."""
        limit, spent = self._config.max_cost, self._journal.spent
        if limit is not None and self._overrun:
            return SpentError(
                f"the endpoint reports ${spent + self._overrun:.4f} for replies that can have cost about ${spent:.4f}, "
                f"by our count of their tokens: max_cost={limit:g} cannot be kept",
                "look at its bill and at selector.prices_file; the same command goes on from here",
            )
        if limit is not None and spent > limit:
            return SpentError(
                f"${spent:.4f} are spent, more than max_cost={limit:g}: replies were longer than by our count",
                "raise --max-cost (selector.max_cost) and run the same command again; it goes on from here",
            )
        return None

    def judged(self, worker: str, error: str | None) -> None:
        """Takes why a judgement failed, None where it did not; so many in a row end the run."""
        try:
            self._watch.add(error)
        except TooManyFailed as failed:
            self._throttle.stop(failed)
            self._tell_of_settled()

    def release(self, worker: str, key: str) -> None:
        """A claim is settled, or nothing came of it."""
        self._one_by_one = False
        if held := self._workers.get(worker):
            held.claims.pop(key, None)
        self._tell_of_settled()

    async def enter(self, worker: str, tokens: int) -> float:
        """As `Throttle.enter`."""
        began = await self._throttle.enter(tokens)
        if held := self._workers.get(worker):
            held.turns += 1
        else:  # it died while it waited
            self._throttle.leave()
        return began

    def leave(self, worker: str) -> None:
        """As `Throttle.leave`."""
        held = self._workers.get(worker)
        if held and held.turns:
            held.turns -= 1
            self._throttle.leave()

    def throttle(self, worker: str, name: str, *arguments: Any) -> None:
        """Tells the throttle how a call fared."""
        getattr(self._throttle, name)(*arguments)

    async def end(self, worker: str, error: AtlasError) -> None:
        """Stops the run, waits for calls under way, which are paid for, and raises what stopped it first."""
        self._throttle.stop(error)
        self._tell_of_settled()  # who waits for money is told
        while any(w.claims for w in self._workers.values()):
            await self._settled.wait()
        error = self._throttle.stopped or error
        raise (self._overspent() if isinstance(error, SpentError) else None) or error

    # --- as an actor ---

    async def post(self, worker: str, calls: list[_Call]) -> None:
        """Takes a judging actor's calls, in order."""
        if calls[0][1] == "join":
            self.admit(worker, calls[0][2][0])  # before its first look for answers
        self._known(worker).seen = time.monotonic()
        for number, name, arguments in calls:
            if number is None:
                getattr(self, name)(worker, *arguments)
            else:
                task = asyncio.create_task(self._answer(worker, number, name, arguments))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def poll(self, worker: str) -> list[tuple[int, Any]]:
        """Answers to a judging actor's calls, by number; waits for the first a while, and is its sign of life."""
        held, now = self._known(worker), time.monotonic()
        held.seen = now
        for name in [name for name, other in self._workers.items() if now - other.seen > _DEAD_SECONDS]:
            self._bury(name)
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await held.some.wait()
                await asyncio.sleep(_GATHER_SECONDS)
        found, held.answers = held.answers, []
        held.some.clear()
        return found

    async def _answer(self, worker: str, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            result = getattr(self, name)(worker, *arguments)
            if isawaitable(result):
                result = await result
        except AtlasError as error:
            result = error
        except Exception as error:  # noqa: BLE001 (who asked must not wait for ever)
            result = AtlasError(f"the run's coordinator failed: {type(error).__name__}: {error}")
        if held := self._workers.get(worker):
            held.answers.append((number, result))
            held.some.set()

    def _known(self, worker: str) -> _Worker:
        if worker not in self._workers:
            raise AtlasError(f"an actor was silent for {_DEAD_SECONDS:g} s and taken for dead")
        return self._workers[worker]

    def _tell_of_settled(self) -> None:
        self._settled.set()
        self._settled = asyncio.Event()

    def _bury(self, name: str) -> None:
        """Frees what a dead actor held; what its calls may have cost counts as spent."""
        held = self._workers.pop(name)
        self._journal.spent += sum(held.claims.values())
        for _ in range(held.turns):
            self._throttle.leave()
        self._tell_of_settled()


class Link:
    """A judge's way to the coordinator, an actor; calls and answers that come close together share a message."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator, self._name = coordinator, uuid.uuid4().hex
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._outbox: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None
        self._poller: asyncio.Task[None] | None = None

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Calls one of the coordinator's methods and waits for the answer.

        Raises:
            AtlasError: What the method raises; or there is no coordinator any more.
        """
        number = next(self._numbers)
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        self._send((number, name, arguments))
        return await answer

    def tell(self, name: str, *arguments: Any) -> None:
        """The same, where no answer is wanted."""
        self._send((None, name, arguments))

    def _send(self, call: _Call) -> None:
        self._outbox.append(call)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_out())

    async def _send_out(self) -> None:
        try:
            while self._outbox:
                await asyncio.sleep(_GATHER_SECONDS)
                calls, self._outbox = self._outbox, []
                await self._coordinator.post.remote(self._name, calls)
                if self._poller is None or self._poller.done():
                    self._poller = asyncio.create_task(self._poll())
        except Exception as error:  # noqa: BLE001 (whoever waits for an answer is told)
            self._lost(error)

    async def _poll(self) -> None:
        try:
            while True:  # where nothing was asked too: an actor may wait for its endpoint for hours
                for number, answer in await self._coordinator.poll.remote(self._name):
                    asked = self._asked.pop(number, None)
                    if asked is None or asked.done():
                        continue
                    if isinstance(answer, BaseException):
                        asked.set_exception(answer)
                    else:
                        asked.set_result(answer)
        except Exception as error:  # noqa: BLE001 (whoever waits for an answer is told)
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        error = getattr(error, "cause", None) or error  # Ray's own words begin with where it happened
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        lost = AtlasError(f"the run's coordinator is lost: {why}", "run the same command again; paid replies are kept")
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            if not answer.done():
                answer.set_exception(lost)


class SharedThrottle(Throttle):
    """The coordinator's throttle, for a client elsewhere."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.stopped: AtlasError | None = None

    async def enter(self, tokens: int) -> float:
        """As the coordinator's."""
        began: float = await self._link.ask("enter", tokens)
        return began

    def leave(self) -> None:
        """As the coordinator's."""
        self._link.tell("leave")

    def succeeded(self) -> None:
        """As the coordinator's."""
        self._link.tell("throttle", "succeeded")

    def overloaded(self, began: float) -> None:
        """As the coordinator's."""
        self._link.tell("throttle", "overloaded", began)

    def pause(self, seconds: float) -> None:
        """As the coordinator's."""
        self._link.tell("throttle", "pause", seconds)

    def stop(self, error: AtlasError) -> None:
        """As the coordinator's."""
        self.stopped = self.stopped or error
        self._link.tell("throttle", "stop", error)
