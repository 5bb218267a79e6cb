"""Models that cannot be loaded: an empty cell with its reason, while the others go on; tried again by the same run."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoTokenizer

from atlas_ray.config import validate
from atlas_ray.errors import AtlasError, ModelFailure, ModelUnavailable, PlacementError, UserError
from atlas_ray.evaluation import stage, verification
from atlas_ray.evaluation.settings import EvaluateConfig, VerifyConfig
from atlas_ray.models.tiny import CHAT_TEMPLATE
from atlas_ray.recipes import running
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.paper_runs import gather_paper
from atlas_ray.recipes.report import gather, report_recipe
from atlas_ray.recipes.scheduling import Stage
from atlas_ray.recipes.settings import load_recipe
from atlas_ray.report.paper.tables import paper_tables
from atlas_ray.report.results import build_results
from atlas_ray.report.tables import success_table
from atlas_ray.report.terminal import evaluation_table
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import failure_of, loading
from atlas_ray.runs.status import status_table
from atlas_ray.runs.tables import EPISODES, SELECTIONS, TRAJECTORIES
from atlas_ray.types import Selection
from tests.support.evaluations import UNUSABLE, Scripted, config, experts


@pytest.fixture
def scripted(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", Scripted)


def text_of(table: Any) -> str:
    out = Console(file=io.StringIO(), width=200)
    out.print(table)
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.usefixtures("scripted")
def test_the_others_are_evaluated_and_the_same_command_tries_again(tmp_path: Path) -> None:
    models = {"a": str(tmp_path / "refused"), "good": "expert", "b": str(tmp_path / "jammed"), "poor": "novice"}
    settings = config(tmp_path / "run", models)
    with pytest.raises(ModelUnavailable, match="2 models could not be loaded") as caught:
        stage.evaluate(settings)
    assert caught.value.exit_code == 1
    assert "a: it has no chat template (set one)" in str(caught.value)
    assert "b: the engine does not start: out of memory" in str(caught.value)
    assert {arm: [r.n for r in found] for arm, found in stage.played(settings).items()} == {
        "good": [8, 6],
        "poor": [8, 6],
    }
    why = {"a": "it has no chat template", "b": "the engine does not start: out of memory"}
    assert stage.failures(settings) == why
    assert {(c.ours, c.theirs) for c in stage.comparisons(settings)} == {("poor", "good")}
    shown = text_of(evaluation_table(stage.played(settings), failures=stage.failures(settings)))
    assert "a could not be made, loaded or played: it has no chat template" in shown
    assert shown.count("failed") == 2
    listed = text_of(status_table([str(tmp_path / "run")]))
    assert "it has no chat template" in listed
    assert listed.count("failed") == 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "good").rglob("*")}

    for name in UNUSABLE:
        (tmp_path / name).touch()  # now they are there
    assert {arm: [r.n for r in found] for arm, found in stage.evaluate(settings).items()} == {
        arm: [8, 6] for arm in models
    }
    assert stage.failures(settings) == {}
    assert "failed" not in text_of(status_table([str(tmp_path / "run")]))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "good").rglob("*")} == before


@pytest.mark.usefixtures("scripted")
def test_what_concerns_every_model_ends_the_evaluation(tmp_path: Path) -> None:
    absent = str(tmp_path / "jammed")
    with pytest.raises(AtlasError, match="no engine starts, with whatever model: 2 models") as caught:
        stage.evaluate(config(tmp_path / "all", {"a": absent, "b": absent}))
    assert not isinstance(caught.value, ModelUnavailable)
    with pytest.raises(PlacementError, match="cannot place 99 engine replicas"):
        stage.evaluate(config(tmp_path / "room", {"good": "expert"}, engine={"replicas": 99}))
    assert stage.failures(config(tmp_path / "room", {"good": "expert"})) == {}


@pytest.mark.usefixtures("ray_cluster")
def test_a_verification_whose_model_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.models.engine.EngineSpec", Scripted)
    data = asyncio.run(experts(2))
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, data)
    chosen = [Selection(t.id, t.env, t.item_id, "x", None, len(t.steps), (2,)) for t in data]
    RunFolder(str(tmp_path / "selection")).write_shard(SELECTIONS, chosen)
    values = {"run": str(tmp_path / "run"), "data": {"path": str(tmp_path / "data")}}
    values["model"] = str(tmp_path / "jammed")
    settings = validate(VerifyConfig, values | {"selection": str(tmp_path / "selection")})
    with pytest.raises(ModelUnavailable, match="jammed: the engine does not start"):
        verification.verify(settings)
    assert failure_of(RunFolder(settings.run)) == "the engine does not start: out of memory"
    (tmp_path / "jammed").touch()
    assert verification.verify(settings)
    assert failure_of(RunFolder(settings.run)) is None


RECIPE: dict[str, Any] = {
    "name": "small",
    "expert": {"envs": ["maze"], "tasks": 4},
    "base": "org/base",
    "models": {"agentlm": "org/agentlm"},
    "arms": {"gold": {"name": "gold"}},
    "train": {"max_length": 1024},
    "evaluate": {"tasks": {"maze": 3, "wordle": 2}},
    "verify": {},
    "tables": {"table1": {"llama-3.1-8b-instruct": "base", "agentlm-7b": "agentlm", "atlas": "gold"}, "table6": {}},
}


@pytest.fixture
def evaluated(tmp_path: Path) -> Recipe:
    """A recipe in which base and gold were played, and two models could not be loaded: agentlm, and verify's."""
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(RECIPE | {"runs": str(tmp_path)}))
    recipe = Recipe(load_recipe(str(file)))
    RunFolder(recipe.expert.path).write_shard(TRAJECTORIES, asyncio.run(experts(2)))
    evaluation, verify = recipe.evaluations[""], recipe.verify[0]
    for arm in evaluation.models:
        folder = RunFolder(evaluation.run).child(arm)
        folder.begin(evaluation, stage="evaluate")
        if arm == "agentlm":
            fail(folder, arm, UserError("the tokenizer of org/agentlm has\nno chat template", "set one"))
        else:
            folder.finish(seconds=1.0, context=1024 if arm == "gold" else 512)
    RunFolder(verify.run).begin(verify, stage="verify")
    fail(RunFolder(verify.run), "m", ModelFailure("the engine does not start with org/base"))
    RunFolder(recipe.train["gold"].run).finish(seconds=1.0, step_fraction=0.3)
    return recipe


