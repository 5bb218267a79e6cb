"""Two models on the same tasks, task by task; suites in place of lists of environments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.evaluation.paired import compare, compare_all
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.report.terminal import paired_table
from atlas_ray.types import Episode, StopReason
from tests.support.evaluations import an_episode


def played(successes: str) -> list[Episode]:
    """`1` a success, `0` a failure, `x` spoilt."""
    spoilt = StopReason.ENV_ERROR
    return [an_episode(i, 0, c == "1", spoilt if c == "x" else StopReason.DONE) for i, c in enumerate(successes)]


def test_only_tasks_that_count_for_both_are_compared() -> None:
    (found,) = compare("a", "b", played("111111x1"), played("000110x0"))
    assert (found.env, found.metric, found.tasks, found.outcome) == ("maze", "success", 7, "better")
    assert found.difference == pytest.approx(5 / 7)
    (back,) = compare("b", "a", played("000110x0"), played("111111x1"))
    assert (back.outcome, back.difference) == ("worse", -found.difference)
    assert list(compare("a", "b", played("xx"), played("11"))) == []


def test_reward_counts_where_the_tables_print_it() -> None:
    ours = [replace(e, env="babyai", reward=0.8) for e in played("11111")]
    theirs = [replace(e, env="babyai", reward=0.3) for e in played("11111")]
    (found,) = compare("a", "b", ours, theirs)
    assert (found.metric, found.difference) == ("reward", pytest.approx(0.5))


def test_every_later_arm_against_every_earlier_one() -> None:
    found = compare_all({"base": played("0000000"), "a": played("1111111"), "b": played("1111111")})
    assert [(c.ours, c.theirs, c.outcome) for c in found] == [
        ("a", "base", "better"),
        ("b", "base", "better"),
        ("b", "a", "none"),
    ]
    assert paired_table(found).row_count == 3


def suite_of(tmp_path: Path, **given: object) -> dict[str, int | None]:
    return validate(EvaluateConfig, {"run": str(tmp_path), "models": {"a": "x"}, **given}).tasks


def test_a_suite_stands_for_what_can_be_played(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, elsewhere: str
) -> None:
    found = suite_of(tmp_path, tasks={"held_in": 5, "maze": 7, "blocksworld": 2})
    assert {"wordle": 5, "textcraft": 5, "maze": 7, "blocksworld": 2}.items() <= found.items()
    assert elsewhere not in found
    assert f"held_in without {elsewhere}" in caplog.text
    served = {"servers": {elsewhere: ["http://127.0.0.1:1"]}}
    assert suite_of(tmp_path, tasks={"held_in": 5}, environments=served)[elsewhere] == 5
    with pytest.raises(UserError, match="integer"):
        suite_of(tmp_path, tasks={"maze": "many"})
