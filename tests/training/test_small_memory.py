"""What lets models train in little memory: moments in 8 bits, a base in 4, offload; and a copy of the model a node."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training import loop
from atlas_ray.training.metrics import read_metrics
from atlas_ray.training.model.loading import load_model
from atlas_ray.training.model.quantized import load_in_4bit
from atlas_ray.training.settings import LoraConfig, TrainConfig
from atlas_ray.training.worker import backend
from tests.support.solo import run_alone
from tests.support.tiny import tiny_llama
from tests.support.training import (
    CPU,
    SELECTIONS_HERE,
    TRAJECTORIES_HERE,
    a_config,
    curve,
    the_examples,
    write_base,
)

QLORA = LoraConfig(rank=4, alpha=8, base="4bit")


def steps_of(config: TrainConfig) -> list[tuple[Any, ...]]:
    return curve(read_metrics(RunFolder(config.run)))


def losses(config: TrainConfig) -> list[float]:
    return [step["loss"] for step in read_metrics(RunFolder(config.run))]


def trained(config: TrainConfig, stop_behind: int = 10**9) -> int:
    asked = iter(range(1, 10**9))
    return run_alone(config, TRAJECTORIES_HERE, SELECTIONS_HERE, stop=lambda: next(asked) >= stop_behind)[0]


# --- hybrid sharding and offload: two processes

PLACED: dict[str, dict[str, Any]] = {"offload": {"offload": True}, "hybrid": {"shard_size": 1}}


def placed(config: TrainConfig) -> dict[str, Any]:
    """The metrics of two epochs of the model in `config.model`, the mesh of its weights, and the weights."""
    model, weights = load_model(config.model)
    module = loop.place_model(model, config, CPU, weights)
    steps: list[dict[str, Any]] = []
    loop.fit(module, loop.make_optimizers(module, config), the_examples(), config, CPU, on_step=steps.append)
    parameters = dict(module.named_parameters())
    meshes = {p.device_mesh.shape for p in parameters.values() if hasattr(p, "device_mesh")}
    full = {n: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for n, p in parameters.items()}
    return {"curve": curve(steps), "meshes": meshes, "weights": full}


def _two(rank: int, folder: Path, config: TrainConfig) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: placed(config.model_copy(update=options)) for name, options in PLACED.items()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_offloaded_and_hybrid_sharded_workers_train_as_one_process(tmp_path: Path) -> None:
    config = a_config(model=write_base(tmp_path / "base"))
    torch.multiprocessing.spawn(_two, (tmp_path, config.model_copy(update={"num_workers": 2})), nprocs=2)
    expected = placed(config)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["offload"]["meshes"] == {(2,)}
        assert found["hybrid"]["meshes"] == {(2, 1)}  # two copies of the model, each whole in one process
        for here in found.values():
            np.testing.assert_allclose(here["curve"], expected["curve"], rtol=1e-5)
            torch.testing.assert_close(here["weights"], expected["weights"], rtol=1e-3, atol=1e-5)


def _two_stopped(rank: int, folder: Path, configs: tuple[TrainConfig, TrainConfig]) -> None:
    """One run from beginning to end, and one that is stopped behind step 5 and goes on."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with torch.compiler.set_stance("force_eager"):
        whole, cut = configs
        assert trained(whole) == 12
        assert trained(cut, stop_behind=5) == 5
        assert trained(cut) == 12
    dist.destroy_process_group()


LEAN: dict[str, tuple[dict[str, Any], str, float]] = {
    # moments are rounded in blocks, of other numbers where two workers hold them
    "8-bit": ({"optimizer": "adam8bit"}, "torchao", 1e-4),
    "4-bit base": ({"lora": QLORA, "learning_rate": 1e-2}, "bitsandbytes", 1e-5),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEAN)
def test_two_workers_with_moments_or_a_base_of_few_bits_train_and_go_on_as_one_process(
    tmp_path: Path, eager: None, kind: str
) -> None:
    options, library, within = LEAN[kind]
    pytest.importorskip(library)
    base = write_base(tmp_path / "base")
    alone, whole, cut = (
        a_config(run=str(tmp_path / name), model=base, epochs=4, **options) for name in ("alone", "whole", "cut")
    )
    assert trained(alone) == 12
    pair = tuple(config.model_copy(update={"num_workers": 2}) for config in (whole, cut))
    torch.multiprocessing.spawn(_two_stopped, (tmp_path, pair), nprocs=2)
    for config in (whole, cut):
        np.testing.assert_allclose(losses(config), losses(alone), rtol=within)
        assert (tmp_path / config.run / "model" / "model.safetensors").exists()


