"""An export: its files, what it counts and refuses, how it goes on, and that training reads the same of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from atlas_ray.cli.main import app
from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.data.examples import build_examples
from atlas_ray.training.export import stage
from atlas_ray.training.export.stage import export, plan_lines
from atlas_ray.training.export.writer import EXPORTED
from atlas_ray.training.settings import ExportConfig
from atlas_ray.trajectories import index
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Selection
from tests.support.rows import write_agenttraj
from tests.support.tiny import REWRITING_TEMPLATE, tiny_llama, tiny_tokenizer
from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE, a_config, write_base

CHAT = ChatFormat(tiny_tokenizer())
TEXTS = ("agenttraj", "sharegpt", "openai", "axolotl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a finished selection of it, and a base model."""
    monkeypatch.chdir(tmp_path)
    write_agenttraj("data.json", TRAJECTORIES_HERE)
    write_selection(SELECTIONS_HERE)
    write_base(tmp_path / "base")
    return tmp_path


def write_selection(selections: list[Selection], name: str = "select") -> None:
    folder = RunFolder(name)
    config = SelectConfig.model_validate({"data": {"path": "data.json"}, "selector": {"name": "gold"}})
    folder.begin(config, stage="select", clean=True)
    folder.write_shard(SELECTIONS, selections)
    folder.finish()


def config_of(format_: str, **options: Any) -> ExportConfig:
    plain = {"data": {"path": "data.json"}, "selection": "select", "out": f"out-{format_}", "format": format_}
    tokens = {"model": "base"} if format_ in ("trl", "tinker", "parquet") else {}
    return ExportConfig.model_validate(plain | tokens | options)


