"""One episode: a policy acting in an environment, from scratch or from where an expert's steps lead.

Flows in: a policy, a session, a task; flows out: an `Episode`, whatever goes wrong on the way. Plain asyncio.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar, cast

from atlas_ray.config import LimitsConfig
from atlas_ray.environments.openings import OpeningTemplate, is_of_task, told_of_task
from atlas_ray.environments.protocol import MALFORMED, Opening, Session, StepResult, ToolUse, gold_ranks
from atlas_ray.environments.replay import worst
from atlas_ray.environments.tool_session import ToolSession, play_calls
from atlas_ray.errors import AtlasError, ContextOverflow, ReplayMismatch
from atlas_ray.models.protocol import Conversation, Policy, Reply, Sampling
from atlas_ray.rollouts.guided import GivenTurn, Guided
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.types import Category, Episode, GoldStep, Message, Replay, StopReason, Task, ToolCall, Usage, last_seen

A = TypeVar("A")
T = TypeVar("T")


def episode_id(task: Task, sample: int, start_step: int, trajectory: str | None = None) -> str:
    """The unit that is never done twice, e.g. `maze/maze_17@0+3`; by trajectory where one is followed."""
    return f"{trajectory or task.id}@{sample}+{start_step}"


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to play.

    Attributes:
        sampling: How replies are drawn.
        seed: Of the run; each turn's seed follows from it, the task, the sample, the start and the turn.
        sample: Number of the episode among those with the same task and start.
        prefix: Expert replies to replay before the policy acts.
        recorded: What the expert was answered after each of them (or after the first few); compared with what comes
            now, with the environment's tolerance. Empty: no comparison.
        first_observation: What the expert saw first: another task may have the same id on another server. None: no
            comparison.
        max_rounds: Cap on all turns, replayed ones included; None: the environment's own.
        opening: How the conversation opens, and whether it acts by calls of tools; None: as the environment itself
            opens, and by text.
        given: Turns that are said for the policy where it sees what an expert saw before them.
        trajectory: Id of the one whose steps are replayed or put in; the episode is named after it. None: its task.
        table: Of the run folder, where the episode is written.
        group: Requests of one group share a beginning and go to one replica, whose prefix cache then holds it.
    """

    task: Task
    sampling: Sampling
    _: KW_ONLY
    seed: int
    sample: int = 0
    prefix: tuple[Message, ...] = ()
    recorded: tuple[str, ...] = ()
    first_observation: str | None = None
    max_rounds: int | None = None
    opening: OpeningTemplate | None = None
    given: tuple[GivenTurn, ...] = ()
    trajectory: str | None = None
    table: str = "episodes"
    group: str | None = None

    @property
    def id(self) -> str:
        """Of the episode."""
        return episode_id(self.task, self.sample, len(self.prefix), self.trajectory)

    def episode(self, policy: str, stop_reason: StopReason, error: str | None, **played: Any) -> Episode:
        """The episode of this request; `played` is what happened, if anything did."""
        nothing: dict[str, Any] = {"messages": (), "success": False, "rounds": 0}
        nothing |= dict.fromkeys(("reward", "raw_reward", "progress"), 0.0)
        return Episode(
            id=self.id,
            env=self.task.env,
            item_id=self.task.item_id,
            policy=policy,
            sample=self.sample,
            start_step=len(self.prefix),
            seed=self.seed,
            stop_reason=stop_reason,
            error=error,
            trajectory=self.trajectory,
            **nothing | played,
        )


