"""The training worker in this very process, without Ray: for tests of what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from atlas_ray.models.chat import ChatFormat
from atlas_ray.runs.folder import RunFolder
from atlas_ray.training.data.corpus import Corpus
from atlas_ray.training.model.export import write_tokenizer
from atlas_ray.training.settings import TrainConfig
from atlas_ray.training.stage import figures_of, make_job
from atlas_ray.training.worker import Job, run_worker
from atlas_ray.types import Selection, Trajectory


def run_alone(
    config: TrainConfig,
    trajectories: Sequence[Trajectory],
    selections: Sequence[Selection] | None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[int, dict[str, Any], Job]:
    """Trains; goes on from the last checkpoint where there is one.

    Returns:
        Steps done, the figures of `finished.json` as far as they are known, and the job.
    """
    chat = ChatFormat.load(config.model, template=config.chat_template)
    prepared, job = make_job(config, chat, Corpus.of(trajectories, chat), trajectories, selections)
    reached = run_worker(job, torch.device("cpu"), stop)
    write_tokenizer(RunFolder(config.run), chat.tokenizer)
    return reached, figures_of(prepared, job), job
