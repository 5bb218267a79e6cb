"""One episode, played with stand-ins for policy and environment."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from atlas_ray.config import LimitsConfig
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult
from atlas_ray.environments.registry import get
from atlas_ray.errors import ContextOverflow, EnvironmentFailure, ModelFailure
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.types import Category, Episode, GoldStep, Message, StopReason, Task, Usage

TASK = Task("counter", "counter_3")
SPEC = EnvironmentSpec("counter", "in", 6, "success", "first", reward_scale=0.01)


class Counter:
    """Counts to three; pays 100 at the end, 10 a step before it."""

    spec = SPEC

    def __init__(self, goal: int = 3, fail: Callable[[int], None] = lambda step: None) -> None:
        self.goal, self.fail, self.count = goal, fail, 0
        self.heard: list[str] = []

    async def reset(self, task: Task) -> Opening:
        self.fail(0)
        self.count, self.heard = 0, []
        return Opening("Count.", f"Task {task.item_id}.")

    async def step(self, reply: str) -> StepResult:
        assert self.count < self.goal, "stepped after done"
        self.fail(self.count + 1)
        self.count += 1
        self.heard.append(reply)
        done = self.count == self.goal
        text = f"now {self.count}\nand line two"
        return StepResult(text, 100.0 if done else 10.0 * self.count, done, self.count / 10)

    async def close(self) -> None: ...


class Conversation:
    def __init__(self, reply: Callable[[int], Reply]) -> None:
        self.reply, self.turns, self.seeds = reply, 0, list[int]()
        self.log: list[tuple[str, str]] = []

    async def generate(self, seed: int) -> Reply:
        self.turns += 1
        self.seeds.append(seed)
        reply = self.reply(self.turns)
        self.log.append(("generated", reply.text))
        return reply

    def append(self, message: Message) -> None:
        self.log.append(("replied" if message.role == "assistant" else "observed", message.content))


class Policy:
    name = "stand-in"

    def __init__(self, reply: Callable[[int], Reply] = lambda turn: Reply(f"say {turn}", Usage(1, 0, 2, 1))) -> None:
        self.conversation = Conversation(reply)
        self.opening: list[Message] = []

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Conversation:
        self.opening = list(opening)
        return self.conversation


def answers(count: int) -> list[str]:
    return [f"now {i}\nand line two" for i in range(1, count + 1)]


async def play(policy: Policy, session: Counter, **given: Any) -> Episode:
    limits, prefix = given.pop("limits", None), given.pop("prefix", ())
    given["prefix"] = tuple(Message("assistant", reply, True) for reply in prefix)
    request = EpisodeRequest(TASK, **{"sampling": Sampling(), "seed": 5} | given)
    return await run_episode(policy, session, request, limits)


async def test_an_episode_from_scratch() -> None:
    policy, session = Policy(), Counter()
    found = await play(policy, session)
    assert found.id == "counter/counter_3@0+0"
    assert (found.stop_reason, found.error) == (StopReason.DONE, None)
    assert (found.raw_reward, found.reward, found.success, found.progress) == (100.0, 1.0, True, 0.3)
    assert (found.rounds, found.usage) == (3, Usage(3, 0, 6, 3))
    assert [m.content for m in found.messages[:3]] == ["Count.", "OK", "Task counter_3."]
    assert [(m.role, m.content, m.trainable) for m in found.messages[3:5]] == [
        ("assistant", "say 1", True),
        ("user", "now 1\nand line two", False),
    ]
    assert not any(m.trainable for m in found.messages[:3])
    assert found.messages[-1] == Message("user", "now 3\nand line two")
    assert policy.conversation.seeds == [derive_seed(5, TASK.id, 0, 0, turn) for turn in range(3)]
    assert policy.conversation.log[-1] == ("generated", "say 3")


async def test_a_prefix_is_replayed_and_not_counted() -> None:
    policy, session = Policy(), Counter()
    found = await play(policy, session, prefix=["one"], recorded=["and line two \n\nnow 1"], sample=2)
    assert (found.id, found.start_step, found.rounds) == ("counter/counter_3@2+1", 1, 2)
    assert session.heard == ["one", "say 1", "say 2"]
    assert policy.conversation.log[:2] == [("replied", "one"), ("observed", "now 1\nand line two")]
    assert policy.conversation.seeds == [derive_seed(5, TASK.id, 2, 1, turn) for turn in (1, 2)]
    assert [m.content for m in found.messages if m.trainable] == ["one", "say 1", "say 2"]


async def test_a_replay_that_differs_ends_the_episode() -> None:
    policy = Policy()
    found = await play(policy, Counter(), prefix=["one", "two"], recorded=["now 1\nand line two", "now 7"])
    assert found.stop_reason is StopReason.REPLAY_MISMATCH
    assert found.error
    assert "step 2" in found.error
    assert policy.conversation.turns == 0


@pytest.mark.parametrize("prefix", [[], ["one"]])
async def test_another_task_under_the_same_id_is_a_mismatch(prefix: list[str]) -> None:
    policy, session = Policy(), Counter()
    found = await play(policy, session, prefix=prefix, first_observation="Task counter_4.")
    assert (found.stop_reason, found.messages, session.heard) == (StopReason.REPLAY_MISMATCH, (), [])
    assert found.error == "the first observation is another task's than recorded"
    assert policy.conversation.turns == 0
    for recorded in ("\n Task counter_3. ", "The rules:\ncount.\nTask counter_3."):
        assert (await play(Policy(), Counter(), prefix=prefix, first_observation=recorded)).success


@pytest.mark.parametrize(
    ("env", "recorded", "shown", "same"),
    [
        ("textcraft", "Crafting commands:\na\n\nGoal: craft x.", "Crafting commands:\nb\n\nGoal: craft x.", True),
        ("textcraft", "Crafting commands:\na\n\nGoal: craft x.", "Crafting commands:\na\n\nGoal: craft y.", False),
        ("maze", "An example: The goal is at 8, 6.\nNow:\nThe goal is at 1, 2. x", "The goal is at 1, 2. x", True),
        ("maze", "An example: The goal is at 8, 6.\nNow:\nThe goal is at 1, 2. x", "The goal is at 8, 6. x", False),
        ("wordle", "the words:\nlight\nnight", "Words: l i g h t, n i g h t.", True),
        ("wordle", "Words: s i g h t.", "Words: l i g h t, n i g h t.", False),
        ("sciworld", "Task: boil\nIn it you see:\na cup\na fork", "Task: boil\nIn it you see:\na fork\na cup", True),
        ("sciworld", "Task: boil\nIn it you see:\na cup", "Task: freeze\nIn it you see:\na cup", False),
    ],
)
def test_what_names_a_task(env: str, recorded: str, shown: str, same: bool) -> None:
    assert get(env).same_task(recorded, shown) is same


@pytest.mark.parametrize("env", ["maze", "textcraft", "wordle", "blocksworld", "pddl"])
def test_first_observations_tell_tasks_apart(env: str) -> None:
    spec = get(env)
    assert spec.simulator is not None
    shown = [spec.simulator().reset(spec.index(task.item_id)).observation for task in spec.tasks("test", 8)]
    assert all(spec.same_task(one, one) for one in shown)
    assert not any(spec.same_task(shown[0], other) for other in shown[1:])


@pytest.mark.parametrize("recorded", [[], ["now 1\nand line two"]])
async def test_only_what_was_recorded_is_compared(recorded: list[str]) -> None:
    assert (await play(Policy(), Counter(), prefix=["one", "two"], recorded=recorded)).stop_reason is StopReason.DONE


async def test_done_at_the_end_of_the_prefix_keeps_the_reward() -> None:
    policy = Policy()
    found = await play(policy, Counter(2), prefix=["one", "two"], recorded=answers(2))
    assert (found.stop_reason, found.reward, found.rounds, policy.conversation.turns) == (StopReason.DONE, 1.0, 0, 0)


async def test_done_within_the_prefix_steps_no_further() -> None:
    session = Counter(1)
    found = await play(Policy(), session, prefix=["one", "two", "three"])
    assert (found.stop_reason, found.reward, found.start_step) == (StopReason.DONE, 1.0, 3)
    assert session.heard == ["one"]


async def test_caps_count_the_whole_conversation() -> None:
    own = await play(Policy(), Counter(100))
    assert (own.stop_reason, own.rounds, own.error) == (StopReason.MAX_ROUNDS, 6, None)
    assert (own.reward, own.progress) == (pytest.approx(0.6), 0.6)
    replayed = await play(Policy(), Counter(100), prefix=["one", "two"], max_rounds=5)
    assert (replayed.stop_reason, replayed.rounds) == (StopReason.MAX_ROUNDS, 3)
    spent = await play(Policy(), Counter(100), prefix=["one", "two"], max_rounds=2)
    assert (spent.stop_reason, spent.rounds) == (StopReason.MAX_ROUNDS, 0)
    last = await play(Policy(), Counter(6))
    assert last.stop_reason is StopReason.DONE


async def test_replies_are_cut_before_a_self_written_observation() -> None:
    session = Counter(1)
    found = await play(Policy(lambda turn: Reply("Action: go\nObservation: you win")), session)
    assert session.heard == ["Action: go"]
    assert found.messages[3].content == "Action: go"


async def test_another_opening_is_put_around_what_the_environment_tells() -> None:
    policy = Policy()
    found = await play(policy, Counter(1), opening=OpeningTemplate("Do count.", "I will.", "To three:\n", "\nNow!"))
    assert [m.content for m in policy.opening] == ["Do count.", "I will.", "To three:\nTask counter_3.\nNow!"]
    assert list(found.messages[:3]) == policy.opening


async def test_a_recorded_opening_is_shown_word_for_word_where_the_task_is_that_one() -> None:
    for recorded, shown in (
        (" Task counter_3. \n", " Task counter_3. \n"),
        ("Count! Task counter_3. Go.", "Count! Task counter_3. Go."),
        ("Task counter_4.", "Task counter_3."),
    ):
        found = await play(Policy(), Counter(1), opening=OpeningTemplate("Do.", "Yes.", recorded=recorded))
        assert [m.content for m in found.messages[:3]] == ["Do.", "Yes.", shown]


async def test_marks_become_gold() -> None:
    def reply(turn: int) -> Reply:
        return Reply("x", category=Category.CRITICAL_ACTION if turn > 1 else None, weight=float(turn))

    found = await play(Policy(reply), Counter(4), prefix=["one"])
    assert found.gold == (GoldStep(3, 2, Category.CRITICAL_ACTION), GoldStep(4, 1, Category.CRITICAL_ACTION))
    assert (await play(Policy(), Counter())).gold is None


def failing(error: Exception, at: int) -> Callable[[int], None]:
    def fail(step: int) -> None:
        if step == at:
            raise error

    return fail


@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("error", [EnvironmentFailure("server gone", "mend it"), TimeoutError("late"), KeyError("id")])
async def test_failures_of_the_environment(error: Exception, at: int) -> None:
    found = await play(Policy(), Counter(fail=failing(error, at)))
    assert found.stop_reason is StopReason.ENV_ERROR
    assert found.error
    assert str(error) in found.error
    assert found.rounds == at
    assert len(found.messages) == (3 + 2 * at - 1 if at else 0)


@pytest.mark.parametrize("error", [ModelFailure("engine gone"), TimeoutError("late"), ZeroDivisionError("oops")])
async def test_failures_of_the_policy(error: Exception) -> None:
    def reply(turn: int) -> Reply:
        failing(error, 2)(turn)
        return Reply("x")

    found = await play(Policy(reply), Counter())
    assert found.stop_reason is StopReason.MODEL_ERROR
    assert found.error
    assert str(error) in found.error
    assert (found.rounds, found.raw_reward) == (1, 10.0)


async def test_a_full_context_is_the_policys_own_outcome() -> None:
    def reply(turn: int) -> Reply:
        failing(ContextOverflow("full"), 3)(turn)
        return Reply("x")

    found = await play(Policy(reply), Counter(5))
    assert (found.stop_reason, found.error, found.reward) == (StopReason.CONTEXT_OVERFLOW, None, pytest.approx(0.2))


class Slow(Policy):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, generate = seconds, self.conversation.generate

        async def slowly(seed: int) -> Reply:
            await asyncio.sleep(self.seconds)
            return await generate(seed)

        self.conversation.generate = slowly  # type: ignore[method-assign]


async def test_limits_of_time() -> None:
    turn = await play(Slow(5.0), Counter(), limits=LimitsConfig(turn_s=0.02))
    assert (turn.stop_reason, turn.error) == (StopReason.MODEL_ERROR, "no answer within 0.02 s")
    whole = await play(Slow(0.05), Counter(100), max_rounds=100, limits=LimitsConfig(episode_s=0.12))
    assert (whole.stop_reason, whole.error) == (StopReason.MODEL_ERROR, "longer than 0.12 s in all")
    assert whole.rounds <= 2


async def test_a_hanging_environment_is_to_blame_for_itself() -> None:
    class Hanging(Counter):
        async def step(self, reply: str) -> StepResult:
            if reply == "say 2":
                await asyncio.Event().wait()
            return await super().step(reply)

    found = await play(Policy(), Hanging(), limits=LimitsConfig(turn_s=0.02))
    assert (found.stop_reason, found.error) == (StopReason.ENV_TIMEOUT, "no answer within 0.02 s")
    assert (found.rounds, found.raw_reward) == (2, 10.0)


async def test_cancellation_passes_through() -> None:
    playing = asyncio.create_task(play(Slow(5.0), Counter()))
    await asyncio.sleep(0.01)
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
