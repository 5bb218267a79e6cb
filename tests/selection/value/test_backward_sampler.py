"""The economical mode: posteriors by hand, what each device saves, rounds that depend on the trajectory alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.errors import UserError
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.runs.seeds import derive_seed
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.value.backward_sampler import BackwardSampler, Evidence, posteriors, saved
from atlas_ray.selection.value.estimators import rescore, value_figures
from atlas_ray.selection.value.selector import ValueSelector
from atlas_ray.selection.value.settings import Economy
from atlas_ray.types import Episode, Message, Selection, StopReason, Trajectory, Usage
from tests.selection.value.test_value import expert
from tests.support.values import FakePool, estimate_values


def test_a_difference_by_hand() -> None:
    # p ~ Beta(0.5 + 3, 0.5 + 1): mean 0.7; d: (0 + 2 x 0.3) / 3 = 0.2; q_1 = 1: D = 0.3 x 0.8, q_0 = 0.7 + 0.3 x 0.2
    two = [Evidence(4, 4, (), ()), Evidence(4, 3, (0.0,), (2,))]
    first, second = posteriors(two, 1.0, 1.0, share=True)
    assert second.mean == pytest.approx(0.24)
    assert (second.value, second.leaves) == (1.0, pytest.approx(0.3))
    assert first.value == pytest.approx(0.76)
    # variance of (1 - p)(1 - d): both moments by hand
    m2, e2 = 1.5 * 2.5 / (5 * 6), 1 - 0.4 + 0.04 + 0.16 / 4
    assert second.deviation == pytest.approx((m2 * e2 - 0.24**2) ** 0.5)


def test_without_sharing_the_means_of_both_starts_are_compared() -> None:
    many = [Evidence(100, 0, (0.0, 1.0) * 50, (1,) * 100), Evidence(100, 0, (1.0,) * 100, (1,) * 100)]
    found = posteriors(many, 1.0, 1.0, share=False)
    assert [b.mean for b in found] == pytest.approx([0.49, 0.014], abs=0.01)


def test_discounting_counts_the_turn_that_rejoins() -> None:
    (sure,) = posteriors([Evidence(10**6, 10**6, (), ())], 1.0, 0.9, share=True)
    assert sure.mean == pytest.approx(0.1, abs=1e-4)


def test_what_became_of_the_exhaustive_rollouts() -> None:
    assert saved([5, 6, 5, 0], [5, 2, 0, 0], [0, 1, 2, 0], 5) == {
        "rollouts_exhaustive": 20,
        "rollouts_played": 3,
        "saved_by_share": 7,
        "saved_by_stop": 5,
        "saved_by_skip": 5,
    }


def climb(economy: Economy, alike: Callable[[int], bool], reward: float = 1.0, steps: int = 9) -> BackwardSampler:
    """A policy that takes step t as the expert does where `alike(t)`, and fails where it does not."""
    sampler = BackwardSampler(steps, reward, 0.1, 5, economy)
    while asks := sampler.plan():
        for ask in random.Random(len(asks)).sample(asks, len(asks)):
            if ask.rest is None and economy.share:
                sampler.probed(ask, alike(ask.start + 1), Message("assistant", "Action: x"), "no")
            else:
                sampler.played(ask, 0.0, 3)
    return sampler


def counts(sampler: BackwardSampler) -> list[tuple[int, int]]:
    return [(step.probed, len(step.played)) for step in sampler.steps]


def test_what_the_policy_does_by_itself_is_probed_and_no_more() -> None:
    assert counts(climb(Economy(probes=4), lambda t: True)) == [(4, 0)] * 9
    assert all(b.score < 0.1 for b in climb(Economy(probes=5), lambda t: True).posteriors())


def test_a_step_that_only_the_expert_takes_is_found() -> None:
    sampler = climb(Economy(), lambda t: t != 7)
    assert [t for t, b in enumerate(sampler.posteriors(), 1) if b.score > 0.1] == [7]
    assert counts(sampler)[6:] == [(6, 1), (6, 0), (6, 0)]


def test_starts_from_where_nothing_is_won_any_more_are_skipped() -> None:
    def alike(t: int) -> bool:
        return t < 7

    # steps 9..6 are looked at together; none before them can have raised a value that is still low there
    assert [n for n, _ in counts(climb(Economy(), alike))] == [0] * 5 + [6] * 4
    assert [n for n, _ in counts(climb(Economy(skip=False), alike))] == [6] * 9


def test_without_stopping_every_start_gets_all_its_rollouts() -> None:
    assert counts(climb(Economy(stop=False, skip=False), lambda t: t != 7)) == [(5, 0)] * 6 + [(5, 5)] + [(5, 0)] * 2
    alone = climb(Economy(stop=False, skip=False, share=False), lambda t: True)
    assert counts(alone) == [(5, 5)] * 9


def test_a_trajectory_that_won_nothing_is_not_played_at_all() -> None:
    assert counts(climb(Economy(), lambda t: True, reward=0.0)) == [(0, 0)] * 9


def turns(request: EpisodeRequest, chance: float) -> Episode:
    """Does as the expert does with a chance at every step, walks off and fails otherwise; the expert needs 6 steps."""
    start, cap = len(request.prefix), request.max_rounds or 15
    lost = any(reply.content == "Action: lost" for reply in request.prefix)
    said: list[Message] = []
    rng, at = random.Random(request.seed), start
    while at < cap and not (at == 6 and not lost):
        lost = lost or rng.random() > chance
        at += 1
        said += [
            Message("assistant", "Action: lost" if lost else f"Thought: mine\nAction: {at}", True),
            Message("user", "lost" if lost else f"at {at}"),
        ]
    won = at == 6 and not lost
    stop = StopReason.DONE if won else StopReason.MAX_ROUNDS
    name = f"{request.task.id}@{request.sample}+{start}"
    marks = (request.seed, tuple(said), float(won), float(won), won, float(won), at - start, stop)
    return Episode(
        name, request.task.env, request.task.item_id, "base", request.sample, start, *marks, Usage(0, 0, 10 * len(said))
    )


def economical(**given: object) -> ValueSelector:
    return validate(ValueSelector, {"mode": "economical", "model": "m", **given})


def test_the_order_in_which_episodes_finish_changes_nothing() -> None:
    data = [expert(6, i) for i in range(50)]
    runs = []
    for seed in (0, 1):
        pool = FakePool(lambda r: turns(r, 0.7), seed)
        found = estimate_values(pool, economical(), data, seed=3)
        runs.append(sorted(found, key=lambda s: s.id))
        assert len({(r.group, r.seed) for r in pool.requests}) == len(pool.requests)
    assert runs[0] == runs[1]
    alone = [estimate_values(FakePool(lambda r: turns(r, 0.7)), economical(), [t], seed=3)[0] for t in data]
    assert sorted(alone, key=lambda s: s.id) == runs[0]


def test_a_probe_is_one_turn_and_its_rest_begins_with_that_turn() -> None:
    pool = FakePool(lambda r: turns(r, 0.3))
    (found,) = estimate_values(pool, economical(), [expert(6)], seed=0)
    probes = [r for r in pool.requests if r.max_rounds is not None]
    rests = [r for r in pool.requests if r.max_rounds is None]
    assert all(r.max_rounds == len(r.prefix) + 1 for r in probes)
    assert rests
    assert all(r.prefix[-1].content == "Action: lost" and r.recorded[-1] == "lost" for r in rests)
    probe = next(r for r in probes if len(r.prefix) == 5)
    assert probe.seed == derive_seed(0, "value", found.id, 5, probe.sample)  # as the exhaustive mode's
    assert sum(len(r) for r in found.rewards[:-1]) == len(rests)
    assert sum(found.probed) == len(probes)
    assert found.rounds[-1] == (0,)


def test_whose_words_count_is_a_choice() -> None:
    for rejoin, share in (("action", True), ("text", False)):
        pool = FakePool(lambda r: turns(r, 1.0))
        (found,) = estimate_values(pool, economical(economy={"rejoin": rejoin}), [expert(6)], seed=0)
        assert (sum(found.rejoined) > 0) is share


def test_an_answer_within_a_runs_tolerance_is_the_experts() -> None:
    def a_little_otherwise(request: EpisodeRequest) -> Episode:
        played = turns(request, 1.0)
        told = (replace(m, content=m.content + " now" * (m.role == "user")) for m in played.messages)
        return replace(played, messages=tuple(told))

    for tolerance, share in (({"maze": 0.4}, True), ({"maze": 0.2}, False), ({}, False)):
        run = EnvironmentsConfig(replay_tolerance=tolerance)
        selector = economical(economy={"rejoin": "action"})
        (found,) = estimate_values(FakePool(a_little_otherwise), selector, [expert(6)], seed=0, environments=run)
        assert (sum(found.rejoined[:-1]) > 0) is share


def test_a_selection_survives_the_disk_and_is_read_again_under_other_settings() -> None:
    selector = economical()
    (found,) = estimate_values(FakePool(lambda r: turns(r, 0.6)), selector, [expert(6)], seed=1)
    assert SELECTIONS.from_table(SELECTIONS.to_table([found])) == [found]
    assert rescore(found, selector) == found
    high = rescore(found, economical(threshold=0.9))
    assert (high.scores, high.chosen) == (found.scores, ())
    assert rescore(found, economical(estimator="discounted", gamma=0.5)).scores != found.scores
    with pytest.raises(UserError, match="exhaustive"):
        economical(estimator="eq9")


def test_exhaustive_rewards_and_rounds_suffice_for_every_estimator() -> None:
    plain = ValueSelector(rollouts=3, model="m")
    (found,) = estimate_values(FakePool(lambda r: turns(r, 0.8)), plain, [expert(6)], seed=1)
    for settings in ({"estimator": "discounted", "gamma": 0.9}, {"estimator": "eq9"}, {"threshold": 0.4, "ratio": 0.3}):
        other = validate(ValueSelector, plain.model_dump() | settings)
        (played,) = estimate_values(FakePool(lambda r: turns(r, 0.8)), other, [expert(6)], seed=1)
        assert rescore(found, other) == played


def test_failures_are_counted_by_environment_and_savings_add_up() -> None:
    def play(request: EpisodeRequest) -> Episode:
        episode = turns(request, 0.6)
        bad = request.sample == 1 and request.max_rounds is not None
        return replace(episode, stop_reason=StopReason.REPLAY_MISMATCH, error="other") if bad else episode

    data: list[Trajectory] = [expert(6, i) for i in range(8)]
    found: list[Selection] = list(estimate_values(FakePool(play), economical(), data, seed=0))
    figures = value_figures(found, economical())
    assert figures["excluded"] == {"maze": {"replay_mismatch": sum(s.excluded["replay_mismatch"] for s in found)}}
    assert (
        figures["rollouts_exhaustive"]
        == 8 * 6 * 5
        == figures["rollouts_played"] + sum(figures[f"saved_by_{device}"] for device in ("share", "stop", "skip"))
    )
    gone = FakePool(lambda r: replace(turns(r, 0.6), stop_reason=StopReason.ENV_ERROR, error="gone"))
    (lost,) = estimate_values(gone, economical(), [expert(6)], seed=0)
    assert lost.error is not None
    assert "gone" in lost.error
    assert lost.chosen == ()


def test_a_missing_reward_is_replayed_first() -> None:
    pool = FakePool(lambda r: turns(r, 0.6))
    data = replace(expert(6), reward=None)
    (found,) = estimate_values(pool, economical(), [data], seed=0)
    assert (len(pool.requests[0].prefix), pool.requests[0].max_rounds) == (6, 6)
    assert found.rewards[-1] == (1.0,)