def atlas(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def expected(here: Path) -> list[tuple[str, list[int], list[bool]]]:
    """What training on the data with the selection makes."""
    made = build_examples(
        a_config(model="base"), Corpus.of(TRAJECTORIES_HERE, CHAT), TRAJECTORIES_HERE, SELECTIONS_HERE
    )
    return sorted((e.trajectory_id, e.ids.tolist(), e.loss_mask.tolist()) for e in made.examples)


@pytest.mark.parametrize("format_", TEXTS)
def test_training_on_the_rows_alone_has_the_masks_of_training_on_the_selection(here: Path, format_: str) -> None:
    export(config_of(format_))
    found = read_trajectories(DataConfig(path=f"out-{format_}/data"))
    made = build_examples(a_config(model="base"), Corpus.of(found, CHAT), found, None)
    masks = sorted((e.trajectory_id, e.ids.tolist(), e.loss_mask.tolist()) for e in made.examples)
    wanted = expected(here)
    if format_ == "openai":  # its rows have no ids
        masks, wanted = (sorted(mask[1:] for mask in side) for side in (masks, wanted))
    assert masks == wanted


@pytest.mark.parametrize("format_", TEXTS)
def test_training_on_the_rows_alone_has_the_loss_of_training_on_the_selection(
    here: Path, format_: str, ray_cluster: None
) -> None:
    from atlas_ray.training.metrics import read_metrics
    from atlas_ray.training.stage import train_agent

    export(config_of(format_))
    common: dict[str, Any] = {"model": "base", "global_batch_size": 7, "epochs": 3, "micro_batch_tokens": 2000}
    ours = a_config(run="ours", data=DataConfig(path="data.json"), selection="select", **common)
    theirs = a_config(run="theirs", data=DataConfig(path=f"out-{format_}/data"), **common)
    losses = []
    for config in (ours, theirs):
        train_agent(config, sample=False)
        losses.append([step["loss"] for step in read_metrics(RunFolder(config.run))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert len(losses[0]) == 3
    assert losses[0][2] < losses[0][0]


def test_rows_of_tokens_are_the_examples_of_training(here: Path) -> None:
    for name in ("trl", "parquet"):
        export(config_of(name))
    trl = pq.read_table("out-trl/data").to_pylist()
    labels = sorted((row["id"], row["input_ids"], [label != -100 for label in row["labels"]]) for row in trl)
    assert labels == expected(here)
    rows = pq.read_table("out-parquet/data").to_pylist()
    assert sorted((row["id"], row["input_ids"], row["loss_mask"]) for row in rows) == expected(here)


def test_the_manifest_says_what_was_exported_of_what(here: Path) -> None:
    left_out = [SELECTIONS_HERE[0], *SELECTIONS_HERE[2:]]
    left_out[3] = Selection("maze/maze_4", "maze", "maze_4", "gold", 0.3, 6, ())
    write_selection(left_out)
    export(config_of("trl"))
    manifest = json.loads(Path("out-trl/manifest.json").read_text())
    assert manifest["source"] == {"data": "data.json", "selection": "select"}
    assert (manifest["format"], manifest["format_version"]) == ("trl", 1)
    assert len(manifest["chat_template_sha256"]) == 64
    counts, wanted = manifest["counts"], [row for row in expected(here) if row[0] not in ("maze/maze_1", "maze/maze_4")]
    assert (counts["trajectories"], counts["rows"]) == (5, 5)
    assert (counts["without_selection"], counts["without_chosen_steps"]) == (1, 1)
    assert counts["tokens"] == sum(len(ids) for _, ids, _ in wanted)
    assert counts["loss_tokens"] == sum(sum(mask) for _, _, mask in wanted)


def test_the_command_takes_data_and_model_from_a_training_or_a_selection(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder("train").begin(
        a_config(run="train", data=DataConfig(path="data.json"), model="base", selection="select"), stage="train"
    )
    atlas("export", "train", "--format", "trl", "--out", "a")
    assert "rows: a/data (trajectories 7, rows 7" in capsys.readouterr().out
    assert json.loads(Path("a/manifest.json").read_text())["config"]["model"] == "base"
    atlas("export", "select", "--format", "axolotl", "--out", "b")
    assert "trajectories 7" in capsys.readouterr().out
    atlas("export", "--data", "data.json", "--format", "openai", "--out", "c")  # all steps
    steps = sum(len(t.steps) for t in TRAJECTORIES_HERE)
    assert f"steps {steps}" in capsys.readouterr().out
    with pytest.raises(UserError, match="base holds no selection or training"):
        atlas("export", "base", "--format", "trl", "--out", "d")


def test_a_plan_counts_and_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas("export", "select", "--format", "trl", "--model", "base", "--out", "a", "--dry-run")
    said = capsys.readouterr().out
    tokens = sum(len(ids) for _, ids, _ in expected(here))
    assert "7 of 7 trajectories have a chosen step; 7 rows" in said
    assert f"{tokens:,} tokens" in said
    assert not Path("a").exists()
    assert len(plan_lines(config_of("openai"))) == 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"format": "trl", "model": None}, "format: trl holds tokens; name the model"),
        ({"format": "trl", "rows": "step"}, "a row for each sequence; leave rows out"),
        ({"format": "llamafactory", "rows": "trajectory"}, "LLaMA-Factory masks no single turns"),
    ],
)
def test_settings_that_a_trainer_cannot_read_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        config_of(**{"format_": options["format"]} | options)


def test_what_does_not_belong_together_is_refused(here: Path) -> None:
    write_selection([Selection("maze/maze_0", "maze", "maze_0", "gold", 0.3, 9, (1,))])
    with pytest.raises(UserError, match="maze/maze_0 has 2 steps, and another number where it was selected"):
        export(config_of("openai"))
    write_selection([Selection("maze/other", "maze", "maze_0", "gold", 0.3, 9, (1,))])
    with pytest.raises(UserError, match=r"of 7 trajectories in data\.json none has a chosen step"):
        export(config_of("openai"))
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("dear")
    with pytest.raises(UserError, match=r"mine holds files that no export wrote: notes\.txt"):
        export(config_of("openai", out="mine"), clean=True)
    assert Path("mine/notes.txt").read_text() == "dear"


