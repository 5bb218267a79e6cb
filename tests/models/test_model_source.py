"""A model folder is looked at before anything is loaded: no pickles, and no code that nobody asked for."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from atlas_ray.config import DataConfig, EngineConfig
from atlas_ray.errors import UserError
from atlas_ray.models.chat import ChatFormat
from atlas_ray.models.engine import EngineSpec, _options, server_options
from atlas_ray.models.source import TRUST_VARIABLE, check_model, longest, weights
from atlas_ray.training.settings import TrainConfig
from atlas_ray.types import Message, Trajectory


class Bomb:
    """What a pickle may hold: a call, made on loading."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
        return os.mkdir, (self.file,)


async def engine(model: str) -> None:
    await EngineSpec("a", model, EngineConfig()).build()


async def perplexity(model: str) -> None:
    from atlas_ray.selection.perplexity.torch_engine import TorchScorer

    TorchScorer(model)


async def training(model: str) -> None:
    from atlas_ray.training.stage import train

    talk = (Message("user", "x"), Message("assistant", "y", True))
    train(TrainConfig(model=model, data=DataConfig(path="none")), [Trajectory("a/1", "a", "1", talk)], None)


@pytest.fixture
def folder(tiny_models: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models[0], tmp_path / "model"))


@pytest.mark.parametrize("load", [engine, perplexity, training])
async def test_pickled_weights_are_refused_before_anything_is_loaded(load: Callable[..., Any], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))
    with pytest.raises(UserError, match=r"are a pickle \(pytorch_model.bin\), which can run any code"):
        await load(str(folder))
    assert not (folder / "exploded").exists()


async def test_beside_safetensors_a_pickle_is_left_alone(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(folder / "exploded"))))
    await perplexity(str(folder))
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("load", [engine, perplexity, training])
async def test_code_of_a_model_is_not_run(
    load: Callable[..., Any], file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(
        json.dumps(settings | {"auto_map": {"AutoConfig": "own.Config", "AutoTokenizer": ["own.T"]}})
    )
    (folder / "own.py").write_text(f"import os; os.mkdir({str(folder / 'exploded')!r})")
    with pytest.raises(UserError, match=f"brings code of its own .{file}: auto_map") as refused:
        await load(str(folder))
    assert f"{TRUST_VARIABLE}=1" in str(refused.value)
    assert not (folder / "exploded").exists()


def test_trust_is_asked_for_in_the_environment_and_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(TRUST_VARIABLE, raising=False)
    assert weights() == {"use_safetensors": True, "trust_remote_code": False}
    arguments, _ = server_options(str(folder), EngineConfig())
    assert "--no-trust-remote-code" in arguments
    assert arguments[arguments.index("--load-format") + 1] == "safetensors"
    monkeypatch.setenv(TRUST_VARIABLE, "1")
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "own.Config"}}')
    with caplog.at_level(logging.WARNING):
        check_model(str(folder))
        assert weights()["trust_remote_code"] is True
    assert "runs with all rights of this process" in caplog.text
    assert not any(
        "trust" in key for key in {**TrainConfig.model_fields, **EngineConfig.model_fields}
    )  # nor by a recipe


def test_other_folders_are_left_to_the_loaders(tmp_path: Path) -> None:
    check_model("some/hub-id")
    (tmp_path / "config.json").write_text("[")
    check_model(str(tmp_path))
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        ChatFormat.load(str(tmp_path))


def test_an_engine_on_cpu_plays_wide_models_in_bfloat16_where_the_cpu_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in (64, 576):
        LlamaConfig(hidden_size=width).save_pretrained(tmp_path / str(width))

    def played(width: int, **options: Any) -> str:
        return _options(str(tmp_path / str(width)), EngineConfig(**options), cpu=True)["dtype"]

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert (played(64), played(576), played(576, dtype="float32")) == ("float32", "bfloat16", "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_f": True})
    assert (played(576), played(576, dtype="bfloat16")) == ("float32", "bfloat16")
    assert _options(str(tmp_path / "576"), EngineConfig(), cpu=False)["dtype"] == "auto"


def test_an_engine_gets_no_more_context_than_its_model_was_made_for(tmp_path: Path) -> None:
    config = LlamaConfig(max_position_embeddings=1024)
    config.save_pretrained(tmp_path / "plain")
    config.rope_parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    config.save_pretrained(tmp_path / "stretched")
    asked = EngineConfig().capped()
    for name, lengths in (("plain", (1024, 512)), ("stretched", (4096, 512))):
        model = str(tmp_path / name)
        found = [_options(model, engine, cpu=True)["max_model_len"] for engine in (asked, asked.capped(512))]
        assert tuple(found) == lengths
        assert longest(model) == lengths[0]
    assert _options(str(tmp_path / "plain"), EngineConfig(), cpu=False)["max_model_len"] is None
    (tmp_path / "plain" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the configuration of"):
        longest(str(tmp_path / "plain"))
