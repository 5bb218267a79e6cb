"""Tables 1 to 7 beside the paper's: every printed figure in its cell, ours by hand, gaps left empty."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_ray.config import EnvironmentsConfig
from atlas_ray.evaluation.intervals import Interval
from atlas_ray.evaluation.metrics import wilson
from atlas_ray.evaluation.provenance import other_tasks
from atlas_ray.report.paper.ours import (
    ArmRuns,
    ChosenSteps,
    Figure,
    PaperRuns,
    Start,
    TrainingCost,
    figure,
    gain,
    mean_figure,
)
from atlas_ray.report.paper.printed import TABLES, printed
from atlas_ray.report.paper.render import as_csv, as_json, as_table, chosen_table, latex, markdown, write_paper_tables
from atlas_ray.report.paper.tables import paper_tables
from atlas_ray.runs.folder import RunFolder
from tests.support.paper_runs import NOTHING, arm, table

SHARED = Path(__file__).parents[3] / "shared" / "paper" / "paper_results.json"


def cells(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def in_print() -> Iterator[tuple[str, str, str, str, float]]:
    """Every figure of the source: table, section, row, column, value."""
    labels = {"atlas": "ATLAS", "value_function": "value function", "gpt-4o": "GPT-4o"} | {
        "llama-3.1-70b-instruct": "Llama-3.1-70B-Instruct",
        "from_scratch": "from scratch",
        "from_critical_step": "from critical step",
    }
    source = json.loads(SHARED.read_text())
    for name in TABLES:
        for row in source[name]:
            if "held_in" in row:
                figures = {**row["held_in"], **(row["held_out"] or {})}
                figures |= {k: row[k] for k in ("held_in_avg", "held_out_avg")}
                for column, value in figures.items():
                    if value is not None:
                        yield name, row["section"] or "", row["model"], column, value
            elif "selection" in row:
                kind = {"all": "complete"}.get(row["selection"], row["selection"])
                for column in ("held_in_avg", "held_out_avg"):
                    yield name, "", f"{kind}, {round(100 * row['ratio'])} %", column, row[column]
            else:
                for key in row.keys() - {"env", "tasks"}:
                    yield name, "", labels[key], row["env"], row[key]


@pytest.mark.skipif(not SHARED.exists(), reason="the paper's figures are not beside this folder")
def test_every_printed_figure_stands_in_its_row_and_column_of_csv_and_markdown() -> None:
    found: dict[tuple[str, ...], str] = {}
    shown: dict[tuple[str, ...], str] = {}
    for made in paper_tables(NOTHING):
        for line in cells(as_csv(made)):
            found[line["table"], line["section"], line["row"], line["column"]] = line["paper"]
        section, columns = "", made.columns
        for line in markdown(made).splitlines():
            parts = [re.sub(r"\\(.)", r"\1", part.strip()) for part in line.strip("|").split("|")]
            if len(parts) == len(columns) + 2 and parts[0].startswith("**"):
                section = parts[0].strip("*")
            elif len(parts) == len(columns) + 2 and parts[1] == "paper":
                shown |= {(made.name, section, parts[0], c): v for c, v in zip(columns, parts[2:], strict=True)}
    expected = list(in_print())
    assert len(expected) == 14 * 16 + 5 * 16 - 3 * 5 + 3 * 16 + 7 * 2 + 4 + 6 + 4 + 11 * 16
    for *place, value in expected:
        assert found[tuple(place)] == f"{value:.2f}", place
        assert shown[tuple(place)].removesuffix(" q") == f"{value:.2f}", place
    # and nothing else is printed as the paper's
    assert sum(bool(v) for v in found.values()) == sum(bool(v) for v in shown.values()) == len(expected)


def test_without_runs_our_cells_are_empty() -> None:
    for made in paper_tables(NOTHING):
        assert all(line["ours"] == line["difference"] == "" for line in cells(as_csv(made)))
        assert "Nothing of this table was run." in made.notes
        assert "difference" not in markdown(made)


def test_one_environments_figure_is_the_one_computed_by_hand() -> None:
    ours = arm("atlas", {"maze": {0: [1, 0, 1, 0], 1: [1, 1, 1, 0]}})
    found = figure(ours, "maze")
    assert found is not None
    # tasks: 1, 0.5, 1, 0
    assert found.value == pytest.approx(62.5)
    assert (found.low, found.high) == pytest.approx(tuple(100 * x for x in wilson(0.625, 4)))
    # seeds: 50 and 75
    assert found.spread == pytest.approx(17.677669)
    assert (found.n, found.seeds, found.errors, found.flagged) == (8, 2, 0, False)
    assert figure(ours, "wordle") is None


def test_excluded_and_missing_episodes_are_counted_and_flagged() -> None:
    fine = arm("a", {"maze": [1.0] * 99}, excluded={"maze": {0: {"env_error": 1}}})
    fine = ArmRuns(fine.name, fine.model, None, fine.scores, fine.excluded, {"maze": 100})
    found = figure(fine, "maze")
    assert found is not None
    assert (found.errors, found.flagged) == (1, False)
    missing = figure(ArmRuns("a", "a", None, fine.scores, {}, {"maze": 100}), "maze")
    assert missing is not None
    assert missing.flagged


def test_an_average_of_some_environments_says_so_and_is_held_against_the_same() -> None:
    ours = arm("atlas", {"maze": [1, 0], "wordle": [0, 0]})
    runs = PaperRuns({"atlas": ours}, {"table1": {"atlas": "atlas"}})
    made = table("table1", runs)
    row = next(row for row in made.rows if row.key == "atlas")
    average = next(cell for cell in row.cells if cell.column == "held_in_avg")
    assert average.ours is not None
    assert average.ours.value == pytest.approx(25.0)
    assert average.ours.of == ("maze", "wordle")
    # the paper: maze 48, wordle 20
    assert average.fair == pytest.approx(34.0)
    assert average.difference == pytest.approx(-9.0)
    assert any("‡ is of maze, wordle alone" in note for note in made.notes)
    # Table 3 prints averages alone, of cells that stand in Tables 1 and 7: all 48 and 12, critical at 20 % 48 and 12
    made = table("table3", PaperRuns({"atlas": ours}, {"table3": {"all-100": "atlas", "critical-20": "atlas"}}))
    fair = {row.key: row.cells[0].fair for row in made.rows if row.arm}
    assert fair == {"all-100": pytest.approx(30.0), "critical-20": pytest.approx(30.0)}


def test_whole_averages_are_held_against_the_printed_ones() -> None:
    envs = printed("table1").columns[:10]
    found = mean_figure(arm("a", {env: [1, 0] for env in envs}), envs)
    assert found is not None
    assert (found.value, found.of, found.n) == (pytest.approx(50.0), (), 20)


BUILT_IN = {"jericho": "built in, not AgentBoard's", "pddl": "built in, not AgentBoard's"}
HELD_OUT = {"academia": [1, 0], "sheet": [1, 1], "jericho": [0, 0], "pddl": [0, 1]}


def test_built_in_jericho_and_pddl_are_labelled_and_held_against_nothing() -> None:
    arms = {"atlas": arm("atlas", HELD_OUT), "all": arm("all", {env: [0, 0] for env in HELD_OUT})}
    rows = {"table1": {"atlas": "atlas", "all": "all"}, "table3": {"critical-30": "atlas"}}
    made = table("table1", PaperRuns(arms, rows, other_tasks=BUILT_IN))
    atlas = {cell.column: cell for cell in next(row for row in made.rows if row.key == "atlas").cells}
    assert [atlas[env].ours and round(atlas[env].ours.value, 6) for env in HELD_OUT] == [50, 100, 0, 50]
    assert [atlas[env].difference is None for env in HELD_OUT] == [False, False, True, True]
    assert [atlas[env].paper for env in ("jericho", "pddl")] == [18.21, 15.84]
    # the average is of what can be compared, and held against the paper's mean of the same
    average = atlas["held_out_avg"]
    assert average.ours is not None
    assert (average.ours.value, average.ours.of) == (75.0, ("academia", "sheet"))
    assert average.fair == pytest.approx((49.39 + 70.0) / 2)
    claims = [claim.words for row in made.rows if row.key == "atlas" for claim in row.claims]
    assert claims[0].startswith("held out (academia, sheet alone): +75.0 points")
    (note,) = [note for note in made.notes if note.startswith("§")]
    assert note.startswith("§ jericho, pddl: built in, not AgentBoard's. Held against none of the paper's figures")
    assert "| 50.0§ [" in markdown(made)
    assert r"& 50.0\S{} [" in latex(made)
    lines = {line["column"]: line for line in cells(as_csv(made)) if line["arm"] == "atlas"}
    assert (lines["pddl"]["other_tasks"], lines["pddl"]["difference"]) == ("built in, not AgentBoard's", "")
    assert (lines["sheet"]["other_tasks"], lines["sheet"]["difference"]) == ("", "50.61")
    page = as_table(made)
    shown = next(row for row in page.rows if row[0].text.startswith("ATLAS"))[-2]
    assert (shown.text, "built in, not AgentBoard's paper 15.84" in shown.note) == ("50.0§", True)
    # Table 3 prints averages alone
    (third,) = [note for note in table("table3", PaperRuns(arms, rows, other_tasks=BUILT_IN)).notes if "§" in note]
    assert third == note


def test_agentboards_own_jericho_and_pddl_are_the_papers_columns_again() -> None:
    runs = PaperRuns({"atlas": arm("atlas", HELD_OUT)}, {"table1": {"atlas": "atlas"}})
    made = table("table1", runs)
    atlas = {cell.column: cell for cell in next(row for row in made.rows if row.key == "atlas").cells}
    assert atlas["pddl"].difference == pytest.approx(50 - 15.84)
    assert atlas["held_out_avg"].fair == 38.36
    assert "§" not in markdown(made)


def test_an_average_of_built_in_worlds_alone_is_shown_and_held_against_nothing() -> None:
    runs = PaperRuns(
        {"atlas": arm("atlas", {"pddl": [1, 0]})}, {"table3": {"critical-30": "atlas"}}, other_tasks=BUILT_IN
    )
    made = table("table3", runs)
    average = next(row for row in made.rows if row.key == "critical-30").cells[1]
    assert average.ours is not None
    assert (average.ours.value, average.fair, average.difference) == (50.0, None, None)
    assert "50.0§‡" in markdown(made)


def test_environments_with_other_tasks_than_the_papers_are_known_by_how_they_are_reached() -> None:
    envs = ("maze", "webshop", "jericho", "pddl")
    none = EnvironmentsConfig()
    assert other_tasks(envs, none) == BUILT_IN | dict.fromkeys(envs[:2], "built in, not AgentGym's")
    servers = {env: ["http://127.0.0.1:1"] for env in ("maze", "webshop", "pddl")}
    assert other_tasks(envs, EnvironmentsConfig(servers=servers)) == {
        "jericho": "built in, not AgentBoard's",
        "pddl": "a server's, not known to be AgentBoard's",
    }
    boards = {"jericho": "AgentBoard", "pddl": "AgentBoard"}
    assert other_tasks(envs, EnvironmentsConfig(servers=servers, agentboard=boards)) == {}


def test_a_row_is_held_against_the_papers_rival_task_by_task() -> None:
    ours, theirs = arm("atlas", {"maze": [1] * 20}), arm("all", {"maze": [0] * 20})
    runs = PaperRuns({"atlas": ours, "all": theirs}, {"table2": {"atlas": "atlas", "all": "all"}})
    (claim,) = next(row for row in table("table2", runs).rows if row.key == "atlas").claims
    # not of the whole group
    assert claim.scope == "held in (maze alone)"
    assert claim.difference.value == pytest.approx(100.0)
    assert claim.words.endswith("better")
    found = gain(ours, arm("all", {"maze": [1] * 10 + [0] * 10}), "maze")
    assert found is not None
    assert found.value == pytest.approx(50.0)


def test_a_claim_on_a_whole_group_names_the_group() -> None:
    envs = printed("table1").columns[:10]
    arms = {name: arm(name, {env: [1, 0] for env in envs}) for name in ("atlas", "all")}
    made = table("table2", PaperRuns(arms, {"table2": {"atlas": "atlas", "all": "all"}}))
    assert [claim.scope for row in made.rows for claim in row.claims] == ["held in"]


def test_tiny_backbones_are_named_wherever_they_stand() -> None:
    words = "`base`, a tiny model trained on the spot (2 layers of 96)"
    base = arm("base", {"maze": [1, 0]}, backbone=words)
    verification = {"maze": {"from_scratch": Start(Figure(40.0, 30.0, 50.0, 100, 1, None, 0, False))}}
    runs = PaperRuns(
        {"base": base}, {"table1": {"llama-3.1-8b-instruct": "base"}}, verification=verification, verified="base"
    )
    for name in ("table1", "table6"):
        assert f"Stand-in: {words}, for the paper's backbone." in table(name, runs).notes


def test_an_environment_where_nothing_counts_is_named() -> None:
    lost = arm("atlas", {"maze": {0: []}, "wordle": [1, 0]}, excluded={"maze": {0: {"env_error": 7}}})
    made = table("table1", PaperRuns({"atlas": lost}, {"table1": {"atlas": "atlas"}}))
    assert "No episode of `atlas` in maze counts: 7 were excluded for reasons of infrastructure." in made.notes


def test_tables_4_and_5_take_an_arm_a_task_and_name_stand_ins() -> None:
    arms = {
        "one": arm("one", {"babyai": [1.0, 0.5]}),
        "two": arm("two", {"textcraft": [1, 1, 0, 0]}, stand_in="gold for GPT-4o"),
    }
    rows = {"table4": {"babyai/atlas": "one", "weather/atlas": "two"}}
    made = table("table4", PaperRuns(arms, rows, {"table4": {"weather": "textcraft"}}))
    atlas = next(row for row in made.rows if row.key == "atlas")
    assert [cell.ours and round(cell.ours.value, 6) for cell in atlas.cells] == [75.0, 50.0]
    assert [cell.paper for cell in atlas.cells] == [78.93, 60.0]
    # another environment's figure is held against nothing
    assert [cell.difference for cell in atlas.cells] == [pytest.approx(-3.93), None]
    assert "50.0 [15–85] n=4 in textcraft" in markdown(made)
    assert [c["env"] for c in cells(as_csv(made)) if c["ours"]] == ["", "textcraft"]
    assert "Stand-in: textcraft for weather." in made.notes
    assert "Stand-in in `two`: gold for GPT-4o." in made.notes


def test_table_6_shows_verification() -> None:
    shown = Figure(40.0, 30.0, 50.0, 100, 1, None, 0, False)
    made = table("table6", PaperRuns({}, {}, verification={"maze": {"from_critical_step": Start(shown)}}))
    line = next(c for c in cells(as_csv(made)) if c["row"] == "from critical step" and c["column"] == "maze")
    assert (line["ours"], line["paper"], line["difference"]) == ("40.00", "44.00", "-4.00")
    assert [row.key for row in made.rows] == ["from_scratch", "from_critical_step"]


def test_table_6_holds_the_gain_against_starts_near_by() -> None:
    shown = Figure(40.0, 30.0, 50.0, 100, 1, None, 0, False)
    starts = {
        "from_scratch": Start(shown),
        "from_critical_step": Start(shown, Interval(22, 11, 33), Interval(3, -4, 10)),
        "iterative": Start(shown, Interval(5, 1, 9)),
        "control": Start(shown, Interval(19, 9, 29)),
    }
    made = table("table6", PaperRuns({}, {}, verification={"maze": starts}))
    assert [row.key for row in made.rows] == ["from_scratch", "from_critical_step", "iterative", "control"]
    said = [claim.words for row in made.rows for claim in row.claims]
    assert said == [
        "maze: +22.0 points against from scratch [+11.0, +33.0]: better",
        "maze: +3.0 points against from other step near by [-4.0, +10.0]: no difference shown",
        "maze: +5.0 points against from scratch [+1.0, +9.0]: better",
        "maze: +19.0 points against from scratch [+9.0, +29.0]: better",
    ]
    # the paper prints neither of the two
    assert "| from other step near by | ours |  | 40.0 [30–50] n=100 |" in markdown(made)


def test_what_training_took_against_all_steps() -> None:
    cost = TrainingCost(300, 1000, 6e9, 7200.0, "GPU", 0.3)
    every = TrainingCost(1000, 1000, 8e9, 7200.0, "GPU", 1.0)
    arms = {
        "atlas": arm("atlas", {"maze": [1, 0]}, training={0: cost}),
        "all": arm("all", {"maze": [1, 0]}, training={0: every}),
    }
    made = table("table1", PaperRuns(arms, {"table1": {"atlas": "atlas", "all": "all"}}))
    assert {c.row: (c.loss_share, c.flops_share) for c in made.costs} == {"atlas": (0.3, 0.75), "all": (1.0, 1.0)}
    assert "| atlas | 30% | 300 | 30% | 1,000 | 6e+09 | 75% | 2 GPU |" in markdown(made)
    assert r"atlas & 30\% & 300 & 30\% & 1,000 & 6e+09 & 75\% & 2 GPU \\" in latex(made)


def test_table_3_counts_what_was_chosen_at_each_maximum_whether_trained_on_or_not() -> None:
    counts = {0.5: (100, 41), 0.3: (100, 30), 0.4: (80, 30), 0.1: (100, 10)}
    chosen = {f"atlas-{m:.0%}": ChosenSteps(m, 10, int(m == 0.4), *found) for m, found in counts.items()}
    rows = {"table3": {f"critical-{100 * m:.0f}": f"atlas-{m:.0%}" for m in counts} | {"random-30": "random"}}
    chosen["random"] = ChosenSteps(0.3, 10, 0, 100, 30)
    made = table("table3", PaperRuns({}, rows, chosen=chosen))
    assert [row.row for row in made.chosen] == ["critical-10", "critical-30", "critical-40", "critical-50"]
    assert [row.share for row in made.chosen] == [0.1, 0.3, 0.375, 0.41]
    assert [row.gain for row in made.chosen] == [None, *map(pytest.approx, (20.0, 7.5, 3.5))]
    assert "| critical-40 | 40% | 30 | 80 | 37.5% | +7.5 | 10, 1 failed |" in markdown(made)
    assert r"critical-50 & 50\% & 41 & 100 & 41.0\% & +3.5 & 10 \\" in latex(made)
    assert [cell.text for cell in chosen_table(made).rows[-1]][:3] == ["critical-50", "50%", "41"]
    assert json.loads(as_json(made))["chosen"][-1]["steps"]["chosen"] == 41
    # and no printed row is made up for them
    assert [row.key for row in made.rows] == [row.key for row in printed("table3").rows]
    assert not table("table7", PaperRuns({}, rows, chosen=chosen)).chosen


def test_ratios_and_backbones_are_held_against_their_own_row_of_all_steps() -> None:
    def trained(name: str, loss: int) -> ArmRuns:
        return arm(name, {"maze": [1, 0]}, training={0: TrainingCost(loss)})

    arms = {"all": trained("all", 1000), "r": trained("r", 400), "q": trained("q", 30), "qa": trained("qa", 120)}
    rows = {"table1": {"all": "all"}, "table7": {"random-40": "r", "qwen/atlas": "q", "qwen/all": "qa"}}
    shares = {c.row: c.loss_share for c in table("table7", PaperRuns(arms, rows)).costs}
    assert shares == {"random-40": 0.4, "qwen/atlas": 0.25, "qwen/all": 1.0}
    # one task's model is trained on other data
    rows["table4"] = {"babyai/atlas": "q"}
    assert table("table4", PaperRuns(arms, rows)).costs[0].loss_share is None


def test_names_are_shown_as_they_are_written() -> None:
    evil = "a|b_c<script>&%$#{}\\ *x*"
    runs = PaperRuns(
        {"x": arm("x", {"maze": [1, 0]}, stand_in=evil, training={0: TrainingCost(1, 1)})},
        {"table1": {"atlas": "x"}},
    )
    made = table("table1", runs)
    text = markdown(made)
    assert "<script>" not in text
    assert r"a\|b\_c&lt;script&gt;&amp;%$#{}\\ \*x\*" in text
    tex = latex(made)
    assert r"a$|$b\_c$<$script$>$\&\%\$\#\{\}\textbackslash{} *x*" in tex
    assert re.sub(r"\\[{}]", "", tex).count("{") == re.sub(r"\\[{}]", "", tex).count("}")
    for begin, end in ((r"\begin{table*}", r"\end{table*}"), (r"\begin{tabular}", r"\end{tabular}")):
        assert tex.count(begin) == tex.count(end) > 0
    _, first, second = tex.split(r"\begin{tabular}")
    for part, width in ((first, len(made.columns) + 1), (second, 7)):
        body = part[part.index(r"\toprule") : part.index(r"\bottomrule")]
        assert {line.count("&") - line.count(r"\&") for line in body.splitlines() if " & " in line} == {width}
    assert json.loads(as_json(made))["name"] == "table1"
    assert as_table(made).rows[-1][1].text == ""


def test_every_table_is_written_in_every_format(tmp_path: Path) -> None:
    written = write_paper_tables(RunFolder(str(tmp_path)), paper_tables(NOTHING))
    assert len(written) == 28
    assert all((tmp_path / path).stat().st_size for path in written)


def test_contexts_are_named_where_a_model_was_made_for_less() -> None:
    arms = {name: arm(name, {"maze": [1]}, context=context) for name, context in (("a", 8192), ("b", 4096))}
    rows = {"table1": {"atlas": "a", "agentlm-7b": "b"}}
    notes = table("table1", PaperRuns(arms, rows)).notes
    assert "Context: 8,192 tokens; less, for they were made for less: `b` 4,096." in notes
    alone = table("table1", PaperRuns(arms, {"table1": {"atlas": "a"}})).notes
    assert "Context: 8,192 tokens." in alone