async def run_episode(
    policy: Policy, session: Session, request: EpisodeRequest, limits: LimitsConfig | None = None
) -> Episode:
    """Plays one episode. A bad rollout is data: only cancellation is raised.

    The environment is never stepped after it is done; where it is done before the prefix ends, the reward stands.
    Calls of one reply are played one after the other, each with a result of its own; the reply is one round. What it
    calls after the task has ended is not played.

    Args:
        policy: Who acts after the prefix.
        session: The environment; it is reset first, and left open.
        request: What to play.
        limits: Seconds for a turn and in all; None: the usual ones.

    Returns:
        The episode. Failures of the environment end it as `env_error` (`replay_mismatch` where it lost the episode and
        does not repeat it), an answer that does not come within a turn's time as `environment_timeout`, failures and
        timeouts of the policy as `model_error`, with their cause in `error`.
    """
    task, prefix, recorded, opening = request.task, request.prefix, request.recorded, request.opening
    if request.given:
        policy = Guided(policy, request.given)
    clock = _Clock(limits or LimitsConfig())
    course = _Course(session, clock, opening.error_turn if opening else None)
    cap = session.spec.max_rounds if request.max_rounds is None else request.max_rounds
    error = None
    try:
        by_calls = opening is not None and opening.tools is not None
        own = await course.begin(task, by_calls=by_calls)
        first, told = request.first_observation, told_of_task(session.spec, own.observation, tools=by_calls)
        if first is not None and not is_of_task(session.spec, first, told):
            course.replay = "differs" if prefix else None
            raise _StopError(StopReason.REPLAY_MISMATCH, "the first observation is another task's than recorded")
        shown = opening.applied(session.spec, own) if opening else own
        course.messages += shown.messages()
        course.tools = shown.tools
        with _blame(StopReason.MODEL_ERROR):
            sampling = replace(request.sampling, tools=shown.tools)
            conversation = policy.open(task, list(course.messages), sampling)
        for turn, given in enumerate(prefix):
            if course.result.done:
                break
            with _blame(StopReason.MODEL_ERROR):
                conversation.append(given)
            await course.act(given, conversation)
            if turn < len(recorded):
                now = session.spec.compare(recorded[turn], last_seen(course.messages))
                course.replay = worst(course.replay, now)
            if course.replay == "differs":
                raise _StopError(StopReason.REPLAY_MISMATCH, f"step {turn + 1} was answered otherwise than recorded")
        while not course.result.done and course.turns < cap:
            drawn = derive_seed(request.seed, task.id, request.sample, len(prefix), course.turns)
            reply = await clock.wait(StopReason.MODEL_ERROR, conversation.generate, drawn)
            course.take(reply)
            await course.act(reply.message, conversation)
        stop = StopReason.DONE if course.result.done else StopReason.MAX_ROUNDS
    except _StopError as end:
        stop, error = end.reason, end.error
    reward = session.spec.scale(course.result.reward)
    return request.episode(
        policy.name,
        stop,
        error,
        messages=tuple(course.messages),
        reward=reward,
        raw_reward=course.result.reward,
        success=reward >= session.spec.success_at,
        progress=reward if course.progress is None else course.progress,
        rounds=course.rounds,
        usage=course.usage,
        seconds=time.monotonic() - clock.begun,
        gold=course.gold(),
        replay=course.replay,
        tools=course.tools,
    )


