"""Values, the rule of criticality and the rollouts behind them, by hand."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from atlas_ray.config import EngineConfig, EnvironmentsConfig
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.errors import TooManyFailed
from atlas_ray.models.engine import EngineModel
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.budget import record
from atlas_ray.selection.value.estimators import critical, differences, rescore, value_figures, values
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.selection.value.stage import EngineShares, ValueStage, ValueWorker, value_steps
from atlas_ray.types import Episode, Message, StopReason, ToolCall, Trajectory, Usage
from tests.support.selecting import context_of
from tests.support.values import FakePool, estimate_values

REWARDS = [
    [0.0, 0.0, 0.0, 1.0, 0.0],  # from scratch: 0.2
    [0.0, 1.0, 0.0, 0.0, 0.0],  # after step 1: 0.2
    [1.0, 1.0, 1.0, 0.0, 0.0],  # after step 2: 0.6
    [1.0, 1.0, 1.0, 0.5, 0.0],  # after step 3: 0.7
    [1.0],  # the recorded reward
]


def test_values_and_critical_steps_by_hand() -> None:
    q = values(REWARDS)
    assert q == pytest.approx([0.2, 0.2, 0.6, 0.7, 1.0])
    assert differences(q) == (0.0, 0.4, 0.1, 0.3)
    assert critical(q, 0.1) == (2, 4)  # 0.7 - 0.6 equals the threshold: not critical
    assert critical(q, 0.1, ratio=0.3) == (2,)
    assert critical(q, 0.4) == ()
    assert critical(q, -0.1) == (1, 2, 3, 4)


@pytest.mark.parametrize(("before", "after"), [(0.2, 0.3), (0.1, 0.2), (0.7, 0.8), (0.8, 0.9)])
def test_a_difference_equal_to_the_threshold_is_not_critical(before: float, after: float) -> None:
    assert critical([before, after], 0.1) == ()
    assert critical([before, after + 0.001], 0.1) == (1,)


def test_table_4s_values_by_hand() -> None:
    """Five rollouts a start, gamma 0.99 (App. B.3): a reward counts the less, the more rounds it took to get it."""
    rewards = [[0.0] * 5, [1.0, 0.0, 0.0, 0.0, 0.0], [1.0] * 5, [1.0] * 5, [1.0]]
    rounds = [[10] * 5, [4, 9, 9, 9, 9], [2, 2, 2, 2, 4], [1] * 5, [0]]
    q = values(rewards, "discounted", 0.99, rounds)
    # 0.99^4 / 5; (4 x 0.99^2 + 0.99^4) / 5; 0.99; the recorded reward
    assert q == pytest.approx([0.0, 0.19211920, 0.97619920, 0.99, 1.0])
    assert differences(q) == pytest.approx((0.19211920, 0.78408, 0.0138008, 0.01))
    assert critical(q, threshold=0.1) == (1, 2)
    # with a threshold of 0.195 gamma decides: 1/5 exceeds it, 0.99^4/5 does not
    assert critical(values(rewards), threshold=0.195) == (1, 2)
    assert critical(q, threshold=0.195) == (2,)


def test_discounted_multiplies_by_the_rounds_still_taken() -> None:
    q = values([[1.0, 0.0], [1.0, 0.5], [1.0]], "discounted", 0.9, [[3, 9], [1, 2], [0]])
    assert q == pytest.approx([0.9**3 / 2, (0.9 + 0.5 * 0.81) / 2, 1.0])
    with pytest.raises(ValueError, match="rounds"):
        values([[1.0], [1.0]], "discounted")


def test_eq9_is_the_literal_sum_and_decreases_along_a_success() -> None:
    q = values([[0.5], [0.5], [1.0]], "eq9", 0.9)
    assert q == pytest.approx([0.5 + 0.9 * 0.5 + 0.81 * 1.0, 0.5 + 0.9 * 1.0, 1.0])
    assert critical(q, 0.1) == ()


def test_a_start_without_rewards_has_no_value() -> None:
    with pytest.raises(ValueError, match="no value"):
        values([[1.0], [], [1.0]])


def expert(n_steps: int, number: int = 0, reward: float | None = 1.0) -> Trajectory:
    turns = [Message("user", "Find the way."), Message("assistant", "OK"), Message("user", "at 0")]
    for t in range(1, n_steps + 1):
        turns += [Message("assistant", f"Action: {t}", True), Message("user", f"at {t}")]
    return Trajectory(f"maze/maze_{number}", "maze", f"maze_{number}", tuple(turns), reward)


def played(request: EpisodeRequest, reward: float, stop: StopReason = StopReason.DONE) -> Episode:
    start, rounds = len(request.prefix), 2 if request.max_rounds is None else 0
    name = f"{request.task.id}@{request.sample}+{start}"
    marks = ("base", request.sample, start, request.seed, (), reward, reward, reward == 1, reward, rounds, stop)
    error = "server gone" if stop.is_infrastructure else None
    return Episode(name, request.task.env, request.task.item_id, *marks, usage=Usage(10, 0, 5, 2), error=error)


def solved_from(step: int) -> Callable[[EpisodeRequest], Episode]:
    """Sample 0 always succeeds; the others do once `step` steps are given."""
    return lambda r: played(r, 1.0 if r.sample == 0 or len(r.prefix) >= step else 0.0)


def test_rollouts_start_after_every_step_but_the_last() -> None:
    pool = FakePool(solved_from(2))
    (found,) = estimate_values(pool, ValueSelector(model="m", rollouts=3), [expert(4)], seed=1)
    assert Counter(len(r.prefix) for r in pool.requests) == {0: 3, 1: 3, 2: 3, 3: 3}
    third = next(r for r in pool.requests if len(r.prefix) == 2)
    assert [reply.content for reply in third.prefix] == ["Action: 1", "Action: 2"]
    assert third.recorded == ("at 1", "at 2")
    assert third.opening == OpeningTemplate("Find the way.", "OK", recorded="at 0")
    assert third.group == "maze/maze_0"
    assert {r.first_observation for r in pool.requests} == {"at 0"}
    assert (third.sampling.temperature, third.sampling.max_tokens) == (1.0, 512)
    assert len({r.seed for r in pool.requests}) == 12
    assert found.rewards == ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0,))
    assert found.scores == pytest.approx((0.0, 2 / 3, 0.0, 0.0))
    assert (found.chosen, found.ratio, found.model, found.error) == ((2,), None, "m", None)
    assert found.usage == Usage(120, 0, 60, 24)


def test_figures_say_which_prompt_tokens_the_prefix_cache_held() -> None:
    pool = FakePool(lambda r: replace(played(r, 1.0), usage=Usage(100, 75 if r.sample else 0, 5, 2)))
    config = ValueSelector(model="m", rollouts=2)
    figures = value_figures(estimate_values(pool, config, [expert(3), expert(2, 1)], seed=1), config)
    assert (figures["prefix_cache_queries"], figures["prefix_cache_hits"]) == (1000, 375)
    assert figures["prefix_cache_hit_rate"] == 0.375


def test_of_proposed_steps_alone_rollouts_start_around_them_and_none_other_is_chosen() -> None:
    trajectory, config = expert(6), ValueSelector(model="m", rollouts=2, propose="cheap")
    asked: list[int] = []

    async def play(request: EpisodeRequest) -> Episode:
        asked.append(len(request.prefix))
        return solved_from(3)(request)

    proposed = {trajectory.id: record(trajectory, config, (3, 6))}
    selection = asyncio.run(value_steps(trajectory, play, config, 0, proposed=proposed))
    assert sorted(asked) == [2, 2, 3, 3, 5, 5]
    assert (selection.chosen, selection.scores) == ((3,), (0, 0, 0.5, 0, 0, 0))
    assert [len(rewards) for rewards in selection.rewards] == [0, 0, 2, 2, 0, 2, 1]
    assert rescore(selection, config) == selection
    nothing = asyncio.run(value_steps(trajectory, play, config, 0, proposed={}))
    assert nothing.error == "nothing is proposed: cheap holds no such trajectory"


def test_the_order_in_which_rollouts_finish_changes_nothing() -> None:
    data = [expert(1 + i % 5, i) for i in range(90)]

    def play(request: EpisodeRequest) -> Episode:
        return played(request, request.seed % 5 / 4)

    runs = []
    for seed in (0, 1):
        pool = FakePool(play, seed)
        found = list(estimate_values(pool, ValueSelector(rollouts=2), data, seed=3))
        assert len(pool.requests) == sum(2 * len(t.steps) for t in data)
        runs.append(sorted(found, key=lambda s: s.id))
    assert runs[0] == runs[1]
    assert len(runs[0]) == 90


def test_infrastructure_failures_are_left_out_and_counted() -> None:
    def play(request: EpisodeRequest) -> Episode:
        if len(request.prefix) == 1 and (request.sample < 2 or request.task.item_id == "maze_1"):
            return played(request, 0.0, StopReason.ENV_ERROR)
        return played(request, 0.5)

    found = {s.item_id: s for s in estimate_values(FakePool(play), ValueSelector(), [expert(2), expert(2, 1)], 0)}
    assert found["maze_0"].rewards == ((0.5,) * 5, (0.5,) * 3, (1.0,))
    assert (found["maze_0"].chosen, found["maze_0"].reason) == ((2,), "rollouts left out: 2 env_error")
    assert found["maze_1"].error == "no rollout: none after step 1 was valid (5 env_error; server gone)"
    assert found["maze_1"].chosen == ()


def test_a_missing_reward_is_had_by_replaying_the_expert() -> None:
    pool = FakePool(lambda r: played(r, 0.8 if r.max_rounds == 3 and len(r.prefix) == 3 else 0.2))
    (found,) = estimate_values(pool, ValueSelector(rollouts=1), [expert(3, reward=None)], seed=0)
    assert found.rewards == ((0.2,), (0.2,), (0.2,), (0.8,))
    assert found.chosen == (3,)


def test_a_trajectory_without_critical_steps_is_an_empty_choice() -> None:
    (found,) = estimate_values(FakePool(lambda r: played(r, 1.0)), ValueSelector(), [expert(3)], seed=0)
    assert (found.chosen, found.error, found.scores) == ((), None, (0.0, 0.0, 0.0))


def test_discounting_prefers_fewer_rounds_but_keeps_plain_rewards() -> None:
    selector = ValueSelector(rollouts=1, estimator="discounted", gamma=0.5)
    (found,) = estimate_values(FakePool(lambda r: played(r, 1.0)), selector, [expert(2)], seed=0)
    assert found.rewards == ((1.0,), (1.0,), (1.0,))
    assert found.scores == (0.0, 0.75)
    assert found.chosen == (2,)


def test_workers_find_what_the_command_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    environments = EnvironmentsConfig(agentboard={"pddl": "games"})
    context = replace(context_of([expert(4, 0)]), environments=environments)
    selector, given, _ = ValueStage(ValueSelector(model="model"), context)._given
    assert (selector.model, given.agentboard) == (str(tmp_path / "model"), {"pddl": str(tmp_path / "games")})


async def test_rollouts_that_are_of_no_use_many_times_in_a_row_end_the_run() -> None:
    async def play(request: EpisodeRequest) -> Episode:
        return request.episode("m", StopReason.MODEL_ERROR, "the engine is lost")

    spec = EngineModel(path="m").spec("base", EngineConfig())
    worker = ValueWorker(None, spec, ValueSelector(model="m", rollouts=1), EnvironmentsConfig(), 0)
    worker._engines = SimpleNamespace(result=play)  # type: ignore[assignment]
    for i in range(31):
        (failed,) = SELECTIONS.from_table(await worker(TRAJECTORIES.to_table([expert(2, i)])))
        assert "the engine is lost" in (failed.error or "")
    with pytest.raises(
        TooManyFailed, match=r"32 selections in a row failed; the first: no rollout: .*the engine is lost"
    ):
        await worker(TRAJECTORIES.to_table([expert(2, 31)]))


def test_the_actor_that_shares_engines_out_sums_up_what_all_have_written_last() -> None:
    shares = EngineShares([1, 1])
    assert shares.usage() == Usage()
    shares.wrote("a", Usage(completion_tokens=20, calls=1))
    shares.wrote("b", Usage(completion_tokens=7, calls=1))
    shares.wrote("a", Usage(completion_tokens=50, calls=3))
    assert shares.usage() == Usage(completion_tokens=57, calls=4)


def test_a_trajectory_of_tool_calls_is_not_played() -> None:
    turns = (Message("user", "go"), Message("assistant", "", True, calls=(ToolCall("look"),)))
    never = FakePool(lambda request: pytest.fail("it was played"))
    (found,) = estimate_values(never, ValueSelector(), [Trajectory("maze/1", "maze", "1", turns)], seed=0)
    assert found.error == "maze/1 calls tools, and maze offers none"
