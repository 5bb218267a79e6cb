"""The rival of `bench.training`: TRL's SFTTrainer on the same trajectories."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from bench.training_setup import SEED, Rival, Setup, a_model, batches_of, examples_of, fitting_layers, train_config


def run_trl(setup: Setup, device: str, rival: Rival) -> dict[str, Any]:
    """One run of TRL's trainer: whole trajectories, our batches, our learning rates."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.utils import is_flash_attn_2_available
    from transformers.utils.logging import disable_progress_bar
    from trl import SFTConfig, SFTTrainer

    from atlas_ray.training.loop import schedule

    disable_progress_bar()
    examples, wholes = examples_of(setup)
    order = [i for members in batches_of(setup) for i in sorted(members, key=lambda i: len(wholes[i]))]
    labels = []
    for example, ids in zip(examples, wholes, strict=True):
        marked = np.full(len(ids), -100)
        marked[: example.length][example.loss_mask] = example.ids[example.loss_mask]
        labels.append(marked)
    data = Dataset.from_dict({"input_ids": [wholes[i] for i in order], "labels": [labels[i] for i in order]})
    model, config = a_model(setup, fitting_layers(setup, device), device), train_config(setup, device)
    if device == "cuda" and is_flash_attn_2_available():
        model.set_attn_implementation("flash_attention_2")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: schedule(min(done + 1, setup.steps), setup.steps, config.warmup_ratio)
    )
    marks = [time.monotonic()]

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks[0] = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.monotonic())

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=rival.batch,
                gradient_accumulation_steps=rival.accumulation,
                padding_free=rival.padding_free,
                max_steps=setup.steps,
                max_length=None,
                bf16=setup.dtype == "bfloat16",
                use_cpu=device == "cpu",
                gradient_checkpointing=device == "cuda",
                train_sampling_strategy="sequential",
                max_grad_norm=config.max_grad_norm,
                dataset_kwargs={"skip_prepare_dataset": True},
                seed=SEED,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=_a_tokenizer(setup.shape["vocab_size"]),
            optimizers=(optimizer, rates),
            callbacks=[Watch()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"seconds": marks[-1] - marks[setup.warm_up], "losses": losses}


def _a_tokenizer(size: int) -> Any:
    """Only its padding token is used."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(i): i for i in range(size)}, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="1", eos_token="2")