def test_another_export_into_the_same_folder_is_refused_until_it_is_cleaned(here: Path) -> None:
    export(config_of("openai", out="out"))
    with pytest.raises(UserError, match="format: 'openai' -> 'axolotl'"):
        export(config_of("axolotl", out="out"))
    export(config_of("axolotl", out="out"), clean=True)
    assert Path("out/axolotl.yaml").exists()


def test_a_template_that_writes_earlier_turns_anew_needs_a_row_for_each_step(here: Path) -> None:
    tokenizer = tiny_tokenizer(REWRITING_TEMPLATE, "<|im_end|>")
    tiny_llama(len(tokenizer)).save_pretrained("anew")
    tokenizer.save_pretrained("anew")
    with pytest.raises(UserError, match="writes earlier turns anew, so that maze/maze_1 is several sequences"):
        export(config_of("axolotl", model="anew"))
    export(config_of("axolotl", model="anew", rows="step", out="steps"))
    export(config_of("trl", model="anew"))
    chosen = sum(len(s.chosen) for s in SELECTIONS_HERE)
    rows, sequences = (json.loads(Path(f"{o}/manifest.json").read_text())["counts"] for o in ("steps", "out-trl"))
    assert rows["rows"] == sequences["rows"] == chosen
    assert (rows["tokens"], rows["loss_tokens"]) == (sequences["tokens"], sequences["loss_tokens"])


def test_a_row_that_a_form_has_no_place_for_is_counted_with_its_reason(here: Path) -> None:
    row = {"env": "kitchen", "item_id": "kitchen_1"}
    call = {"role": "assistant", "content": "I look.", "tool_calls": [{"name": "look", "arguments": {}}]}
    plain = {"role": "assistant", "content": "Done."}
    turns = [[{"role": "user", "content": "Go."}, reply] for reply in (call, plain)]
    Path("data.jsonl").write_text("".join(json.dumps(row | {"messages": own}) + "\n" for own in turns))
    export(config_of("sharegpt", selection=None, data={"path": "data.jsonl"}))
    counts = json.loads(Path("out-sharegpt/manifest.json").read_text())["counts"]
    assert (counts["trajectories"], counts["refused"]) == (1, 1)
    assert "a text beside its calls" in counts["first_refused"]
    refused = [one.id for one in RunFolder("out-sharegpt").read(EXPORTED) if one.refused]
    assert refused == ["kitchen/kitchen_1"]


@pytest.mark.parametrize("small", [index.SMALL, -1], ids=["here", "by workers"])
def test_a_file_is_written_for_each_block_and_a_stopped_export_goes_on(
    small: int, here: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_BLOCK", 2)
    monkeypatch.setattr(index, "SMALL", small)
    export(config_of("openai"))
    files = sorted(Path("out-openai/data").iterdir())
    assert [file.name for file in files] == [f"0000{n}.jsonl" for n in range(4)]
    whole = {file.name: file.read_bytes() for file in files}
    # as a kill leaves it: a file is missing, and so is what says that it is there
    folder = RunFolder("out-openai")
    told = [one for one in folder.read(EXPORTED) if one.id not in ("maze/maze_2", "maze/maze_3")]
    for name in ("finished.json", "data/00001.jsonl"):
        Path("out-openai", name).unlink()
    for shard in Path("out-openai/exported").iterdir():
        shard.unlink()
    folder.write_shard(EXPORTED, told)
    stamps = {file.name: file.stat().st_mtime_ns for file in files if file.exists()}
    export(config_of("openai"))
    assert {file.name: file.read_bytes() for file in files} == whole
    assert {name: Path("out-openai/data", name).stat().st_mtime_ns for name in stamps} == stamps
    assert folder.finished is not None
    assert folder.finished["rows"] == 7
