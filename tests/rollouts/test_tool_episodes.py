"""Episodes that are played by calls of tools: what is called, what comes back, and what is played again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from atlas_ray.environments import registry
from atlas_ray.environments.local import LocalSession
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.environments.protocol import EnvironmentSpec, Opening, StepResult
from atlas_ray.environments.tool_session import NO_CALL, NOT_CALLED
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.guided import GivenTurn
from atlas_ray.rollouts.scripted import ScriptedPolicy
from atlas_ray.selection.value.settings import ValueSettings
from atlas_ray.selection.value.stage import value_steps
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Episode, Message, StopReason, Task, ToolCall, Trajectory

DATE, CITY = ToolCall("get_user_current_date", "{}", "a"), ToolCall("get_user_current_location", "{}", "b")
DONE = ToolCall("finish", '{"answer": "done"}', "c")
WEATHER = registry.get("weather")
OPENING = OpeningTemplate.of_tools(WEATHER)
TASK = Task("weather", "weather_0")


class Calls:
    """A policy that gives replies in turn, the last one again and again; it notes what it is opened and told with."""

    name = "calls"

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.sampling: Sampling | None = None
        self.told: list[Message] = []

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Calls:
        self.sampling, self.told = sampling, list(opening)
        return self

    async def generate(self, seed: int) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def append(self, message: Message) -> None:
        self.told.append(message)


async def play(policy: Any, **given: Any) -> Episode:
    fields = {"task": TASK, "sampling": Sampling(), "seed": 0, "opening": OPENING, **given}
    return await run_episode(policy, LocalSession(registry.get(fields["task"].env)), EpisodeRequest(**fields))


async def test_calls_of_one_reply_are_played_in_order_each_with_its_result() -> None:
    policy = Calls(Reply("", thought="Both.", calls=(DATE, CITY)), Reply("", calls=(DONE,)))
    found = await play(policy)
    assert policy.sampling is not None
    assert policy.sampling.tools == OPENING.tools
    *_, asked, date, city, last, end = found.messages
    assert (asked.thought, asked.calls, asked.trainable) == ("Both.", (DATE, CITY), True)
    assert [(m.role, m.call_id) for m in (date, city, end)] == [("tool", "a"), ("tool", "b"), ("tool", "c")]
    assert date.content[:2] == "20"
    assert city.content.istitle()
    assert last.calls == (DONE,)
    assert (found.rounds, found.stop_reason, end.content) == (2, StopReason.DONE, "done")
    assert policy.told[-2:] == [date, city]  # the end of the task is told to nobody


async def test_what_is_called_after_the_end_is_not_played() -> None:
    found = await play(Calls(Reply("", calls=(DONE, DATE))))
    assert [m.content for m in found.messages[-2:]] == ["done", NOT_CALLED]
    assert found.rounds == 1


async def test_a_reply_that_calls_nothing_is_told_so_and_counts() -> None:
    found = await play(Calls(Reply("Thought: I know.\nAction: finish with Action Input: {}"), Reply("", calls=(DONE,))))
    assert found.messages[3] == Message("user", NO_CALL)
    assert (found.rounds, found.stop_reason) == (2, StopReason.DONE)


async def test_calls_in_an_episode_of_text_are_no_actions() -> None:
    found = await play(Calls(Reply("", calls=(DONE,))), opening=None, max_rounds=2)
    assert (found.stop_reason, found.raw_reward) == (StopReason.MAX_ROUNDS, 0.0)


async def test_an_environment_without_tools_is_to_blame() -> None:
    found = await play(Calls(Reply("")), task=Task("maze", "maze_0"))
    assert (found.stop_reason, found.error) == (StopReason.ENV_ERROR, "maze offers no tools to call")


async def expert(env: str, number: int) -> Trajectory:
    spec = registry.get(env)
    opening = OpeningTemplate.of_tools(spec)
    found = await play(ScriptedPolicy("expert", 0), task=Task(env, f"{env}_{number}"), opening=opening)
    assert found.success
    return to_trajectory(found)


@pytest.mark.parametrize("env", ["weather", "movie", "todo", "academia", "sheet"])
async def test_the_expert_solves_by_calls_what_it_solves_by_text(env: str) -> None:
    spec = registry.get(env)
    for task in spec.tasks("test", 5):
        text = await play(ScriptedPolicy("expert", 0), task=task, opening=None)
        calls = await play(ScriptedPolicy("expert", 0), task=task, opening=OpeningTemplate.of_tools(spec))
        assert calls.success
        assert (calls.reward, calls.rounds, calls.gold) == (text.reward, text.rounds, text.gold)
        by_text, by_calls = (
            [m.content for m in found.messages if m.role in ("user", "tool")][1:] for found in (text, calls)
        )
        assert by_calls[-text.rounds :] == [spec.tools.result(told) for told in by_text[-text.rounds :]]  # type: ignore[union-attr]


async def test_a_trajectory_of_calls_opens_as_it_was_recorded_and_is_played_again() -> None:
    found = await expert("weather", 3)
    assert found.calls_tools
    opening = Opening.recorded(found)
    assert opening is not None
    assert opening.tools == OPENING.tools
    own = Calls(Reply("", calls=(DONE,)))
    replayed = await play(
        own,
        task=found.task,
        prefix=found.replies[:2],
        recorded=found.answers[:2],
        opening=OpeningTemplate.verbatim(opening),
        first_observation=opening.observation,
    )
    assert replayed.replay == "exact"
    assert replayed.messages[: len(own.told)] == found.messages[: len(own.told)]
    assert (replayed.rounds, replayed.start_step) == (1, 2)
    differing = await play(
        own, task=Task("weather", "weather_4"), prefix=found.replies[:2], first_observation=opening.observation
    )
    assert differing.stop_reason is StopReason.REPLAY_MISMATCH


async def test_given_turns_are_calls_too() -> None:
    found = await expert("weather", 3)
    steps = found.steps
    given = tuple(GivenTurn(step.observation, step.message) for step in steps)
    opening = Opening.recorded(found)
    assert opening is not None
    played = await play(
        Calls(Reply("never asked")), task=found.task, given=given, opening=OpeningTemplate.verbatim(opening)
    )
    assert played.success
    assert played.messages == found.messages


@pytest.mark.parametrize("mode", ["exhaustive", "economical"])
async def test_values_of_a_trajectory_of_calls(mode: str) -> None:
    """The expert's own rollouts rejoin it wherever arguments are the same, however they are written."""
    found = await expert("weather", 3)
    asked: list[EpisodeRequest] = []

    class Respelt(ScriptedPolicy):
        """Writes arguments in another way."""

        def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Any:
            inner = super().open(task, opening, sampling)
            generate = inner.generate

            async def respelt(seed: int) -> Reply:
                reply = await generate(seed)
                calls = [replace(c, arguments=json.dumps(json.loads(c.arguments), indent=1)) for c in reply.calls]
                return replace(reply, calls=tuple(calls))

            inner.generate = respelt  # type: ignore[method-assign]
            return inner

    async def rollout(request: EpisodeRequest) -> Episode:
        asked.append(request)
        return await run_episode(Respelt("expert", 0), LocalSession(WEATHER), request)

    selector = ValueSettings.model_validate({"rollouts": 2, "mode": mode})
    selection = await value_steps(found, rollout, selector, 0)
    assert selection.error is None
    assert all(request.opening and request.opening.tools == OPENING.tools for request in asked)
    if mode == "economical":
        assert sum(selection.rejoined) > len(found.steps)  # the expert errs at times
    else:
        assert selection.chosen == ()  # who plays as the expert does learns nothing from its steps
    elsewhere = await value_steps(replace(found, env="maze"), rollout, selector, 0)
    assert elsewhere.error == f"{found.id} calls tools, and maze offers none"


