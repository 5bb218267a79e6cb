"""The estimate before training: exact where it can be, with a remedy that works, and nothing loaded for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_ray.cli.main import main
from atlas_ray.config import DataConfig
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TRAJECTORIES
from atlas_ray.training.estimate import (
    Disk,
    Memory,
    ModelShape,
    disk_of,
    memory_of,
    meta_model,
)
from atlas_ray.training.memory_check import check_memory, remedy
from atlas_ray.training.metrics import Meter, peak_flops
from atlas_ray.training.settings import LoraConfig, TrainConfig
from atlas_ray.training.stage import plan_lines
from atlas_ray.training.view import view
from atlas_ray.types import Message, Trajectory
from tests.support.solo import run_alone
from tests.support.tiny import tiny_llama
from tests.support.training import TRAJECTORIES_HERE, a_config, llama_8b, write_base, write_data

GB = 2**30


def the_memory(config: TrainConfig, cuda: bool = True) -> Memory:
    return memory_of(config, ModelShape.of(meta_model(config)), cuda)


def test_a_model_is_counted_from_its_configuration_alone(tmp_path: Path) -> None:
    model = meta_model(llama_8b(tmp_path))
    assert all(p.is_meta for p in model.parameters())
    shape = ModelShape.of(model)
    assert shape.parameters == shape.trained == 8_030_261_248  # as its model card says: 8.03 B
    assert shape.embeddings == 2 * shape.head == 2 * 128256 * 4096
    assert shape.layer == 2 * 4096 + 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert (shape.layers, shape.queries, shape.keys) == (32, 4096, 1024)
    lora = ModelShape.of(meta_model(llama_8b(tmp_path, lora=LoraConfig(rank=16))))
    assert lora.trained == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)) == 41_943_040
    tied = ModelShape.of(tiny_llama(80))
    assert tied.embeddings == tied.head == 80 * 64


def test_states_are_exact_and_shared_among_workers(tmp_path: Path) -> None:
    n = 8_030_261_248
    for workers in (1, 4):
        found = the_memory(llama_8b(tmp_path, num_workers=workers))
        assert (found.weights, found.gradients, found.moments) == (4 * n / workers, 4 * n / workers, 8 * n / workers)
    lora = the_memory(llama_8b(tmp_path, lora=LoraConfig(rank=16)))
    trained = 41_943_040
    assert lora.states == 2 * n + (4 + 4 + 8) * trained
    assert the_memory(llama_8b(tmp_path)).total > the_memory(llama_8b(tmp_path, num_workers=4)).total > lora.total


def test_settings_for_less_memory_are_in_the_estimate(tmp_path: Path) -> None:
    n = 8_030_261_248
    plain, eight = the_memory(llama_8b(tmp_path)), the_memory(llama_8b(tmp_path, optimizer="adam8bit"))
    assert eight.moments == 2 * (1 + 4 / 256) * n  # a scale in float32 for 256 weights
    assert plain.total - eight.total == plain.moments - eight.moments
    offloaded = the_memory(llama_8b(tmp_path, offload=True))
    assert (offloaded.states, offloaded.host) == (0, plain.states)
    assert offloaded.total == plain.total - plain.states
    on_cpu = the_memory(llama_8b(tmp_path, offload=True, use_gpu=False), cuda=False)
    assert (on_cpu.states, on_cpu.host) == (plain.states, 0)
    hybrid = the_memory(llama_8b(tmp_path, num_workers=8, shard_size=4))
    assert hybrid == the_memory(llama_8b(tmp_path, num_workers=4))


def test_8_b_parameters_on_a_base_of_4_bits_fit_a_gpu_of_24_gb(tmp_path: Path) -> None:
    config = llama_8b(tmp_path, lora=LoraConfig(rank=16, base="4bit"), use_gpu=True, memory_gb=24)
    matrices, trained = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336), 41_943_040
    found = the_memory(config)
    in_4_bits = matrices * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    assert found.weights == pytest.approx(in_4_bits + 2 * (8_030_261_248 - matrices) + 4 * trained)
    assert check_memory(config).endswith("of 24.0 GB: fits")
    more = the_memory(config.model_copy(update={"num_workers": 2}))
    assert more.weights > in_4_bits  # every worker holds all of the base


def test_workers_that_share_sequences_have_less_of_each(tmp_path: Path) -> None:
    long = {"max_length": 131072, "micro_batch_tokens": 16384, "num_workers": 8}
    alone, shared = (the_memory(llama_8b(tmp_path, context_parallel=ranks, **long)) for ranks in (1, 8))
    assert alone.activations / 8 < shared.activations < alone.activations / 3  # keys and values of all come on top
    assert shared.states == alone.states


def test_recomputing_layers_and_smaller_batches_save_activations(tmp_path: Path) -> None:
    kept = the_memory(llama_8b(tmp_path, activation_checkpointing=False))
    recomputed = the_memory(llama_8b(tmp_path))
    halved = the_memory(llama_8b(tmp_path, micro_batch_tokens=8192))
    assert kept.activations > 8 * recomputed.activations
    assert recomputed.activations == pytest.approx(2 * halved.activations)
    assert halved.logits == recomputed.logits  # a chunk has 2,048 rows


def test_micro_batches_that_the_data_cannot_fill_are_not_counted_as_full(tmp_path: Path) -> None:
    config = llama_8b(tmp_path, global_batch_size=4, micro_batch_tokens=16384, max_length=8192)
    shape = ModelShape.of(meta_model(config))

    def activations(lengths: list[int]) -> float:
        return memory_of(config, shape, True, lengths).activations

    full, per_token = the_memory(config).activations, the_memory(config).activations / 16384
    assert activations([300] * 100 + [700]) == pytest.approx((3 * 300 + 700) * per_token)
    assert activations([8000] * 100) == full
    assert activations([20_000]) == pytest.approx(20_000 * per_token)  # longer than a micro-batch: alone in one


@pytest.mark.parametrize(
    ("options", "have", "says"),
    [
        ({"num_workers": 4, "micro_batch_tokens": 98304}, 80, "set micro_batch_tokens: "),
        ({"num_workers": 4, "activation_checkpointing": False}, 80, "set activation_checkpointing: true"),
        (
            {"num_workers": 1},
            80,
            "set micro_batch_tokens: 8192, num_workers: 2 (76.6 GB a worker); or offload: true (20.5 GB a worker and "
            "119.7 GB of its host's memory); or offload: true, optimizer: adam8bit (20.5 GB a worker and 75.0 GB of "
            "its host's memory); or lora: {rank: 16} (27.8 GB a worker); or lora: {rank: 16, base: 4bit} (17.7 GB a ",
        ),
        (
            {"num_workers": 4},
            40,
            "set num_workers: 8 (35.4 GB a worker); or optimizer: adam8bit (39.2 GB a worker); or ",
        ),
        ({"num_workers": 8, "max_length": 131072}, 80, "set context_parallel: 2 (62.7 GB a worker); or "),
        ({"num_workers": 1, "lora": LoraConfig(rank=8)}, 8, "use a smaller model, or a device with more memory"),
        ({"num_workers": 1}, 4, "use a smaller model, or a device with more memory"),
    ],
)
def test_the_remedy_names_keys_and_values_that_fit(
    tmp_path: Path, options: dict[str, Any], have: int, says: str
) -> None:
    config = llama_8b(tmp_path, **options)
    assert the_memory(config).total > have * GB
    assert remedy(config, cuda=True, have=have * GB).startswith(says)


def test_memory_check_refuses_certain_misfits_and_warns_of_possible_ones(tmp_path: Path) -> None:
    config = llama_8b(tmp_path, memory_gb=80)
    with pytest.raises(UserError, match=r"needs 119\.7 GB on each of 1 worker.*has 80\.0 GB\n  set .*num_workers: "):
        check_memory(config, device=torch.device("cpu"))
    line = check_memory(config.model_copy(update={"num_workers": 2, "activation_checkpointing": False}))
    assert "of 80.0 GB: may not fit; set activation_checkpointing: true" in line
    line = check_memory(config.model_copy(update={"num_workers": 16, "micro_batch_tokens": 8192, "memory_gb": 999}))
    assert line.endswith("of 999.0 GB: fits")


def test_memory_check_refuses_a_peak_far_above_the_gpu(tmp_path: Path) -> None:
    """Four A100s of 40 GB, and the paper's of 80."""
    config = llama_8b(tmp_path, num_workers=4, use_gpu=True, memory_gb=40)
    assert the_memory(config).states < 40 * GB < the_memory(config).total
    with pytest.raises(UserError, match=r"needs about 50\.\d GB on each of 4 .*has 40\.0 GB\n  set .*num_workers: 8"):
        check_memory(config)
    line = check_memory(config.model_copy(update={"memory_gb": 48}))
    assert "of 48.0 GB: may not fit; set " in line
    line = check_memory(config.model_copy(update={"memory_gb": 80}))
    assert line.endswith("of 80.0 GB: fits")


