"""LoRA: only adapters learn, the merged model is the trained one, a checkpoint holds adapters alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training import loop
from atlas_ray.training.estimate import Flops
from atlas_ray.training.metrics import read_metrics
from atlas_ray.training.model.lora import add_adapters
from atlas_ray.training.settings import LoraConfig, TrainConfig
from tests.support.solo import run_alone
from tests.support.tiny import tiny_llama
from tests.support.training import CPU, SELECTIONS_HERE, TRAJECTORIES_HERE, a_config, curve, the_examples, write_base

peft = pytest.importorskip("peft")
LORA = LoraConfig(rank=4, alpha=8)


def small_steps(config: TrainConfig) -> list[tuple[Any, ...]]:
    return curve(read_metrics(RunFolder(config.run)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_adapters_learn_and_the_base_stays(dtype: str) -> None:
    model, config = tiny_llama(80), a_config(lora=LORA, learning_rate=3e-2, epochs=10, dtype=dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    add_adapters(model, LORA, seed=0)
    module = loop.place_model(model, config, CPU)
    steps: list[dict[str, Any]] = []
    loop.fit(module, loop.make_optimizers(module, config), the_examples(), config, CPU, on_step=steps.append)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.3  # among random embeddings that stay as they are
    now = {n.replace(".base_layer", ""): p for n, p in model.named_parameters() if "lora_" not in n}
    as_computed = {name: weight.to(getattr(torch, dtype)) for name, weight in before.items()}
    torch.testing.assert_close(now, as_computed, rtol=0, atol=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_new_adapters_change_nothing_and_are_drawn_by_seed() -> None:
    plain, adapted, other = tiny_llama(80), tiny_llama(80), tiny_llama(80)
    add_adapters(adapted, LORA, seed=0)
    add_adapters(other, LORA, seed=1)
    ids = torch.arange(5, 40)[None]
    torch.testing.assert_close(adapted(ids).logits, plain(ids).logits)
    drawn = [dict(m.named_parameters())["model.layers.0.mlp.up_proj.lora_A.default.weight"] for m in (adapted, other)]
    assert not torch.equal(*drawn)


def test_a_frozen_weight_costs_four_operations_a_token() -> None:
    model = tiny_llama(80)
    full = Flops.of(model)
    add_adapters(model, LORA, seed=0)
    lora, adapters = Flops.of(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lora.layers == full.layers * 4 / 6 + 6 * adapters
    assert (lora.head, lora.pairs) == (full.head * 4 / 6, full.pairs)


def test_the_merged_export_is_the_trained_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "base")
    options: dict[str, Any] = {"model": base, "learning_rate": 1e-2, "epochs": 4}
    for export in ("merged", "adapter"):
        config = a_config(run=str(tmp_path / export), lora=LORA.model_copy(update={"export": export}), **options)
        run_alone(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    ids = torch.arange(5, 40)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_llama(80).named_parameters()}
    whole = AutoModelForCausalLM.from_pretrained(base)
    adapter = peft.PeftModel.from_pretrained(whole, tmp_path / "adapter" / "model")
    torch.testing.assert_close(adapter(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    base_logits = AutoModelForCausalLM.from_pretrained(base)(ids).logits
    assert (merged(ids).logits - base_logits).abs().max() > 0.1
    assert json.loads((tmp_path / "adapter" / "model" / "adapter_config.json").read_text())["r"] == 4


def test_a_resumed_run_repeats_an_undisturbed_one_and_keeps_adapters_alone(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    whole = a_config(run=str(tmp_path / "whole"), model=base, lora=LORA, epochs=3)
    run_alone(whole, TRAJECTORIES_HERE, SELECTIONS_HERE)
    cut = a_config(run=str(tmp_path / "cut"), model=base, lora=LORA, epochs=3)
    asked = iter([False] * 3 + [True])
    assert run_alone(cut, TRAJECTORIES_HERE, SELECTIONS_HERE, stop=lambda: next(asked))[0] == 4
    assert not (tmp_path / "cut" / "model" / "config.json").exists()
    assert run_alone(cut, TRAJECTORIES_HERE, SELECTIONS_HERE)[0] == 9
    assert small_steps(cut) == small_steps(whole)
    from torch.distributed.checkpoint import FileSystemReader

    [state] = (tmp_path / "cut" / "checkpoints").glob("*/*")
    states = FileSystemReader(str(state)).read_metadata()
    weights = [name for name in states.state_dict_metadata if name.startswith("model.")]
    assert weights
    assert all("lora_" in name for name in weights if "lm_head" not in name)


def test_wrong_targets_muon_or_missing_peft_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"its linear modules are .*q_proj"):
        add_adapters(tiny_llama(80), LoraConfig(targets=["qq_proj"]), seed=0)
    with pytest.raises(UserError, match="optimizer: adam only"):
        validate(TrainConfig, {"data": {"path": "x"}, "lora": {}, "optimizer": "muon"})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'atlas-ray\[lora\]'"):
        add_adapters(tiny_llama(80), LORA, seed=0)


@pytest.mark.slow
def test_two_workers_train_adapters_as_one(ray_cluster: None, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from atlas_ray.training.stage import train

    options: dict[str, Any] = {"model": write_base(tmp_path / "base"), "lora": LORA, "validation_fraction": 0.3}
    alone = a_config(run=str(tmp_path / "one"), **options)
    run_alone(alone, TRAJECTORIES_HERE, SELECTIONS_HERE)
    two = a_config(run=str(tmp_path / "two"), num_workers=2, keep="best", **options)
    train(two, TRAJECTORIES_HERE, SELECTIONS_HERE)
    np.testing.assert_allclose(small_steps(two), small_steps(alone), rtol=1e-4)
    losses = [[m.get("validation_loss", 0) for m in read_metrics(RunFolder(c.run))] for c in (alone, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    models = [AutoModelForCausalLM.from_pretrained(Path(c.run, "model")).state_dict() for c in (alone, two)]
    torch.testing.assert_close(*models, rtol=1e-3, atol=1e-4)
