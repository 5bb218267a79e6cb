"""From data in an object store to a trained model there, and on to whatever plays it: every path may be a URI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.address import below
from atlas_ray.config import DataConfig, EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.engine import server_options
from atlas_ray.models.source import local_model, longest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.status import status_table
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.file import FileSelector
from atlas_ray.selection.llm.tokens import counter
from atlas_ray.selection.perplexity.torch_engine import TorchScorer
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.sources import watch_sources
from atlas_ray.training.memory_check import check_memory
from atlas_ray.training.metrics import METRICS
from atlas_ray.training.settings import LoraConfig
from atlas_ray.training.stage import train_agent
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected
from tests.support.store import Store
from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE, a_config, write_base


def put(store: Store, folder: Path, path: str) -> str:
    """Uploads a folder; its URI."""
    for file in folder.rglob("*"):
        if file.is_file():
            store.put(f"{path}/{file.relative_to(folder)}", file.read_bytes())
    return store.uri(path)


@pytest.fixture
def base(store: Store, tmp_path: Path) -> str:
    """A model's URI."""
    return put(store, Path(write_base(tmp_path / "base")), "bucket/models/base")


def data_in(store: Store) -> DataConfig:
    """The trajectories as a user's own file."""
    rows = [
        {
            "item_id": t.item_id,
            "messages": [{"role": m.role, "content": m.content} for m in t.messages],
        }
        for t in TRAJECTORIES_HERE
    ]
    store.put("bucket/data/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return DataConfig(path=store.uri("bucket/data"), format="openai")


@pytest.mark.slow
def test_a_model_trained_in_a_store_is_found_there_by_all_that_use_it(
    ray_cluster: None, store: Store, base: str, tmp_path: Path
) -> None:
    data = data_in(store)
    assert [t.id for t in read_trajectories(data)] == [t.id for t in TRAJECTORIES_HERE]
    selection = RunFolder(store.uri("bucket/runs/selection"))
    selection.begin(SelectConfig(data=data), stage="select")
    selection.write_shard(SELECTIONS, SELECTIONS_HERE)
    selection.finish()
    config = a_config(run=store.uri("bucket/runs/gold"), model=base, data=data, selection=selection.uri)
    train_agent(config)
    there = RunFolder(config.run)

    here = config.model_copy(update={"run": str(tmp_path / "run"), "model": str(tmp_path / "base")})
    train_agent(here)
    trained = Path(local_model(below(config.run, "model")))
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert (trained / "model.safetensors").read_bytes() == weights
    curve = [json.loads(line)["loss"] for line in there.read_bytes(METRICS).decode().splitlines()]
    assert curve == [json.loads(line)["loss"] for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert store.read("bucket/models/base/model.safetensors") == ["bucket/models/base/model.safetensors"]

    table = status_table([store.uri("bucket/runs")])
    assert [*table.columns[2].cells] == ["finished", "finished"]
    arguments, _ = server_options(below(config.run, "model"), EngineConfig())
    assert arguments[arguments.index("--model") + 1] == str(trained)
    assert not [path for path in trained.rglob("*.json") if str(tmp_path) in path.read_text()]  # no node's own paths


@pytest.mark.parametrize(
    "use",
    [
        ChatFormat.load,
        longest,
        lambda model: counter(None, model)([{"role": "user", "content": "go left"}]),
        lambda model: check_memory(a_config(model=model)),
    ],
    ids=["chat template", "context", "token counter", "memory estimate"],
)
def test_what_reads_no_weights_fetches_none(use: Callable[[str], Any], base: str, store: Store) -> None:
    assert use(base)
    assert store.read("config.json")
    assert store.read("safetensors") == []


def test_steps_are_scored_by_a_model_in_a_store(base: str, tmp_path: Path) -> None:
    scores = TorchScorer(base).score(TRAJECTORIES_HERE[:2])
    assert scores == TorchScorer(str(tmp_path / "base")).score(TRAJECTORIES_HERE[:2])


def test_errors_name_the_model_as_it_was_given(store: Store, tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    uri = put(store, tmp_path / "base", "bucket/models/plain")
    with pytest.raises(UserError, match=r"the tokenizer of s3://bucket/models/plain.* has no chat template"):
        ChatFormat.load(uri)


@pytest.mark.parametrize("whole", [True, False])
def test_pickles_in_a_store_are_refused_before_they_are_fetched(whole: bool, store: Store) -> None:
    store.put("bucket/models/old/config.json", b"{}")
    store.put("bucket/models/old/pytorch_model.bin", b"cos\nsystem\n")
    with pytest.raises(UserError, match=r"the weights of s3://bucket/models/old.* are a pickle \(pytorch_model.bin\)"):
        local_model(store.uri("bucket/models/old"), whole=whole)
    assert store.read() == []


def test_of_a_model_only_safetensors_and_what_describes_them_are_fetched(store: Store, base: str) -> None:
    for name in ("pytorch_model.bin", "original/consolidated.00.pth", "optimizer.pt"):
        store.put(f"bucket/models/base/{name}", b"cos\nsystem\n")
    found = {str(path.relative_to(local_model(base))) for path in Path(local_model(base)).rglob("*")}
    assert "model.safetensors" in found
    assert not any(name.endswith((".bin", ".pth", ".pt")) for name in found)


def test_code_of_a_model_in_a_store_is_not_run(store: Store) -> None:
    store.put("bucket/models/own/config.json", b'{"auto_map": {"AutoConfig": "own.Config"}}')
    with pytest.raises(UserError, match=r"s3://bucket/models/own.* brings code of its own \(config.json: auto_map\)"):
        ChatFormat.load(store.uri("bucket/models/own"))


@pytest.mark.slow
def test_an_adapter_names_its_base_where_everyone_finds_it(ray_cluster: None, store: Store, base: str) -> None:
    pytest.importorskip("peft")
    lora = LoraConfig(rank=2, export="adapter")
    config = a_config(run=store.uri("bucket/runs/lora"), model=base, data=data_in(store), lora=lora, epochs=1)
    train_agent(config)
    adapter = Path(local_model(below(config.run, "model")))
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == base


def test_an_unusable_row_is_named_by_its_uri(store: Store) -> None:
    store.put("bucket/data/more/train.jsonl", b"{}\n")
    rejected: list[Rejected] = []
    read_trajectories(DataConfig(path=store.uri("bucket/data")), rejected)
    assert [row.file for row in rejected] == [store.uri("bucket/data/more/train.jsonl")]
    store.put("bucket/broken.json", b"[")
    with pytest.raises(UserError, match=r"^s3://bucket/broken\.json.* is not valid JSON"):
        read_trajectories(DataConfig(path=store.uri("bucket/broken.json")))


def test_a_table_of_selections_in_a_store(store: Store, tmp_path: Path) -> None:
    store.put("bucket/steps.csv", b"trajectory_id,steps\n")
    selector = FileSelector(name="file", path=store.uri("bucket/steps.csv"))
    folder = RunFolder(str(tmp_path))
    watch_sources(folder, selector, str(tmp_path))
    store.put("bucket/steps.csv", b"trajectory_id,steps\nmaze/maze_1,1\n")
    with pytest.raises(UserError, match=r"steps\.csv.* changed since"):
        watch_sources(folder, selector, str(tmp_path))