def test_a_dry_run_counts_steps_tokens_and_hours(tmp_path: Path) -> None:
    base, data = write_base(tmp_path / "base"), write_data(tmp_path)
    config = a_config(model=base, data=data, epochs=2, validation_fraction=0.3, selection=str(tmp_path / "none"))
    note, counts, work, memory, disk = plan_lines(config)
    assert note.endswith("is not finished: counted as if all steps were chosen")
    assert counts.startswith("5 trajectories, 2 held back; ")
    assert work.startswith("4 optimizer steps in 2 epochs: ")
    assert "GPU-hours if an MFU of 40% is reached (A100, 312 TFLOP/s)" in work
    assert memory.endswith("GB: fits")
    assert disk.startswith("disk: at most 0.0 GB")


def test_a_dry_run_and_a_look_at_the_mask_warn_of_unknown_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = Trajectory("maze/a", "maze", "a", (Message("user", "samovar"), Message("assistant", "Action: up", True)))
    RunFolder(str(tmp_path / "data")).write_shard(TRAJECTORIES, [strange])
    data, base = str(tmp_path / "data" / "trajectories"), write_base(tmp_path / "base")
    _, warning, *_ = plan_lines(a_config(model=base, data=DataConfig(path=data)))
    assert "words that the tokenizer does not know ('samovar')" in warning
    view(data, base, None, None)
    assert "words that the tokenizer does not know" in " ".join(capsys.readouterr().err.split())


