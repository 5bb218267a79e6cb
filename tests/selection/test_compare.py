"""How far selections agree, by hand-computed figures; and `atlas compare` from folders to table, JSON and figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.compare.agreement import at_budget, cohens_kappa, compare_runs, compare_selections, tokens_of
from atlas_ray.selection.compare.show import comparison_tables, write_figure
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.types import Category, GoldStep, Message, Selection, Trajectory, Usage
from tests.selection.test_selection import GOLD, config_of, data_in, expert
from tests.support.command_line import atlas

PLAN, SEEN, ACTION, SELF = Category


def chosen(name: str, number: int, steps: tuple[int, ...], n_steps: int = 10, **more: Any) -> Selection:
    item = f"maze_{number}"
    return Selection(f"maze/{item}", "maze", item, name, more.pop("ratio", 0.3), n_steps, steps, **more)


def steps(first: int, last: int) -> set[tuple[str, int]]:
    return {("t", t) for t in range(first, last + 1)}


@pytest.mark.parametrize(
    ("a", "b", "n_steps", "kappa"),
    [
        # both chose 20 of 50, neither 15, one alone 5, the other alone 10: p_o = 0.7, p_e = 0.5 (a textbook's numbers)
        (steps(1, 25), steps(6, 35), 50, 0.4),
        (steps(1, 3), steps(1, 3), 10, 1.0),
        (steps(1, 5), steps(6, 10), 10, -1.0),
        (steps(1, 10), steps(1, 10), 10, None),  # by chance as well
        (set(), set(), 0, None),
    ],
)
def test_cohens_kappa_by_hand(a: set[Any], b: set[Any], n_steps: int, kappa: float | None) -> None:
    assert cohens_kappa(a, b, n_steps) == kappa


@given(st.sets(st.integers(1, 12)), st.sets(st.integers(1, 12)))
def test_cohens_kappa_is_its_definition(a: set[int], b: set[int]) -> None:
    n = 12
    agree = sum((t in a) == (t in b) for t in range(1, n + 1)) / n
    chance = len(a) / n * len(b) / n + (1 - len(a) / n) * (1 - len(b) / n)
    found = cohens_kappa({("t", t) for t in a}, {("t", t) for t in b}, n)
    if chance == 1:
        assert found is None
    else:
        assert found == pytest.approx((agree - chance) / (1 - chance))


def test_a_row_by_hand() -> None:
    data = [expert(10, 0, GOLD), expert(10, 1, GOLD), expert(4, 2)]  # GOLD marks 2, 4, 7, 9
    mine = [
        chosen("llm", 0, (2, 7, 10), categories={2: PLAN, 7: SELF, 10: SEEN}, usage=Usage(100, 0, 10, 1, 0.25)),
        chosen("llm", 1, (1,), usage=Usage(50, 0, 5, 2, 0.25)),
        chosen("llm", 2, (), n_steps=4, error="no answer: HTTP 500"),
    ]
    theirs = [chosen("other", 0, (2, 3), categories={2: PLAN}), chosen("other", 2, (4,), n_steps=4)]
    row, other = compare_selections([("llm", mine), ("other", theirs)], data)
    assert (row["trajectories"], row["errors"], row["actual"]) == (2, 1, 4 / 20)
    assert (row["precision"], row["recall"], row["f1"], row["jaccard"]) == (2 / 4, 2 / 8, 4 / 12, 2 / 10)
    # p_o = 12/20, p_e = (4*8 + 16*12) / 400 = 0.56
    assert row["kappa"] == pytest.approx((0.6 - 0.56) / 0.44)
    assert row["same_category"] == 1 / 2  # step 2 as the expert's, step 7 not
    assert row["categories"] == {"Critical Observation": 1, "Plan Creation": 1, "Self Correction": 1}
    # pairs count where both have a selection: trajectory 0 alone
    assert row["overlap"] == {"other": 1 / 4}
    assert row["kappas"]["other"] == pytest.approx((0.7 - (3 * 2 + 7 * 8) / 100) / (1 - 0.62))
    assert row["same_categories"] == {"other": 1.0}
    assert row["positions"] == [0.5, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0.5]
    assert row["position"] == pytest.approx((0.05 + 0.15 + 0.65 + 0.95) / 4)
    assert row["loss_fraction"] == 4 / 20  # every step has the same words
    assert row["usage"] == {"calls": 3, "tokens": 165, "dollars": 0.5}
    assert other["precision"] == 1 / 2  # the trajectory without gold is left out


def test_loss_is_weighed_by_words_or_by_a_models_tokens(tiny_models: tuple[str, str]) -> None:
    turns = (Message("user", "Go."), Message("assistant", "up", True), Message("assistant", "go go go", True))
    data = [Trajectory("maze/maze_0", "maze", "maze_0", (*turns[:2], Message("user", "On."), turns[2]))]
    named = [("first", [chosen("first", 0, (1,), n_steps=2)])]
    assert compare_selections(named, data)[0]["loss_fraction"] == 1 / 4
    tokens = tokens_of(data, tiny_models[0])
    assert tokens["maze/maze_0"][0] < tokens["maze/maze_0"][1]
    [row] = compare_selections(named, data, tokens)
    assert row["loss_fraction"] == tokens["maze/maze_0"][0] / sum(tokens["maze/maze_0"])


def test_environments_are_told_apart() -> None:
    wordle = Trajectory("wordle/wordle_0", "wordle", "wordle_0", expert(2).messages, 1.0, (GoldStep(1, 1, PLAN),))
    other = Selection(wordle.id, "wordle", wordle.item_id, "a", 0.3, 2, (2,))
    [row] = compare_selections([("a", [chosen("a", 0, (2, 4)), other])], [expert(10, 0, GOLD), wordle])
    assert [(env, at["trajectories"], at["precision"]) for env, at in row["environments"].items()] == [
        ("maze", 1, 1.0),
        ("wordle", 1, 0.0),
    ]
    assert row["precision"] == 2 / 3


def test_scored_selections_appear_at_the_budget_too() -> None:
    scores = (0.05, 0.5, 0.0, 0.2, -0.1, 0.0, 0.02, 0.0, 0.0, 0.0)
    value = [chosen("value", 0, (2, 4), ratio=None, scores=scores)]
    gold = [chosen("gold", 0, (2,), ratio=0.1, scores=(0, 3.0, 0, 0, 0, 0, 4.0, 0, 0, 0), categories={2: PLAN})]
    same = [chosen("combine", 0, (2, 7, 9), scores=(0.1,) * 10)]
    plain = [chosen("llm", 0, (1,))]
    found = dict(at_budget([("value", value), ("gold", gold), ("both", same), ("llm", plain)], 0.3))
    assert list(found) == ["value", "value, top 30%", "gold", "gold, top 30%", "both", "llm"]
    assert found["value, top 30%"][0].chosen == (1, 2, 4)  # 0.05 is below the threshold, and third
    assert found["gold, top 30%"][0].chosen == (2, 7)  # unmarked steps are never chosen
    assert list(dict(at_budget([("value", value)], None))) == ["value"]


def test_the_budget_of_scored_selections_keeps_the_share_of_all_of_them() -> None:
    value = [chosen("value", i, (1,), n_steps=6, ratio=None, scores=(6, 5, 4, 3, 2, 1)) for i in range(10)]
    found = dict(at_budget([("value", value)], 0.3))["value, top 30%"]
    assert sum(len(s.chosen) for s in found) == 18


def runs_in(folder: Path, **selectors: dict[str, Any]) -> tuple[str, list[str]]:
    data = data_in(folder / "data", [expert(10, i, GOLD) for i in range(4)])
    for name, selector in selectors.items():
        select_steps(config_of(folder / name, data, {"name": name} | selector))
    return data["path"], [str(folder / name) for name in selectors]


def test_the_command_prints_writes_and_draws(tmp_path: Path) -> None:
    data, runs = runs_in(tmp_path, gold={"ratio": 0.1}, first={}, all={})
    files = ["--json", str(tmp_path / "out" / "c.json"), "--figure", str(tmp_path / "out" / "c.png")]
    done = atlas("compare", *runs, "--data", data, "--ratio", "0.3", *files)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("gold, top 30%", "Cohen's kappa", "Plan Creation"))
    found = json.loads((tmp_path / "out" / "c.json").read_text())
    assert [(r["name"], r["requested"], r["actual"], r["recall"]) for r in found["selections"]] == [
        ("gold", 0.1, 0.1, 0.25),
        ("gold, top 30%", 0.3, 0.3, 0.75),
        ("first", 0.3, 0.3, 0.25),
        ("all", None, 1.0, 1.0),
    ]
    assert found["unit"] == "words"
    assert (tmp_path / "out" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_tables_hold_a_line_for_each_selection_and_environment(tmp_path: Path) -> None:
    data, runs = runs_in(tmp_path, gold={}, last={})
    found = compare_runs(runs, data)
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    for table in comparison_tables(found):
        console.print(table)
    text = console.export_text()
    assert "2 last" in text
    assert "By environment" not in text  # there is one
    with pytest.raises(UserError, match=r"name a \.png"):
        write_figure(tmp_path / "figure.docx", found)


def test_selections_of_other_data_are_refused(tmp_path: Path) -> None:
    data, [run] = runs_in(tmp_path, all={})
    folder = RunFolder(run)
    with pytest.raises(UserError, match="no selection lies in"):
        compare_runs([str(tmp_path / "none")], data)
    folder.write_shard(SELECTIONS, [chosen("all", 2, (1,), n_steps=9)])
    with pytest.raises(UserError, match="with 9 steps where the data has 10"):
        compare_runs([run], data)
    folder.write_shard(SELECTIONS, [chosen("all", 2, (1,)), chosen("all", 77, (1,))])
    with pytest.raises(UserError, match="maze/maze_77, which the data lacks"):
        compare_runs([run], data)
