"""Selections made from other selections or from tables: combine, complement by name, file, first, last."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.settings import RecipeConfig
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection import baselines
from atlas_ray.selection.baselines import FirstSelector, LastSelector
from atlas_ray.selection.budget import budget, recut
from atlas_ray.selection.combine import CombineSelector, ranks, select_combined
from atlas_ray.selection.file import FileSelector, write_table
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Category, Selection
from tests.selection.test_selection import GOLD, config_of, data_in, expert
from tests.support.selecting import selected

PLAN, SEEN, ACTION, SELF = Category
FLOAT_STEPS = Path(__file__).parents[3] / "shared" / "data" / "cases" / "float_steps.csv"


def part(name: str, n_steps: int, chosen: tuple[int, ...], scores: tuple[float, ...] = (), **more: Any) -> Selection:
    return Selection("maze/maze_0", "maze", "maze_0", name, None, n_steps, chosen, scores, **more)


def combined(n_steps: int, config: dict[str, Any], *parts: Selection) -> Selection:
    section = validate(CombineSelector, config)
    return select_combined(expert(n_steps), section, {p.selector: {p.trajectory_id: p} for p in parts})


def test_first_and_last_take_the_budget_at_one_end() -> None:
    assert baselines.select_end(expert(10), FirstSelector(ratio=0.3)).chosen == (1, 2, 3)
    assert baselines.select_end(expert(10), LastSelector(ratio=0.3)).chosen == (8, 9, 10)
    assert baselines.select_end(expert(2), LastSelector(ratio=0.1)).chosen == (2,)


def test_ranks_by_hand() -> None:
    quarters = [Fraction(r, 8) for r in (8, 2, 5, 5)]  # ranks 4, 1, 2.5, 2.5 of 4
    assert ranks(part("value", 4, (1,), (4.0, 1.0, 3.0, 3.0))) == quarters
    assert ranks(part("llm", 4, (2,))) == [Fraction(r, 4) for r in (2, 4, 2, 2)]
    assert ranks(part("all", 1, (1,))) == [1]


def test_a_weighted_rank_by_hand() -> None:
    value, llm = part("value", 4, (1,), (4.0, 1.0, 3.0, 3.0)), part("llm", 4, (2,), categories={2: SEEN})
    found = combined(4, {"parts": {"value": 1, "llm": 3}, "ratio": 0.5}, value, llm)
    assert found.scores == (0.625, 0.8125, 0.53125, 0.53125)
    assert (found.chosen, found.categories, found.ratio) == ((1, 2), {2: SEEN}, 0.5)
    assert recut(found, 0.75).chosen == (1, 2, 3)  # the tie goes to the earlier step


def test_union_and_intersection_are_capped_only_where_a_ratio_is_given() -> None:
    a, b = part("a", 10, (1, 2, 3, 4)), part("b", 10, (3, 4, 9))
    both = {"parts": {"a": 1, "b": 2}}
    assert combined(10, both | {"rule": "union"}, a, b).chosen == (1, 2, 3, 4, 9)
    assert combined(10, both | {"rule": "intersection"}, a, b).chosen == (3, 4)
    capped = combined(10, both | {"rule": "union", "ratio": 0.3}, a, b)
    assert capped.chosen == (3, 4, 9)  # what both chose, then what the heavier part chose
    assert [t for t, score in enumerate(capped.scores, 1) if score > 0] == [1, 2, 3, 4, 9]
    assert combined(10, both | {"rule": "intersection", "ratio": 0.1}, a, b).chosen == (3,)


def test_an_empty_intersection_is_a_selection_without_steps() -> None:
    found = combined(10, {"parts": {"a": 1, "b": 1}, "rule": "intersection"}, part("a", 10, (1,)), part("b", 10, (2,)))
    assert (found.chosen, found.error) == ((), None)


def test_a_part_that_does_not_fit_costs_the_trajectory_and_says_why() -> None:
    config, a = {"parts": {"a": 1, "b": 1}}, part("a", 10, (1,))
    cases = {
        "no part: b: b counted 9 steps, the data has 10": part("b", 9, (1,)),
        "no part: b: no answer: HTTP 500": part("b", 10, (), error="no answer: HTTP 500"),
        "no part: b: b holds no such trajectory": replace(part("b", 10, (1,)), trajectory_id="maze/maze_7"),
    }
    for why, b in cases.items():
        found = combined(10, config, a, b)
        assert (found.error, found.chosen) == (why, ())


_PARTS = st.integers(1, 8).flatmap(
    lambda n: st.tuples(
        st.just(n),
        st.lists(
            st.tuples(
                st.sets(st.integers(1, n)), st.none() | st.lists(st.integers(0, 3).map(float), min_size=n, max_size=n)
            ),
            min_size=2,
            max_size=4,
        ),
    )
)


@given(_PARTS, st.sampled_from(["weighted_rank", "union", "intersection"]), st.sampled_from([None, 0.1, 0.3, 1.0]))
def test_combinations_stay_within_their_parts_and_the_budget(given_: Any, rule: str, ratio: float | None) -> None:
    n, made = given_
    parts = [part(f"p{i}", n, tuple(sorted(c)), tuple(s or ())) for i, (c, s) in enumerate(made)]
    config = {"parts": {p.selector: 0.1 * (i + 1) for i, p in enumerate(parts)}, "rule": rule, "ratio": ratio}
    found = combined(n, config, *parts)
    chosen = [set(p.chosen) for p in parts]
    within = {"union": set.union(*chosen), "intersection": set.intersection(*chosen)}.get(rule, set(range(1, n + 1)))
    k = n if found.ratio is None else budget(found.ratio, n)
    assert set(found.chosen) <= within
    assert len(found.chosen) == min(k, len(within))
    assert all(0 <= score <= 1 for score in found.scores)
    assert recut(found, 1.0).chosen == tuple(sorted(within))


def test_the_stage_finds_parts_beside_its_folder_and_notices_that_they_changed(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(10, i, GOLD) for i in range(4)])
    for name in ("gold", "first"):
        select_steps(config_of(tmp_path / name, data, {"name": name}))
    section = {"combine": {"gold": 0.7, str(tmp_path / "first"): 0.3}}
    config = config_of(tmp_path / "both", data, section)
    found = select_steps(config)
    assert all(len(s.chosen) == 3 and s.selector == "combine" and s.scores for s in found.read(SELECTIONS))
    assert [s.chosen for s in found.read(SELECTIONS)] == [(2, 7, 9)] * 4
    select_steps(config)  # nothing changed: left alone
    select_steps(config_of(tmp_path / "gold", data, {"name": "gold", "ratio": 0.1}), clean=True)
    with pytest.raises(UserError, match=r"gold changed since .*both was made from it"):
        select_steps(config)
    assert [s.chosen for s in select_steps(config, clean=True).read(SELECTIONS)] == [(2, 7, 9)] * 4
    other = data_in(tmp_path / "other", [expert(10, i) for i in range(5, 7)])
    with pytest.raises(UserError, match="gold was made from other data"):
        select_steps(config_of(tmp_path / "third", other, section))
    with pytest.raises(UserError, match=r"nowhere.*holds no finished selection"):
        select_steps(config_of(tmp_path / "fourth", data, {"combine": ["gold", "nowhere"]}))


def a_recipe(**arms: dict[str, Any]) -> dict[str, Any]:
    extra = {"llm": {"name": "llm"}}
    common = {"name": "r", "expert": {"path": "x"}, "base": "b", "evaluate": {"tasks": {"maze": 1}}}
    return common | {"arms": arms, "extra_arms": extra}


def test_a_recipe_selects_first_what_others_are_made_from(tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        "mix": {"combine": {"value": 0.6, "opposite": 0.4}},
        "opposite": {"name": "complement", "reference": "value"},
        "value": {"name": "value"},
        "all": {"name": "all"},
    }
    whole = Recipe(validate(RecipeConfig, a_recipe(**arms) | {"runs": str(tmp_path)}))
    assert list(whole.select) == ["value", "opposite", "mix", "all"]
    assert list(whole.arms) == list(arms)
    with pytest.raises(UserError, match=r"made from `llm`, an extra arm that is not included\n.*--with llm"):
        Recipe(validate(RecipeConfig, a_recipe(mix={"combine": ["llm", "all"]}, all={"name": "all"})))
    with pytest.raises(UserError, match="made from `vlaue`, no arm of the recipe"):
        Recipe(validate(RecipeConfig, a_recipe(a={"name": "complement", "reference": "vlaue"})))
    with pytest.raises(UserError, match="the arms a -> b -> a are made from each other"):
        Recipe(
            validate(RecipeConfig, a_recipe(a={"combine": ["b", "c"]}, b={"combine": ["a", "c"]}, c={"name": "all"}))
        )


def table_in(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read_table(path: Path, n: int = 3, steps: int = 10) -> tuple[list[Selection], list[Rejected]]:
    return selected(FileSelector(path=str(path)), [expert(steps, i) for i in range(n)])


_TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=20)
_MADE = st.tuples(
    st.dictionaries(st.integers(1, 10), st.none() | st.sampled_from(Category)), st.none() | _TEXT.filter(str.strip)
)


@given(st.lists(_MADE, min_size=1, max_size=4), st.sampled_from([".csv", ".jsonl"]))
@example([({}, "0\r")], ".csv")
def test_the_exported_table_comes_back_as_it_was(tmp_path_factory: Any, made: list[Any], kind: str) -> None:
    path = tmp_path_factory.mktemp("table") / f"table{kind}"
    given_ = [
        replace(
            part("llm", 10, tuple(sorted(steps)), categories={t: c for t, c in steps.items() if c}, reason=reason),
            trajectory_id=f"maze/maze_{i}",
        )
        for i, (steps, reason) in enumerate(made)
    ]
    write_table(path, given_)
    found, rejected = read_table(path, n=len(made))
    assert not rejected
    keys = [(s.trajectory_id, s.chosen, dict(s.categories), s.reason, s.error) for s in given_]
    assert [(s.trajectory_id, s.chosen, dict(s.categories), s.reason, s.error) for s in found] == keys


def test_a_failed_selection_stays_failed_until_someone_edits_it(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [part("llm", 10, (), error="no answer: HTTP 500")])
    assert read_table(tmp_path / "t.csv", n=1)[0][0].error == "no answer: HTTP 500"
    edited = (tmp_path / "t.csv").read_text().replace(",,,,no answer: HTTP 500", ",3 4,,by hand,")
    (tmp_path / "t.csv").write_text(edited)
    [found], _ = read_table(tmp_path / "t.csv", n=1)
    assert (found.chosen, found.reason, found.error) == ((3, 4), "by hand", None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "3 11"}, "step 11 does not exist: the steps are 1 to 10"),
        ({"chosen": "0"}, "step 0 does not exist: the steps are 1 to 10"),
        ({"chosen": "2-5"}, "'2-5' is no step number"),
        ({"chosen": "2.5"}, "'2.5' is no step number"),
        ({"chosen": "3 4 3"}, "`chosen` repeats step 3"),
        ({"chosen": "3", "n_steps": "9"}, "`n_steps` is 9, but the trajectory has 10 steps"),
        ({"chosen": "3", "categories": "3: Luck"}, "unknown category 'Luck'"),
        ({"chosen": "3", "categories": "4: Plan Creation"}, "`categories` names step 4, which is not chosen"),
        ({"chosen": "3", "categories": "Plan Creation"}, "`categories` is not of the form"),
        ({"chosen": "3", "error": "no answer"}, "the row has steps and an error"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_bad_row_is_refused_with_its_line_and_its_trajectory_counted(
    tmp_path: Path, kind: str, row: dict[str, str], reason: str
) -> None:
    empty = dict.fromkeys(("n_steps", "categories", "error"), "")
    rows = [{"trajectory_id": f"maze/maze_{i}", "chosen": "1"} | empty for i in range(3)]
    rows[1] |= row
    found, [refused] = read_table(table_in(tmp_path, f"table.{kind}", rows))
    assert refused.row == 2 + (kind == "csv")
    assert reason in refused.reason
    assert [s.chosen for s in found] == [(1,), (), (1,)]
    assert reason in str(found[1].error)


def test_unknown_missing_and_double_trajectories(tmp_path: Path) -> None:
    names = ["maze/maze_0", "maze/maze_9", "maze/maze_1", "maze/maze_1"]
    path = table_in(tmp_path, "t.jsonl", [{"trajectory_id": n, "chosen": [2]} for n in names] + [{"chosen": [1]}])
    path.write_text(path.read_text() + 'not json\n{"trajectory_id": "maze/maze_2"}\n')
    found, rejected = read_table(path, n=4)
    assert [(r.row, r.reason.split(":")[0]) for r in rejected] == [
        (2, "the data has no trajectory maze/maze_9"),
        (4, "a second row of maze/maze_1, which line 3 has already"),
        (5, "`trajectory_id` is missing"),
        (6, "not valid JSON"),
        (7, "`chosen` is missing"),
    ]
    assert [s.error and s.error.split(":")[0] for s in found] == [None, "rejected row", "rejected row", "no row"]


def test_a_spreadsheet_runs_nothing_and_its_habits_are_read(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [part("llm", 10, (2, 5), reason='=HYPERLINK("http://x")')])
    [_, cells] = csv.reader((tmp_path / "t.csv").open(newline=""))
    assert cells[4].startswith("'=")
    habits = "\ufefftrajectory_id;chosen;reason\r\nmaze/maze_0;2,5;two\r\nlines\r\n"
    (tmp_path / "h.csv").write_bytes(habits.replace("two\r\nlines", '"two\r\nlines"').encode())
    assert read_table(tmp_path / "h.csv", n=1)[0][0].chosen == (2, 5)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_whole_numbers_with_a_point_are_steps_and_blanks_of_other_tools_are_blanks(tmp_path: Path, kind: str) -> None:
    """A blank in a column of numbers makes them floats in pandas and spreadsheets."""
    nan = float("nan")
    columns: dict[str, list[Any]] = {
        "trajectory_id": [f"maze/maze_{i}" for i in range(3)],
        "n_steps": [10.0, 10.0, nan],
        "chosen": [2.0, 10.0, nan],
        "reason": [None, "by hand", None],
    }
    path, rows = tmp_path / f"table.{kind}", [{name: columns[name][i] for name in columns} for i in range(3)]
    if kind == "parquet":
        pq.write_table(pa.table(columns), path)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        table_in(tmp_path, path.name, rows if kind == "jsonl" else [blank_for_nan(row) for row in rows])
    found, rejected = read_table(path)
    assert not rejected
    assert [(s.chosen, s.reason, s.error) for s in found] == [
        ((2,), None, None),
        ((10,), "by hand", None),
        ((), None, None),
    ]


def blank_for_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {key: "" if value != value else value for key, value in row.items()}  # noqa: PLR0124


def test_lists_and_categories_keep_their_steps_in_any_table(tmp_path: Path) -> None:
    rows = [
        {"trajectory_id": "maze/maze_0", "chosen": [2.0, 5.0], "categories": {"2": "Plan Creation", "7": None}},
        {"trajectory_id": "maze/maze_1", "chosen": [7.0], "categories": {"2": None, "7": "Critical Action"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    found, rejected = read_table(tmp_path / "t.parquet", n=2)
    assert not rejected
    assert [(s.chosen, s.categories) for s in found] == [((2, 5), {2: PLAN}), ((7,), {7: ACTION})]


@pytest.mark.skipif(not FLOAT_STEPS.exists(), reason="the shared inputs are not here")
def test_an_edited_table_in_which_a_blank_turned_2_into_2_0_is_taken_as_it_is_meant(tmp_path: Path) -> None:
    data = {"path": str(FLOAT_STEPS.with_name("float_steps_data.jsonl"))}
    folder = select_steps(config_of(tmp_path / "run", data, {"name": "file", "path": str(FLOAT_STEPS)}))
    found = {s.item_id: (s.chosen, s.error) for s in folder.read(SELECTIONS)}
    assert found == {
        "greenhouse_0": ((2,), None),
        "greenhouse_1": ((2,), None),
        "greenhouse_2": ((3,), None),
        "greenhouse_3": ((), "no clear step"),
    }


def test_what_is_no_table_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"trajectory_id": "maze/maze_0", "chosen": [1]}')
    (tmp_path / "f.parquet").write_text("none")
    (tmp_path / "a.csv").write_text("id,steps\nmaze/maze_0,1\n")
    (tmp_path / "b.csv").write_text('trajectory_id,chosen\n"maze/maze_0,1\n')
    (tmp_path / "c.xlsx").write_text("")
    says = {
        "a.csv": "no column `chosen`",
        "b.csv": "line 2",
        "c.xlsx": "name it .csv or .jsonl",
        "d.csv": "No such file",
        "e.json": "no list of rows",
        "f.parquet": "cannot read",
    }
    for name, words in says.items():
        with pytest.raises(UserError, match=words):
            read_table(tmp_path / name)


def test_the_stage_imports_a_table_counts_refusals_and_notices_an_edit(tmp_path: Path) -> None:
    data = data_in(tmp_path / "data", [expert(10, i) for i in range(3)])
    rows = [{"trajectory_id": f"maze/maze_{i}", "chosen": c} for i, c in enumerate(["1 2", "99"])]
    path = table_in(tmp_path, "t.csv", rows)
    config = config_of(tmp_path / "file", data, {"name": "file", "path": str(path)}, max_failed=0.7)
    folder = select_steps(config)
    figures = folder.finished or {}
    assert (figures["errors"], figures["rejected"], figures["chosen"]) == ({"no row": 1, "rejected row": 1}, 1, 2)
    [refused] = [json.loads(line) for line in (tmp_path / "file" / "rejected.jsonl").read_text().splitlines()]
    assert (refused["file"], refused["row"]) == (str(path), 3)
    path.write_text(path.read_text().replace("99", "9"))
    with pytest.raises(UserError, match="changed since"):
        select_steps(config)
    assert (select_steps(config, clean=True).finished or {})["errors"] == {"no row": 1}
    assert RunFolder(config.run).read(SELECTIONS)[1].chosen == (9,)
