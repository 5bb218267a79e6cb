"""The report: exact numbers from hand-made records, honest words, escaped text, the same bytes every time."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from atlas_ray.evaluation.intervals import Interval, average, paired_difference, points
from atlas_ray.evaluation.metrics import summarise
from atlas_ray.recipes.report import site_of
from atlas_ray.report.html import SCRIPTS, duration, write_report
from atlas_ray.report.inputs import Arm
from atlas_ray.report.results import build_results
from atlas_ray.report.tables import (
    detail_table,
    print_tables,
    selector_table,
    success_table,
    verdict_table,
)
from atlas_ray.report.terminal import evaluation_table
from atlas_ray.runs.folder import RunFolder
from atlas_ray.types import StopReason, Trajectory
from tests.support.report_records import (
    IMAGE,
    SCRIPT,
    SPECS,
    arm,
    conversation,
    episode,
    page_of,
    realistic,
    report_input,
    trajectory,
)


def test_results_hold_exactly_these_numbers() -> None:
    results = build_results(realistic())
    assert results["schema_version"] == 1
    assert (results["recipe"], results["seeds"], results["git_commit"]) == ("quickstart", [0], "abc")
    assert results["versions"] == {"ray": "2.60.0"}
    assert results["seconds"] == {"collect": 12.0, "train/gold": 75.5, "train/random": 60.0}
    assert results["evaluation"] == {"temperature": 0.0}
    gold = results["arms"][1]
    assert {k: gold[k] for k in ("name", "model", "selector", "ratio", "step_fraction", "train_steps")} == {
        "name": "gold",
        "model": "models/gold",
        "selector": "gold",
        "ratio": 0.3,
        "step_fraction": 0.25,
        "train_steps": 54,
    }
    assert gold["loss_token_fraction"] == 0.287123
    maze = gold["environments"][0]
    assert {"env", "held", "metric", "n", "distinct_tasks", "success", "ci95", "reward", "excluded"} <= maze.keys()
    assert (maze["env"], maze["held"], maze["metric"]) == ("maze", "in", "success")
    assert (maze["n"], maze["distinct_tasks"], maze["success"], maze["reward"]) == (40, 40, 0.75, 0.75)
    assert maze["ci95"] == pytest.approx([0.59806, 0.85813], abs=1e-4)  # Wilson, 30 of 40
    assert not any(maze["excluded"].values())
    [mean] = gold["averages"]  # one environment held out has no average
    assert (mean["held"], mean["environments"], mean["success"]) == ("in", 2, 0.625)


def test_selectors_are_measured_against_gold() -> None:
    gold, random, value = build_results(realistic())["selectors"]
    keys = ("name", "precision", "recall", "f1", "requested", "actual", "against")
    assert [gold[k] for k in keys] == ["gold", 1.0, 0.5, 0.666667, 0.3, 0.25, "gold"]
    assert [random[k] for k in keys] == ["random", 0.5, 0.25, 0.333333, 0.3, 0.25, "gold"]
    assert (value["trajectories"], value["errors"], value["actual"]) == (1, 1, 0.5)
    assert gold["categories"] == {"Plan Creation": 2}
    # 4 steps stand in the tenths 1, 3, 6 and 8
    assert gold["positions"] == [None, 0.0, None, 1.0, None, None, 0.0, None, 0.0, None]


def test_environments_with_other_tasks_than_the_papers_are_marked_in_every_table() -> None:
    words = "built in, not AgentBoard's"
    given = replace(realistic(), other_tasks={"blocksworld": words})
    results = build_results(given)
    for shown in (success_table(results), detail_table(results), verdict_table(results)):
        texts = [column.title for column in shown.columns] + [cell.text for row in shown.rows for cell in row]
        assert "blocksworld §" in texts, shown.title
        assert "blocksworld" not in texts
        assert f"§ blocksworld: {words}." in shown.notes
    cells = [summarise([], SPECS["blocksworld"], 1, 0.02)]
    terminal = evaluation_table({"base": cells}, {"blocksworld": words})
    assert list(terminal.columns[1].cells) == ["blocksworld §"]
    assert str(terminal.caption).splitlines()[0] == f"§ blocksworld: {words}."
    assert not any("§" in note for note in success_table(build_results(realistic())).notes)


def test_models_whose_weights_are_not_those_of_their_name_are_named_under_every_table() -> None:
    given, words = realistic(), "a model with its weights rounded to 4 bits"
    results = build_results(replace(given, arms=[replace(given.arms[0], weights=words), *given.arms[1:]]))
    for shown in (success_table(results), detail_table(results), verdict_table(results)):
        assert f"Weights: {given.arms[0].name} start from {words}." in shown.notes, shown.title
    cells = [summarise([], SPECS["blocksworld"], 1, 0.02)]
    terminal = evaluation_table({"base": cells}, weights={"base": words, "other": None})
    assert str(terminal.caption).splitlines()[-1] == f"Weights: base start from {words}."


def test_how_far_a_selector_agrees_with_the_critical_one_stands_in_the_table() -> None:
    results = build_results(realistic())
    shown = selector_table(results)
    place = [column.title for column in shown.columns].index("gold")
    assert (shown.columns[place].group, [row[place].text for row in shown.rows]) == ("as, %", ["–", "0.0", "50.0"])


def test_overlap_is_counted_by_id_and_by_first_observation() -> None:
    seen = [trajectory("maze", 3), trajectory("maze", 100)]
    twin = Trajectory("maze/maze_200", "maze", "maze_200", conversation("maze", "maze_5", 2))
    given = report_input(arm("gold", {"maze": 1}), trajectories=[*seen, twin], selections={})
    [row] = build_results(given)["checks"]
    assert row == {
        "env": "maze",
        "train_tasks": 3,
        "test_tasks": 40,
        "shared_ids": 1,
        "shared_first_observations": 2,
        "distinct_first_observations": 40,
    }
    caveats = build_results(given)["verdict"]["caveats"]
    assert "1 of 40 test tasks of maze were trained on: success there shows memory, not skill." in caveats


def test_paired_differences_by_hand() -> None:
    # 10 wins, 2 losses, 28 ties: centre 8/42, variance 13/42 - centre², t(39) = 2.0227
    found = paired_difference([1.0] * 10 + [-1.0] * 2 + [0.0] * 28)
    assert found.value == 0.2
    assert (found.low, found.high) == pytest.approx((0.02733, 0.35362), abs=1e-5)
    assert paired_difference([0.0] * 75).high > 0.02  # agreement is no proof of equality
    assert paired_difference([1.0] * 4).limits == [-1.0, 1.0]


def test_averages_keep_skew() -> None:
    mean = average([Interval(0.2, 0.1, 0.4), Interval(0.6, 0.6, 0.6)])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.4, 0.35, 0.5))


def test_an_arm_is_held_against_the_control_that_saw_as_much() -> None:
    training = {"selector": "matched_random", "reference": "gold"}
    arms = [
        arm("gold", {"maze": 30}, selector="gold"),
        arm("gold-random", {"maze": 20}, **training),
        arm("long", {"maze": 25}, selector="gold", selection="gold", match_loss_tokens=True),
        arm("long-random", {"maze": 15}, **training, match_loss_tokens=True),
    ]
    statements = build_results(report_input(*arms))["verdict"]["statements"]
    assert {(s["arm"], s["against"]) for s in statements} == {("gold", "gold-random"), ("long", "long-random")}


@pytest.mark.parametrize(
    ("gold_wins", "random_wins", "outcome", "words"),
    [
        (30, 10, "better", "gold is better than random on maze: +50.0 points (95 % interval +3"),
        (10, 30, "worse", "gold is worse than random on maze: −50.0 points (95 % interval −6"),
        (21, 20, "none", "No difference between gold and random is shown here on maze: +2.5 points"),
    ],
)
def test_the_verdict_says_what_the_interval_says(gold_wins: int, random_wins: int, outcome: str, words: str) -> None:
    given = report_input(
        arm("gold", {"maze": gold_wins}, selector="gold"), arm("random", {"maze": random_wins}, selector="random")
    )
    verdict = build_results(given)["verdict"]
    [said] = verdict["statements"]
    assert said["outcome"] == outcome
    assert said["sentence"].startswith(words)
    assert said["sentence"].endswith("40 tasks).")
    assert ("includes 0" in said["sentence"]) == (outcome == "none")
    first, second = verdict["headline"]
    if outcome == "none":
        assert first == "On maze (held-in), no difference of gold from random is shown."
        assert second.startswith("On held-in tasks, gold does not beat random steps here")
        assert second.endswith("That the choice of critical steps helps is not shown.")
    else:
        assert first == f"On maze (held-in), gold is {outcome} than random."
        verb = {"better": "beats", "worse": "does worse than"}[outcome]
        assert second.startswith(f"On held-in tasks, gold {verb} random steps: ")


def test_the_headline_sums_up_groups() -> None:
    verdict = build_results(realistic())["verdict"]
    scopes = [(s["against"], s["scope"]) for s in verdict["statements"]]
    assert scopes[:4] == [("base", s) for s in ("maze", "wordle", "held-in average", "blocksworld")]
    pooled = verdict["statements"][2]
    assert (pooled["difference"], pooled["tasks"], pooled["outcome"]) == (0.475, 80, "better")
    assert verdict["headline"][0] == (
        "On the held-in environments, gold is better than base; no difference from random is shown."
    )
    assert verdict["headline"][2] == "On blocksworld (held-out), no difference of gold from base and random is shown."
    assert any(sentence.startswith("Every arm was trained once.") for sentence in verdict["caveats"])


def test_that_one_base_was_made_here_is_said() -> None:
    said = "All arms start from one base model, made here."
    for made in (True, False):
        caveats = build_results(replace(realistic(), made_base=made))["verdict"]["caveats"]
        assert any(sentence.startswith(said) for sentence in caveats) == made


def test_differences_are_paired_and_leave_infrastructure_out() -> None:
    ours, theirs = arm("gold", {"maze": 40}, selector="gold"), arm("base", {"maze": 40})
    failed = [episode("base", "maze", t, False, StopReason.ENV_ERROR) for t in range(10)]
    theirs = Arm("base", "b", None, None, None, None, None, [*failed, *theirs.episodes[10:]])
    results = build_results(report_input(ours, theirs))
    [said] = results["verdict"]["statements"]
    assert (said["tasks"], said["difference"], said["outcome"]) == (30, 0.0, "none")
    cell = results["arms"][1]["environments"][0]
    assert (cell["n"], cell["success"], cell["flagged"]) == (30, 1.0, True)
    assert cell["excluded"]["env_error"] == 10
    assert "base on maze" in results["verdict"]["caveats"][-1]
    shown = success_table(results).rows[1][1]
    assert (shown.text, shown.flagged) == ("100.0", True)


def test_rivals_start_from_the_same_model_and_have_the_same_budget() -> None:
    wins = {"maze": 20, "wordle": 20}
    arms = [
        arm("gold", wins, selector="gold", ratio=0.3),
        arm("all", wins, selector="all"),
        arm("random", wins, selector="random", ratio=0.3),
        arm("random-10", wins, selector="random", ratio=0.1),
        arm("mistral-all", wins, selector="all", start="mistral"),
        arm("mistral", wins, start="mistral"),
        arm("base", wins),
    ]
    statements = build_results(report_input(*arms))["verdict"]["statements"]
    assert {s["against"] for s in statements} == {"all", "random", "base"}


def test_every_selector_is_judged_beside_its_own_control_and_the_best_comes_first() -> None:
    arms = [
        arm("base", {"maze": 5}),
        arm("all", {"maze": 30}, selector="all"),
        arm("gold", {"maze": 10}, selector="gold", ratio=0.3),
        arm("gold-random", {"maze": 10}, selector="matched_random", reference="gold"),
        arm("rest", {"maze": 2}, selector="complement", ratio=0.3, reference="gold"),
        arm("value", {"maze": 25}, selector="value"),
        arm("value-random", {"maze": 8}, selector="matched_random", reference="value"),
        arm("far", {"maze": 9}, selector="value", start="other", selection="value"),
        arm("far-random", {"maze": 9}, selector="matched_random", reference="value", start="other"),
    ]
    results = build_results(report_input(*arms))
    statements, headline = results["verdict"]["statements"], results["verdict"]["headline"]
    assert list(dict.fromkeys(s["arm"] for s in statements)) == ["value", "gold", "far"]
    pairs = {(s["arm"], s["role"]): s["against"] for s in statements}
    assert pairs == {
        **{("value", "start"): "base", ("value", "all"): "all", ("value", "random"): "value-random"},
        **{("gold", "start"): "base", ("gold", "all"): "all", ("gold", "random"): "gold-random"},
        **{("gold", "rest"): "rest", ("far", "random"): "far-random"},
    }
    assert headline[0] == "On maze (held-in), value is better than base and value-random and worse than all."
    assert headline[1].startswith("On held-in tasks, value beats random steps (value-random): +42.5 points")
    assert headline[2] == (
        "On maze (held-in), gold is better than base and rest and worse than all; "
        "no difference from gold-random is shown."
    )
    assert len(headline) == 4
    assert any(caveat.startswith("value stands first for it did best") for caveat in results["verdict"]["caveats"])
    table = verdict_table(results)
    assert [cell.text for cell in table.rows[0]] == ["value", "maze", "+50.0", "−12.5", "+42.5", "–"]
    assert table.notes[0] == "Random steps: value-random for value, gold-random for gold, far-random for far."


def test_without_a_critical_arm_nothing_is_claimed() -> None:
    verdict = build_results(report_input(arm("base", {"maze": 3})))["verdict"]
    assert verdict["statements"] == []
    assert verdict["headline"] == ["No arm `gold` and rival of it played the same tasks, so nothing can be said."]


def test_tables_mark_the_best_and_name_the_groups() -> None:
    results = build_results(realistic())
    table = success_table(results)
    assert table.groups == [("", 1), ("held in", 3), ("held out", 1), ("loss, %", 2)]
    assert [column.title for column in table.columns][1:5] == ["maze", "wordle", "average", "blocksworld"]
    assert [row[2].best for row in table.rows] == [False, True, False]
    assert table.strong == 1
    assert [cell.tone for cell in verdict_table(results).rows[0]] == ["", "", "better", "no difference shown"]
    console = Console(width=100, record=True, file=io.StringIO())
    print_tables(results, console)
    text = console.export_text()
    assert "[60–86]" in text
    assert "gold is better than base" in text
    assert "Arm: a model fine-tuned on the steps of one selector. Held in: " in text


def test_a_table_wider_than_the_screen_is_turned() -> None:
    results = build_results(realistic())
    texts = []
    for width in (100, 40):
        console = Console(width=width, record=True, file=io.StringIO())
        print_tables(results, console)
        texts.append(console.export_text().split("Selectors")[0])
    assert [text.count("blocksworld") for text in texts] == [1, 1]
    line = next(line.split() for line in texts[1].splitlines() if line.startswith("blocksworld"))
    assert line[1:] == [row[4].text for row in success_table(results).rows]


class _Page(HTMLParser):
    """Collects every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_escapes_text_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    given = realistic()
    hostile = f"gold{SCRIPT}"
    renamed = [Arm(hostile, SCRIPT, a.selector, *[None] * 4, a.episodes) if a.name == "gold" else a for a in given.arms]
    parts = ("source", "digest", "instruction", "acknowledgement", "before", "after")
    hostile_opening = {"maze": dict.fromkeys(parts, IMAGE)}
    given = report_input(*renamed, critical=hostile, recipe=SCRIPT, openings=hostile_opening)
    page = page_of(given, tmp_path)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=http://evil.example/x.png onerror=alert(2)&gt;" in page
    tags = _Page(page).tags
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in tags}
    loaded = {attributes.get("src") or attributes.get("href") for tag, attributes in tags if tag in ("script", "link")}
    assert loaded == {"assets/site.css", *SCRIPTS}
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "results.json", "assets/site.css"))
    assert page.count("http:") == page.count("http://evil.example")
    assert "https:" not in page
    assert "@import" not in page