class Telling:
    """A session that tells its tools and takes calls as they are; a reply without any ends it."""

    spec = EnvironmentSpec("telling", "out", 5, "reward", "whole", tells_tools=True)

    def __init__(self) -> None:
        self.taken: list[Message | str] = []

    async def reset(self, task: Task) -> Opening:
        return Opening("Write.", "A task.")

    async def step(self, reply: str) -> StepResult:
        self.taken.append(reply)
        return StepResult("Read.", 0.0, True)

    async def reset_for_calls(self, task: Task) -> Opening:
        return Opening("Call.", "A task.", "", '["a tool"]')

    async def call(self, reply: Message) -> StepResult:
        self.taken.append(reply)
        turns = tuple(Message("tool", call.name.upper(), call_id=call.id) for call in reply.calls)
        return StepResult("", 1.0, not turns, turns=turns)

    async def close(self) -> None: ...


async def told(policy: Any, session: Telling, **given: Any) -> Episode:
    fields = {"task": Task("telling", "telling_0"), "sampling": Sampling(), "seed": 0} | given
    return await run_episode(policy, session, EpisodeRequest(**fields))


async def test_a_session_that_tells_its_tools_takes_calls_as_they_are_and_an_answer_without_any() -> None:
    session, opening = Telling(), OpeningTemplate.of_tools(Telling.spec)
    policy = Calls(Reply("", thought="Both.", calls=(DATE, CITY)), Reply("It is done."))
    found = await told(policy, session, opening=opening)
    assert (found.stop_reason, found.reward, found.rounds) == (StopReason.DONE, 1.0, 2)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert [(m.content, m.call_id) for m in found.messages[3:5]] == [(DATE.name.upper(), "a"), (CITY.name.upper(), "b")]
    assert session.taken == [found.messages[2], found.messages[5]]
    assert policy.sampling is not None
    assert policy.sampling.tools == found.tools == to_trajectory(found).tools == '["a tool"]'


async def test_the_same_session_is_played_by_text_where_nothing_else_is_asked_for() -> None:
    session, policy = Telling(), Calls(Reply("Some text."))
    found = await told(policy, session)
    assert (session.taken, found.messages[-1].content, found.tools) == (["Some text."], "Read.", None)
    assert policy.sampling == Sampling()


async def test_its_trajectory_is_played_again_by_its_recorded_calls() -> None:
    once = await told(
        Calls(Reply("", calls=(DATE,)), Reply("It is done.")), Telling(), opening=OpeningTemplate.of_tools(Telling.spec)
    )
    recorded = to_trajectory(once)
    opening = Opening.recorded(recorded)
    assert opening is not None
    again = await told(
        Calls(Reply("never asked")),
        Telling(),
        prefix=recorded.replies,
        recorded=recorded.answers,
        opening=OpeningTemplate.verbatim(opening),
        first_observation=opening.observation,
    )
    assert (again.messages, again.replay, again.stop_reason) == (once.messages, "exact", StopReason.DONE)
