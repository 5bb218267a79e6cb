"""A run's data: what is trained and validated on, under which name it goes on, and which figures it ends with.

Flows in: a configuration, trajectories with their tokens, and a selection; flows out: a job for the workers, the same
whatever starts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from atlas_ray.address import below
from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.data.batching import total_steps
from atlas_ray.training.data.corpus import Corpus, Render, open_corpus
from atlas_ray.training.data.examples import Prepared, prepare
from atlas_ray.training.data.masking import Example
from atlas_ray.training.metrics import best_step, read_metrics
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.validation import hold_back
from atlas_ray.training.worker import STATES, Job
from atlas_ray.types import Selection, Trajectory


def tokens_for(config: TrainConfig, trajectories: Sequence[Trajectory], chat: ChatFormat, by: Render) -> Corpus:
    """The run's tokens, rendered where no run on the same data has done so."""
    return open_corpus(config.rendered or below(config.run, "rendered"), trajectories, chat, by)


def make_job(
    config: TrainConfig,
    chat: ChatFormat,
    corpus: Corpus,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
) -> tuple[Prepared, Job]:
    """Holds tasks back and makes examples of all.

    Raises:
        UserError: If the selection or the model do not fit the data, or nothing is left to train or validate on.
    """
    training, held = hold_back(trajectories, config.validation_fraction, config.seed)
    prepared = prepare(config, corpus, training, selections)
    validation = prepare(config, corpus, held, selections).examples if held else []
    digest = _digest(config, prepared.examples)
    return prepared, Job(config, prepared.examples, validation, tuple(chat.stop_ids), digest)


def figures_of(prepared: Prepared, job: Job, folder: RunFolder) -> dict[str, Any]:
    """What `finished.json` says, but for the time."""
    statistics = prepared.statistics
    figures = {
        "train_steps": total_steps(len(job.examples), job.config.global_batch_size, job.config.epochs),
        "trajectories": len(job.examples),
        "dropped": statistics.dropped + prepared.unselected,
        "steps_lost": statistics.steps_lost,
        "step_fraction": statistics.step_fraction,
        "loss_tokens": statistics.loss_tokens,
        "loss_token_fraction": statistics.loss_token_fraction,
        "tokens": statistics.tokens,
    }
    steps = read_metrics(folder)
    kept = best_step(steps) if job.config.keep == "best" else steps[-1]
    if kept is not None and "validation_loss" in kept:
        figures |= {
            "validation_trajectories": len(job.validation),
            "kept_step": kept["step"],
            "validation_loss": kept["validation_loss"],
        }
    return figures


def drop_checkpoints(config: TrainConfig) -> None:
    """Deletes the states of a finished run, unless they are to be kept."""
    if not config.keep_checkpoint:
        RunFolder(config.run).child(STATES).delete()


def _digest(config: TrainConfig, examples: Sequence[Example]) -> str:
    """Of all that shapes a run's states: configuration and data."""
    digest = hashlib.sha256(RunFolder(config.run).digest(config).encode())
    for example in examples:
        digest.update(example.ids.tobytes() + example.loss_mask.tobytes())
    return digest.hexdigest()[:12]