def test_the_page_shows_how_conversations_open_folded(tmp_path: Path) -> None:
    texts = {"instruction": "Walk out.", "acknowledgement": "Gladly.", "before": "Rules <1>.\n", "after": "\nGo!"}
    maze = {"source": "training data (2 of 2 trajectories)", "digest": "0123abcd", **texts}
    page = page_of(report_input(openings={"maze": maze}), tmp_path)
    shown = page[page.index('class="openings"') :].partition("</details>")[0]
    assert "<b>maze</b>: training data (2 of 2 trajectories) <code>0123abcd</code></summary>" in shown
    assert "<pre>Walk out.</pre>" in shown
    assert "<pre>Gladly.</pre>" in shown
    assert "<pre>Rules &lt;1&gt;.\n<i>what the environment tells of the task</i>\nGo!</pre>" in shown
    assert 'class="openings"' not in page_of(report_input(), tmp_path / "old")


def test_the_page_says_how_long_it_took(tmp_path: Path) -> None:
    assert "<dt>train</dt><dd>2 min 16 s</dd>" in page_of(realistic(), tmp_path)


def test_two_runs_over_the_same_records_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        given = realistic()
        where = write_report(RunFolder(str(tmp_path / name)), build_results(given), site_of(given))
        assert where == str(tmp_path / name / "index.html")
    one, two = (
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")
    )
    assert one == two
    assert {"index.html", "results.json", "data/meta.js", "assets/app.js"} <= {str(path) for path in one}
    assert RunFolder(str(tmp_path / "one")).read_json("results.json") == build_results(realistic())


def test_an_empty_run_still_has_a_page(tmp_path: Path) -> None:
    assert "nothing can be said" in page_of(report_input(trajectories=[], selections={}), tmp_path)


@pytest.mark.parametrize(("seconds", "words"), [(47.6, "48 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_points_are_signed() -> None:
    assert [points(x) for x in (0.1, -0.051, 0.0001, -0.0001)] == ["+10.0", "−5.1", "0.0", "0.0"]


def test_a_run_without_preflight_says_so(tmp_path: Path) -> None:
    assert "left out" in page_of(report_input(preflight="left out (--skip-preflight)"), tmp_path / "skipped")
    assert "Preflight" not in page_of(report_input(), tmp_path / "old")
