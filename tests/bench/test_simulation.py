"""The simulator against arithmetic that can be done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.simulation import Cluster, Costs, Load, rollouts, training

FREE = Costs(0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, start=0.0, driver=0.0)  # 10 ms a token, nothing else
EVEN = Load(64, turns=10, reply=50, observation=0, opening=0, spread=0)
ONE = Cluster(1, in_flight=64, sequences=64)


def test_sequences_at_once_cost_nothing_where_a_step_is_fixed() -> None:
    """64 episodes of 10 turns of 50 tokens, 10 ms each, all together: 5 s."""
    found = rollouts(FREE, EVEN, ONE)
    assert found.seconds == pytest.approx(5.0)
    assert found.turns_per_second == pytest.approx(640 / 5.0)
    assert (found.busy["engine"], found.limit) == (pytest.approx(1.0), "engine")


def test_what_does_not_fit_into_the_batch_waits() -> None:
    assert rollouts(FREE, EVEN, replace(ONE, sequences=16)).seconds == pytest.approx(4 * 5.0)


def test_a_sequence_more_makes_every_step_longer() -> None:
    """A step takes 10 ms + 64 x 1 ms."""
    assert rollouts(replace(FREE, step_each=0.001), EVEN, ONE).seconds == pytest.approx(500 * 0.074)


def test_reading_holds_everybody_up() -> None:
    """64 prompts of 100 tokens at 1 ms each: 6.4 s before the first token."""
    load = replace(EVEN, opening=100)
    assert rollouts(replace(FREE, prefill=0.001), load, ONE).seconds == pytest.approx(5.0 + 6.4)


def test_an_environment_adds_its_latency_to_every_turn() -> None:
    found = rollouts(replace(FREE, environment=0.5), EVEN, ONE)
    assert found.seconds == pytest.approx(10 * (0.5 + 0.5))
    assert found.limit == "tail"  # the engine idles half the time, and no other episode is there to fill it


@pytest.mark.parametrize(
    ("cost", "limit", "rate"),
    [
        ({"environment_cpu": 0.1}, "servers", 16 / 0.1),
        ({"driver": 0.1}, "driver", 10 / 0.1),
        ({"coordinator": 0.1}, "coordinator", 4 * 10 / 0.1),
        ({"write": 0.1}, "storage", 10 / 0.1),
    ],
)
def test_what_all_share_limits_many_engines(cost: dict[str, float], limit: str, rate: float) -> None:
    """Turns a second: 16 cores at 0.1 s a turn; ten turns an episode of 0.1 s of the driver, the storage, or one
    of four coordinators.
    """
    found = rollouts(replace(FREE, **cost), replace(EVEN, episodes=100_000), Cluster(128, server_cores=16))
    assert found.limit == limit
    assert found.turns_per_second == pytest.approx(rate, rel=0.05)


@pytest.mark.parametrize("engines", [2, 10])
def test_engines_that_share_nothing_scale(engines: int) -> None:
    load = replace(EVEN, episodes=100_000, spread=0.5)
    one, many = (rollouts(FREE, load, Cluster(n, in_flight=64, sequences=64, server_cores=0)) for n in (1, engines))
    assert many.turns_per_second / one.turns_per_second == pytest.approx(engines, rel=0.02)
    assert many.dollars == pytest.approx(one.dollars, rel=0.1)


def test_the_rate_is_carried_on_as_if_all_had_been_simulated() -> None:
    """Simulated in full: 4 waves; carried on to 40 waves."""
    load = replace(EVEN, spread=0.5)
    few, many = (rollouts(FREE, replace(load, episodes=n), ONE) for n in (256, 2560))
    assert few.seconds * 8 < many.seconds < few.seconds * 10.5


def test_loading_the_engines_limits_a_short_run() -> None:
    found = rollouts(replace(FREE, start=60.0, environment=0.5), EVEN, ONE)
    assert (found.seconds, found.limit) == (pytest.approx(70.0), "start")


def test_training_takes_six_operations_a_parameter_and_token() -> None:
    found = training(1e9, 4, parameters=1e9, flops=1e14, mfu=0.5, batch_tokens=1e6, sequence_tokens=1000)
    assert found.seconds == pytest.approx(6 * 1e9 * 1e9 / (4 * 0.5e14))
    assert found.limit == "GPUs"


def test_training_is_limited_by_the_weights_that_travel_and_by_the_batch() -> None:
    wide = training(1e9, 64, parameters=8e9, batch_tokens=128_000, bandwidth=25e9)
    assert wide.limit == "network"
    assert wide.seconds == pytest.approx(7813 * 3 * 2 * 8e9 * 63 / 64 / 25e9)
    assert training(1e9, 256, batch_tokens=128_000).limit == "batch"