@dataclass(slots=True)
class _Course:
    """What has happened so far.

    Attributes:
        error_turn: Answers a malformed reply in place of the session's own words.
        play: What answers a reply with turns; None: its text is the action.
        tools: Schemas of the tools that the policy is shown.
    """

    session: Session
    clock: _Clock
    error_turn: str | None = None
    play: Callable[[Message], Awaitable[StepResult]] | None = None
    tools: str | None = None
    messages: list[Message] = field(default_factory=list)
    result: StepResult = field(default_factory=lambda: StepResult("", 0.0, False))
    progress: float | None = None
    turns: int = 0
    rounds: int = 0
    usage: Usage = field(default_factory=Usage)
    replay: Replay | None = None
    marks: list[tuple[int, Category, float]] = field(default_factory=list)

    async def begin(self, task: Task, *, by_calls: bool) -> Opening:
        """The environment's own opening of a task, which is played by text or by calls of tools."""
        session, spec = self.session, self.session.spec
        if not by_calls:
            return await self.clock.wait(StopReason.ENV_ERROR, session.reset, task)
        if spec.tells_tools:
            calling = cast(ToolSession, session)
            self.play = partial(self._ask, calling.call)
            return await self.clock.wait(StopReason.ENV_ERROR, calling.reset_for_calls, task)
        if spec.tools is None:
            raise _StopError(StopReason.ENV_ERROR, f"{task.env} offers no tools to call")
        self.play = partial(self._play_as_text, spec.tools)
        return await self.clock.wait(StopReason.ENV_ERROR, session.reset, task)

    def take(self, reply: Reply) -> None:
        """Counts a turn of the policy's own."""
        self.rounds += 1
        self.usage += reply.usage
        if reply.category is not None:
            self.marks.append((self.turns + 1, reply.category, reply.weight))

    async def act(self, reply: Message, conversation: Conversation) -> None:
        """Plays a reply, and appends what comes back to the conversation."""
        self.turns += 1
        self.messages.append(reply)
        begun = len(self.messages)
        if self.play is None:
            self.messages.append(Message("user", self._said(await self._ask(self.session.step, reply.content))))
        else:
            self.messages += (await self.play(reply)).turns
        if not self.result.done:
            try:  # no context manager, which would cost a twentieth of a cheap world's turn
                for answer in self.messages[begun:]:
                    conversation.append(answer)
            except Exception as error:
                raise _fault(error, StopReason.MODEL_ERROR) from error

    async def _ask(self, step: Callable[[A], Awaitable[StepResult]], about: A) -> StepResult:
        """What the environment answers."""
        self.result = await self.clock.wait(StopReason.ENV_ERROR, step, about)
        if self.result.progress is not None:
            self.progress = max(self.progress or 0.0, self.result.progress)
        return self.result

    def _said(self, result: StepResult) -> str:
        told = result.observation
        return self.error_turn if self.error_turn is not None and told == MALFORMED else told

    async def _play_as_text(self, use: ToolUse, reply: Message) -> StepResult:
        """What answers a reply's calls, each played as the text of an action."""

        async def play(call: ToolCall) -> StepResult:
            result = await self._ask(self.session.step, use.action(call))
            return replace(result, observation=use.result(self._said(result)))

        return await play_calls(reply, self.result, play)

    def gold(self) -> tuple[GoldStep, ...] | None:
        """The policy's own marks, ranked; None where it makes none."""
        ranks = gold_ranks([(step, weight) for step, _, weight in self.marks])
        return tuple(GoldStep(step, ranks[step], category) for step, category, _ in self.marks) or None


class _StopError(Exception):
    """The episode ends here; `error` is set where the infrastructure is to blame."""

    def __init__(self, reason: StopReason, error: str | None = None) -> None:
        self.reason, self.error = reason, error
        super().__init__(reason, error)


class _Clock:
    """Time limits, and whose fault it is when something fails."""

    def __init__(self, limits: LimitsConfig) -> None:
        self.begun, self._turn_s, self._episode_s = time.monotonic(), limits.turn_s, limits.episode_s

    async def wait(self, reason: StopReason, ask: Callable[[A], Awaitable[T]], about: A) -> T:
        """An answer within the limits; its failure ends the episode for `reason`."""
        left = self.begun + self._episode_s - time.monotonic()
        limit = asyncio.timeout(min(self._turn_s, left))
        try:
            async with limit:
                return await ask(about)
        except Exception as error:
            if isinstance(error, ContextOverflow) or not limit.expired():
                raise _fault(error, reason) from error
            if left < self._turn_s:
                raise _StopError(reason, f"longer than {self._episode_s:g} s in all") from None
            late = StopReason.ENV_TIMEOUT if reason is StopReason.ENV_ERROR else reason
            raise _StopError(late, f"no answer within {self._turn_s:g} s") from None


@contextmanager
def _blame(reason: StopReason) -> Iterator[None]:
    """Runs a block that waits for nothing; its failure ends the episode for `reason`."""
    try:
        yield
    except Exception as error:
        raise _fault(error, reason) from error


def _fault(error: Exception, reason: StopReason) -> _StopError:
    if isinstance(error, ContextOverflow):
        return _StopError(StopReason.CONTEXT_OVERFLOW)
    return _StopError(StopReason.REPLAY_MISMATCH if isinstance(error, ReplayMismatch) else reason, _words(error))


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, AtlasError) else f"{type(error).__name__}: {error}"
