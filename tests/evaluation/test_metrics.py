"""Figures of one environment, against values computed by hand."""

from __future__ import annotations

import io
import math
import re

import pytest
from rich.console import Console

from atlas_ray.evaluation.metrics import bootstrap, summarise, wilson
from atlas_ray.report.terminal import evaluation_table
from atlas_ray.types import StopReason
from tests.support.results import SPEC, episode


@pytest.mark.parametrize(
    ("rate", "n", "low", "high"),
    [(0.5, 10, 0.2366, 0.7634), (0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.9, 100, 0.8256, 0.9448)],
)
def test_wilson_limits(rate: float, n: int, low: float, high: float) -> None:
    assert wilson(rate, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    values = [i / 99 for i in range(100)]
    low, high = bootstrap(values, seed=1)
    assert (low, high) == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    half = 1.96 * math.sqrt(sum((v - 0.5) ** 2 for v in values) / 100) / 10
    assert low == pytest.approx(0.5 - half, abs=0.01)
    assert high == pytest.approx(0.5 + half, abs=0.01)
    assert bootstrap([0.25], seed=1) == (0.25, 0.25)


def test_a_summary_counts_outcomes_and_excludes_infrastructure() -> None:
    played = [
        episode(0, 1.0, progress=1.0),
        episode(1, 0.5, stop=StopReason.MAX_ROUNDS, progress=0.5),
        episode(2, 0.0, stop=StopReason.CONTEXT_OVERFLOW),
        episode(3, 0.0, stop=StopReason.PARSE_ERROR),
        episode(4, 0.0, stop=StopReason.ENV_ERROR),
        episode(5, 0.0, stop=StopReason.MODEL_ERROR),
        episode(6, 0.0, stop=StopReason.MODEL_ERROR),
    ]
    found = summarise(played, SPEC, 7)
    assert (found.env, found.held, found.metric) == ("maze", "in", "success")
    assert (found.n, found.distinct_tasks) == (4, 4)
    assert (found.success, found.reward, found.progress) == (0.25, 0.375, 0.375)
    assert found.ci95 == wilson(0.25, 4)
    assert found.excluded == {"env_error": 1, "model_error": 2}
    assert found.flagged


def test_samples_of_a_task_are_one_observation() -> None:
    played = [episode(0, 1.0, sample) for sample in range(4)]
    played += [episode(1, 1.0, 0), episode(1, 0.0, 1), episode(1, 0.0, 2), episode(1, 0.0, 3)]
    found = summarise(played, SPEC, 8)
    assert (found.n, found.distinct_tasks, found.success) == (8, 2, 0.625)
    assert found.ci95 == wilson(0.625, 2)
    assert found.reward_ci95 == (0.25, 1.0)
    assert not found.flagged


def test_a_cell_is_flagged_where_episodes_are_missing_or_too_many_excluded() -> None:
    whole = [episode(i, 1.0) for i in range(99)]
    assert not summarise([*whole, episode(99, 0.0, stop=StopReason.ENV_ERROR)], SPEC, 100, max_excluded=0.01).flagged
    assert summarise([*whole, episode(99, 0.0, stop=StopReason.ENV_ERROR)], SPEC, 100, max_excluded=0.009).flagged
    assert summarise(whole, SPEC, 100).flagged
    assert not summarise(whole, SPEC, 99).flagged


def test_nothing_played_has_no_figures() -> None:
    found = summarise([], SPEC, 5)
    assert (found.n, found.success, found.ci95, found.reward, found.progress) == (0, None, None, None, None)
    assert found.flagged


def test_a_cell_that_lost_episodes_looks_suspicious_on_the_screen() -> None:
    lost = [episode(n, 0.0, stop=StopReason.ENV_ERROR) for n in range(25, 40)]
    played = [episode(n, 1.0) for n in range(25)]
    console = Console(width=120, record=True, file=io.StringIO())
    shown = {"tuned": [summarise([*played, *lost], SPEC, 40)], "base": [summarise([*played[:24], *lost], SPEC, 40)]}
    console.print(evaluation_table(shown | {"whole": [summarise(played, SPEC, 25)]}))
    text = console.export_text()
    assert re.search(r"tuned +maze +100.0 \u2020 .* 25 of 40 +env_error 15", text)
    assert (
        "\u2020 tuned, maze: the figures are of 25 episodes alone; 15 failed for reasons of infrastructure"
        in " ".join(text.split())
    )
    assert re.search(r"whole +maze +100.0 +\d.* 25 +-", text)
