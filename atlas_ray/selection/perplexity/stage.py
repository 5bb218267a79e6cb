"""Perplexity as a stage: actors that hold the model score blocks of trajectories."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING

from atlas_ray.cluster import placement
from atlas_ray.cluster.dataset import map_on_ray
from atlas_ray.errors import ModelFailure, UserError
from atlas_ray.models.source import fetch_for_workers
from atlas_ray.runs.failures import FailureWatch
from atlas_ray.runs.folder import reachable
from atlas_ray.runs.store import first_line
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.budget import record
from atlas_ray.selection.perplexity.scores import Scores, dtype_of, engine_of, select_perplexity, workers_of
from atlas_ray.selection.perplexity.torch_engine import TorchScorer
from atlas_ray.selection.perplexity.vllm_engine import start_vllm
from atlas_ray.selection.protocol import Stage, StageContext
from atlas_ray.types import Selection, Trajectory

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from atlas_ray.selection.perplexity.settings import PerplexitySettings


class PerplexityStage(Stage):
    """Scores on a pool of actors.

    Blocks are whole, whatever was done before: the packs of a block, and with them rounding, are then the same in every
    run and on any number of workers.
    """

    rows_per_block = 32
    whole_blocks = True

    def __init__(self, selector: PerplexitySettings, context: StageContext) -> None:
        self._selector = selector
        self._blocks = ceil(context.index.num_rows / self.rows_per_block)

    def apply(self, trajectories: Dataset) -> Dataset:
        """Scores blocks.

        Raises:
            UserError: If the cluster has no room for the workers.
        """
        import ray
        from ray.data import ActorPoolStrategy

        selector = self._selector
        fetch_for_workers(selector.model)
        gpus = placement.gpus()
        workers = workers_of(selector, ray.cluster_resources().get("GPU", 0), self._blocks)
        # A whole number of workers to a GPU, lest the last ones find no room.
        share = 1 / ceil(workers / gpus) if gpus else 0.0
        remedy = "lower selector.num_workers, or add nodes (ray.num_cpus where Ray runs here alone)"
        need = {"CPU": 1, "GPU": share}
        labels = placement.labels_for(placement.ROLLOUT, None if share else {}, need)
        placement.require(need, workers, "scoring workers", remedy, labels)
        return map_on_ray(
            trajectories,
            PerplexityWorker,
            selector,
            engine_of(selector, gpus),
            reachable(selector.model),
            workers,
            share,
            workers=ActorPoolStrategy(size=workers),
            num_cpus=1,
            num_gpus=share,
            label_selector=labels or None,
        )


class PerplexityWorker:
    """One actor: scores a chunk of trajectories; a trajectory that fails costs only itself."""

    def __init__(self, config: PerplexitySettings, engine: str, model: str, workers: int, gpu_share: float) -> None:
        self._config, self._engine, self._model = config, engine, model
        self._workers, self._gpu_share = workers, gpu_share
        self._score: Callable[[Sequence[Trajectory]], list[Scores]] | None = None
        self._watch = FailureWatch("selections")

    def __call__(self, table: pa.Table) -> pa.Table:
        c, trajectories = self._config, TRAJECTORIES.from_table(table)
        if self._score is None:
            try:
                self._score = self._load()
            except Exception as error:  # noqa: BLE001 (whatever it is, it concerns every trajectory)
                what = f"no model: {first_line(error)}"
                raise UserError(what, "check selector.model, or try another selector.engine") from None
        try:
            scores = self._score(trajectories)
            self._watch.add(None)
            return SELECTIONS.to_table(select_perplexity(t, c, s) for t, s in zip(trajectories, scores, strict=True))
        except ModelFailure:
            raise  # an engine that broke would fail every trajectory to come
        except Exception:  # noqa: BLE001 (one of them; which one, shows alone)
            return SELECTIONS.to_table(self._alone(t) for t in trajectories)

    def _load(self) -> Callable[[Sequence[Trajectory]], list[Scores]]:
        c, dtype = self._config, dtype_of(self._config, self._gpu_share)
        if self._engine == "vllm":
            return start_vllm(
                self._model,
                dtype,
                c.max_length,
                workers=self._workers,
                gpu_share=self._gpu_share,
                chat_template=c.chat_template,
            )
        # Ray leaves an actor one thread; threads that spin while they wait bring a busy machine to a crawl.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        threads = max(1, (os.cpu_count() or 1) // self._workers)
        scorer = TorchScorer(
            self._model, dtype, c.batch_tokens, c.max_length, threads=threads, chat_template=c.chat_template
        )
        return scorer.score

    def _alone(self, trajectory: Trajectory) -> Selection:
        assert self._score is not None
        try:
            found = select_perplexity(trajectory, self._config, self._score([trajectory])[0])
            self._watch.add(None)
        except Exception as error:  # noqa: BLE001 (a row's failure is data)
            why = f"cannot be scored: {first_line(error)}"
            self._watch.add(why)
            return record(trajectory, self._config, model=self._config.model, error=why)
        return found