def test_disk_holds_the_model_and_two_checkpoints_and_at_last_the_model(tmp_path: Path) -> None:
    n, trained = 8_030_261_248, 41_943_040

    def the_disk(**options: Any) -> Disk:
        config = llama_8b(tmp_path, **options)
        return disk_of(config, ModelShape.of(meta_model(config)))

    full, kept, lora = the_disk(), the_disk(keep_checkpoint=True), the_disk(lora=LoraConfig(rank=16))
    assert (full.peak, full.finished) == (2 * n + 2 * 12 * n, 2 * n)  # 194 GB and 16 GB
    assert (kept.peak, kept.finished) == (full.peak, (2 + 12) * n)
    assert (lora.peak, lora.finished) == (2 * n + 2 * 12 * trained, 2 * n)
    assert the_disk(lora=LoraConfig(rank=16, export="adapter")).finished == 4 * trained
    assert str(full) == (
        "disk: at most 194.4 GB (the model, 15.0, and two checkpoints of 89.7; one being written is in the hosts' "
        "memory too), 15.0 GB when it is finished"
    )


def test_checkpoint_is_as_large_as_estimated(tmp_path: Path) -> None:
    for optimizer in ("adam", "muon"):
        config = a_config(optimizer=optimizer, run=str(tmp_path / optimizer), model=write_base(tmp_path / "base"))
        run_alone(config, TRAJECTORIES_HERE, None)
        written = sum(file.stat().st_size for file in (tmp_path / optimizer / "checkpoints").rglob("*.distcp"))
        said = disk_of(config, ModelShape.of(meta_model(config))).checkpoint
        assert said < written < said + 200_000  # torch's own words around each of some hundred tensors


def test_train_dry_run_prints_the_estimate_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = write_base(tmp_path / "base"), write_data(tmp_path)
    run = tmp_path / "run"
    keys = [
        f"model={base}",
        "max_length=500",
        "global_batch_size=3",
        "epochs=1",
        "lora.rank=4",
        "memory_gb=2",
        "use_gpu=false",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", data.path, "--run", str(run), "--dry-run", *(p for k in keys for p in ("--set", k))])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "# 3 optimizer steps in 1 epochs" in said
    assert "# memory of a worker: about " in said
    assert "of 2.0 GB: fits" in said
    assert not run.exists()


def test_mfu_is_needed_flops_over_the_devices_peak() -> None:
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("Something else") is None
    meter = Meter(torch.device("cpu"), world=2, bfloat16=True)
    step = {"flops": 3e12, "seconds": 2.0}
    assert meter.complete(step)["mfu"] is None
    assert meter.complete(step)["memory_gb"] > 0.05
    meter._peak = 1e12
    assert meter.complete(step)["mfu"] == 0.75
