"""Validation: tasks are held back whole and by seed, their loss is exact, the best checkpoint is by it alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_ray.config import validate
from atlas_ray.errors import UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training import loop
from atlas_ray.training.data.examples import hold_back
from atlas_ray.training.loop import validation_loss
from atlas_ray.training.metrics import best_step, read_metrics
from atlas_ray.training.settings import TrainConfig
from tests.support.solo import run_alone
from tests.support.tiny import tiny_llama
from tests.support.training import (
    CPU,
    SELECTIONS_HERE,
    TRAJECTORIES_HERE,
    a_config,
    a_trajectory,
    the_examples,
    write_base,
)


def test_tasks_are_held_back_whole_by_seed_and_for_all_arms_alike() -> None:
    twins = [replace(t, id=f"{t.id}@{n}") for t in TRAJECTORIES_HERE for n in range(3)]
    training, held = hold_back(twins, 0.3, seed=0)
    assert len(held) == 3 * 2  # 0.3 x 7 tasks, rounded, three trajectories each
    assert not {t.item_id for t in training} & {t.item_id for t in held}
    assert {t.id for t in training} | {t.id for t in held} == {t.id for t in twins}
    assert hold_back(list(reversed(twins)), 0.3, seed=0)[1] == list(reversed(held))
    assert len({tuple(t.id for t in hold_back(twins, 0.3, seed)[1]) for seed in range(9)}) > 1
    assert hold_back(twins, 0.0, seed=0) == (twins, [])
    assert len(hold_back(twins, 0.001, seed=0)[1]) == 3
    with pytest.raises(UserError, match="holds back all 1 tasks"):
        hold_back([a_trajectory(0, 2)], 0.5, seed=0)


@pytest.mark.parametrize("micro_batch_tokens", [16, 10_000])
def test_validation_loss_is_the_mean_over_loss_tokens_without_dropout_or_gradients(micro_batch_tokens: int) -> None:
    config = a_config(micro_batch_tokens=micro_batch_tokens)
    plain, nll = tiny_llama(80), 0.0
    for e in the_examples():
        ids = torch.tensor(e.ids.tolist())[None]
        labels = torch.where(torch.tensor(e.loss_mask.tolist()), ids[0], -100)[None]
        nll += plain(input_ids=ids, labels=labels).loss.item() * e.loss_tokens
    expected = nll / sum(e.loss_tokens for e in the_examples())
    module = loop.place_model(tiny_llama(80, attention_dropout=0.9), config, CPU)
    assert validation_loss(module, the_examples(), config, CPU) == pytest.approx(expected, abs=1e-5)
    assert module.training
    assert all(p.grad is None for p in module.parameters())


def test_validation_runs_at_each_epochs_end_and_changes_no_training() -> None:
    def train(**options: Any) -> list[dict[str, Any]]:
        config, steps = a_config(epochs=2.5), list[dict[str, Any]]()
        module = loop.place_model(tiny_llama(80, attention_dropout=0.5), config, CPU)
        optimizers = loop.make_optimizers(module, config)
        loop.fit(module, optimizers, the_examples(), config, CPU, on_step=steps.append, **options)
        return steps

    plain, validated = train(), train(validation=the_examples()[:2])
    assert [s["loss"] for s in plain] == [s["loss"] for s in validated]
    assert [s["step"] for s in validated if "validation_loss" in s] == [3, 6, 8]


def test_the_best_step_is_the_first_of_least_validation_loss() -> None:
    steps = [{"step": 1}, {"step": 2, "validation_loss": 2.0}, {"step": 3, "validation_loss": 1.0}]
    assert best_step([{"step": 1}]) is None
    assert best_step([*steps, {"step": 4, "validation_loss": 1.0}]) is steps[2]
    with pytest.raises(UserError, match="keep: best needs a validation loss"):
        validate(TrainConfig, {"data": {"path": "x"}, "keep": "best"})


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_export_is_the_checkpoint_kept(tmp_path: Path, keep: str) -> None:
    """Two epochs at a rate that ruins the model in the second: `best` exports the first one's weights."""
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "base")
    common = {"model": base, "learning_rate": 0.05, "warmup_ratio": 0.9, "validation_fraction": 0.3, "keep": keep}
    config = a_config(run=str(tmp_path / "run"), epochs=4, **common)
    _, figures, job = run_alone(config, TRAJECTORIES_HERE, SELECTIONS_HERE)
    steps = read_metrics(RunFolder(config.run))
    losses = {s["step"]: s["validation_loss"] for s in steps if "validation_loss" in s}
    assert len(losses) == 4
    best = min(losses, key=lambda step: losses[step])
    assert best < max(losses)
    assert figures["kept_step"] == (best if keep == "best" else max(losses))
    exported = loop.StepLoss(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), 500)
    found = validation_loss(exported, job.validation, config, CPU)
    assert found == pytest.approx(losses[figures["kept_step"]], abs=1e-5)
    assert figures["validation_loss"] == losses[figures["kept_step"]]