def test_offloading_gpu_workers_exchange_tensors_of_their_hosts_too() -> None:
    assert backend(cuda=True, offload=True) == "cpu:gloo,cuda:nccl"
    assert (backend(cuda=True, offload=False), backend(cuda=False, offload=True)) == ("nccl", "gloo")


# --- moments in 8 bits


@pytest.fixture
def eager() -> Iterator[None]:
    """torchao compiles its step, which takes a tiny model longer than training."""
    with torch.compiler.set_stance("force_eager"):
        yield


def test_moments_of_8_bits_train_as_float32_does_and_are_restored(tmp_path: Path, eager: None) -> None:
    pytest.importorskip("torchao")
    base = write_base(tmp_path / "base")
    whole, cut, plain = (
        a_config(run=str(tmp_path / name), model=base, epochs=4, optimizer=optimizer)
        for name, optimizer in (("whole", "adam8bit"), ("cut", "adam8bit"), ("plain", "adam"))
    )
    assert trained(whole) == trained(plain) == 12
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]
    np.testing.assert_allclose(losses(whole), losses(plain), rtol=0.01)
    assert losses(whole) != losses(plain)
    assert trained(cut, stop_behind=5) == 5
    assert trained(cut) == 12
    np.testing.assert_allclose(steps_of(cut), steps_of(whole), rtol=1e-4)  # moments are rounded once more


def test_moments_of_large_weights_are_held_in_8_bits(eager: None) -> None:
    pytest.importorskip("torchao")
    config = a_config(optimizer="adam8bit")
    module = loop.place_model(tiny_llama(80), config, CPU)
    (optimizer,) = loop.make_optimizers(module, config)
    loop.fit(module, [optimizer], the_examples(), config, CPU)
    moments = optimizer.state[module.model.model.layers[0].mlp.up_proj.weight]
    assert moments["exp_avg"].codes.dtype is torch.uint8


# --- a base in 4 bits


def test_adapters_learn_on_a_base_in_4_bits_and_the_export_is_whole(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    base = write_base(tmp_path / "base")
    options: dict[str, Any] = {"model": base, "learning_rate": 1e-2, "epochs": 4}
    configs = {
        name: a_config(run=str(tmp_path / name), lora=QLORA.model_copy(update={"export": export}), **options)
        for name, export in (("merged", "merged"), ("cut", "merged"), ("adapter", "adapter"))
    }
    assert trained(configs["merged"]) == trained(configs["adapter"]) == 12
    assert losses(configs["merged"])[-1] < 0.95 * losses(configs["merged"])[0]
    assert trained(configs["cut"], stop_behind=5) == 5
    assert trained(configs["cut"]) == 12
    assert steps_of(configs["cut"]) == steps_of(configs["merged"])
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "model" / "config.json").read_text())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")
    assert {n for n, _ in merged.named_parameters()} == {n for n, _ in tiny_llama(80).named_parameters()}
    held = load_in_4bit(base, torch.float32, CPU)
    assert held.model.layers[0].mlp.up_proj.weight.dtype is torch.uint8
    adapter = peft.PeftModel.from_pretrained(held, tmp_path / "adapter" / "model")
    ids = torch.arange(5, 40)[None]
    torch.testing.assert_close(adapter(ids).logits, merged(ids).logits, rtol=1e-3, atol=1e-3)
    assert (merged(ids).logits - AutoModelForCausalLM.from_pretrained(base)(ids).logits).abs().max() > 0.1


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_workers": 6, "shard_size": 4}, "shard_size: 4 does not divide num_workers: 6"),
        ({"offload": True, "optimizer": "muon"}, "offload trains with optimizer: adam or adam8bit"),
        ({"lora": {"base": "4bit"}, "offload": True}, "lora.base: 4bit stays on its device"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        validate(TrainConfig, {"data": {"path": "x"}} | settings)


def test_missing_libraries_are_named_with_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchao", "torchao.optim", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, None)
    config = a_config(optimizer="adam8bit")
    with pytest.raises(UserError, match=r"pip install 'atlas-ray\[adam8bit\]'"):
        loop.make_optimizers(loop.place_model(tiny_llama(80), config, CPU), config)
    with pytest.raises(UserError, match=r"pip install 'atlas-ray\[qlora\]'"):
        load_in_4bit(write_base(tmp_path), torch.float32, CPU)