def fail(folder: RunFolder, model: str, error: AtlasError) -> None:
    with pytest.raises(ModelUnavailable), loading(folder, model):
        raise error


def test_the_report_has_empty_cells_with_their_reasons(evaluated: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    given = gather(evaluated)
    assert "agentlm" not in capsys.readouterr().err  # it is not merely unfinished
    results = build_results(given)
    why = "the tokenizer of org/agentlm has no chat template"
    assert results["failures"] == {"agentlm": why, "verify": "the engine does not start with org/base"}
    found = {arm["name"]: arm for arm in results["arms"]}
    assert list(found) == ["base", "gold", "agentlm"]
    assert [(cell["n"], cell["success"], cell["flagged"]) for cell in found["agentlm"]["environments"]] == [
        (0, None, False),
        (0, None, False),
    ]
    shown = success_table(results)
    assert [cell.text for cell in shown.rows[2]][:3] == ["agentlm", "–", "–"]
    assert f"agentlm could not be made, loaded or played, so it has no figures: {why}" in shown.notes
    assert "Context: 1,024 tokens; less, for they were made for less: base 512." in shown.notes
    assert any(
        "could not be made, loaded or played: agentlm and verify" in said for said in results["verdict"]["caveats"]
    )


def test_the_papers_tables_have_empty_cells_with_their_reasons(evaluated: Recipe) -> None:
    tables = {table.name: table for table in paper_tables(gather_paper(evaluated))}
    row = next(row for row in tables["table1"].rows if row.key == "agentlm-7b")
    assert all(cell.ours is None for cell in row.cells)
    why = "it could not be made, loaded or played: the tokenizer of org/agentlm has no chat template"
    assert f"Cells of `agentlm` are empty, for {why}" in tables["table1"].notes
    assert any("the engine does not start with org/base" in note for note in tables["table6"].notes)
    assert not any("could not be" in note for note in tables["table2"].notes)


def test_the_report_is_built_of_what_is_there(evaluated: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(report_recipe(evaluated))
    assert "has no chat template" in page.read_text()
    assert "has no chat template" in (page.parent / "tables" / "table1.md").read_text()
    assert "could not be made, loaded or played" in " ".join(capsys.readouterr().out.split())


def test_a_recipe_goes_on_to_its_report_and_fails_at_the_end(
    evaluated: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def step(name: str, error: AtlasError | None = None) -> Stage:
        def run() -> None:
            ran.append(name)
            if error is not None:
                raise error

        return Stage(name, "words", run)

    def planned(*_: Any, **__: Any) -> tuple[Sequence[Stage], int]:
        lost = ModelUnavailable("1 model could not be loaded:\n  a: no template", "mend that")
        return [step("evaluate", lost), step("verify", ModelUnavailable("b: out of memory")), step("report")], 1

    monkeypatch.setattr(running, "stages_for", planned)
    with pytest.raises(AtlasError, match=r"(?s)2 stages failed.*a: no template.*b: out of memory.*mend that") as caught:
        running.run(evaluated, jobs=1, skip_preflight=True)
    assert (ran, caught.value.exit_code) == (["evaluate", "verify", "report"], 1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_on_real_engines_a_template_is_brought_along_and_a_missing_model_left_out(
    tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in Path(tiny_models[1]).iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    models = {
        "good": tiny_models[0],
        "missing": str(tmp_path / "nowhere"),
        "bare": str(bare),
        "dressed": {"path": str(bare), "chat_template": CHAT_TEMPLATE, "max_model_len": 512},
        "plain": tiny_models[1],
    }
    values = {"run": str(tmp_path / "run"), "models": models, "tasks": {"maze": 2}, "max_tokens": 8}
    settings = validate(EvaluateConfig, values)
    with pytest.raises(ModelUnavailable, match=r"(?s)missing: cannot load a tokenizer.*bare: .* has no chat template"):
        stage.evaluate(settings)
    folders = {arm: RunFolder(settings.run).child(arm) for arm in models}
    assert {arm: (f.finished or {}).get("context") for arm, f in folders.items()} == {
        "good": 1024,
        "missing": None,
        "bare": None,
        "dressed": 512,
        "plain": 1024,
    }
    # the same weights with the same template: the same turns
    dressed, plain = ([e.messages for e in folders[arm].read(EPISODES)] for arm in ("dressed", "plain"))
    assert [turns[:6] for turns in dressed] == [turns[:6] for turns in plain]
    assert len(dressed) == 2
