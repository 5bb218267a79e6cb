"""Run folders made before settings were renamed: they resume, or say why not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.metrics import read_metrics
from tests.support.solo import run_alone
from tests.support.training import SELECTIONS_HERE, TRAJECTORIES_HERE, a_config, curve, the_examples, write_base

OLD_DIGEST = "6bcfacef4ffdcf2c7503857eb70a1a9752a884551374372af5a2a6fc6695c828"
OLD_MANIFEST = {  # as version 0.1.0 wrote it; `workers` was no part of it, for it changes no result
    "stage": "train",
    "config": {
        "model": "base",
        "chat_template": None,
        "data": {"path": "data", "format": "auto", "revision": None, "envs": None, "limit": None},
        "selection": None,
        "epochs": 3.0,
        "loss": "token",
        "optimizer": "adam",
        "learning_rate": 0.001,
        "muon_learning_rate": 0.02,
        "warmup_ratio": 0.03,
        "global_batch": 3,
        "micro_batch_tokens": 120,
        "max_length": 500,
        "clip": 0.5,
        "weight_decay": 0.0,
        "dtype": "float32",
        "activation_checkpointing": None,
        "use_gpu": False,
        "lora": None,
        "validation_fraction": 0.0,
        "keep": "last",
        "seed": 0,
    },
    "digest": OLD_DIGEST,
    "seed": 0,
    "versions": {"atlas_ray": "0.1.0"},
    "git_commit": None,
}


def old_folder(path: Path, **changed: Any) -> RunFolder:
    folder = RunFolder(str(path))
    folder.write_json("manifest.json", OLD_MANIFEST | {"config": OLD_MANIFEST["config"] | changed})  # type: ignore[operator]
    return folder


def test_a_run_begun_under_the_old_names_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"model": write_base(Path("base")), "epochs": 3, "max_grad_norm": 0.5, "checkpoint_steps": 100}
    whole, old = (a_config(run=name, num_workers=2, **options) for name in ("whole", "old"))
    run_alone(whole, TRAJECTORIES_HERE, SELECTIONS_HERE)

    folder = old_folder(tmp_path / "old")
    folder.begin(old, stage="train")
    asked = iter([False] * 3 + [True])
    assert run_alone(old, TRAJECTORIES_HERE, SELECTIONS_HERE, stop=lambda: next(asked))[0] == 4
    of_the_old_code = hashlib.sha256(OLD_DIGEST.encode())
    for example in the_examples():
        of_the_old_code.update(example.ids.tobytes() + example.loss_mask.tobytes())
    found = [path.relative_to(tmp_path / "old" / "checkpoints") for path in (tmp_path / "old/checkpoints").glob("*/*")]
    assert found == [Path(of_the_old_code.hexdigest()[:12], "00000004")]
    folder.begin(old, stage="train")
    assert run_alone(old, TRAJECTORIES_HERE, SELECTIONS_HERE)[0] == 9
    assert curve(read_metrics(folder)) == curve(read_metrics(RunFolder("whole")))


def test_another_value_under_an_old_name_is_named_by_the_new_one(tmp_path: Path) -> None:
    config = a_config(run=str(tmp_path), model="base", epochs=3, max_grad_norm=1.0)
    with pytest.raises(UserError, match=r"keys differ:\n    max_grad_norm: 0\.5 -> 1\.0\n  use another") as raised:
        old_folder(tmp_path).begin(config, stage="train")
    assert "another version" not in str(raised.value)


def test_a_folder_with_a_setting_that_is_no_more_says_so(tmp_path: Path) -> None:
    config = a_config(run=str(tmp_path), model="base", epochs=3, max_grad_norm=0.5)
    with pytest.raises(UserError, match=r"made by another version, .* cannot read: unknown key `sequence_parallel`"):
        old_folder(tmp_path, sequence_parallel=2).begin(config, stage="train")
