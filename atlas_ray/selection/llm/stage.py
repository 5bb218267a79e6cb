"""Judging as a stage of the pipeline: async actors that ask, and one coordinator that they share.

Flows in: blocks of trajectories; flows out: blocks of selections. The one module of this package that speaks Ray Data.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_ray.cluster.dataset import map_on_ray
from atlas_ray.cluster.placement import beside_driver
from atlas_ray.config import RayConfig
from atlas_ray.errors import UserError
from atlas_ray.models.client import ChatClient, key_of
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.llm.answer import PARSER_VERSION
from atlas_ray.selection.llm.backends.batch import BatchBackend
from atlas_ray.selection.llm.backends.protocol import Backend
from atlas_ray.selection.llm.coordinator import Coordinator, Link, SharedThrottle
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.prompt import load_prompt
from atlas_ray.selection.protocol import Stage, StageContext

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

    from atlas_ray.selection.llm.settings import LlmSettings

_log = logging.getLogger(__name__)
_READ_BY_WORKERS = ("prompt_file", "prices_file", "tokenizer")
_READ_BY = "parser.json"  # which version of the parser read the replies
_BLOCKS = 4  # that one actor works at, at least: a block is done when the last of its trajectories is
_MOST_ROWS, _MOST_BATCHED_ROWS = 64, 1024  # of a block


class LlmStage(Stage):
    """Asks the model about blocks of trajectories.

    Raises:
        UserError: If prompt, price list or context are unusable, `max_cost` is set for a model without a known price,
            or the folder holds selections by another prompt.
    """

    def __init__(self, config: LlmSettings, context: StageContext) -> None:
        # Workers may have started elsewhere.
        paths = {name: reachable(path) for name in _READ_BY_WORKERS if (path := getattr(config, name))}
        if config.cache and "://" not in config.cache:
            paths["cache"] = str(Path(config.cache).resolve())
        self._config, self._context = config.model_copy(update=paths), context
        mine, folder = load_prompt(config.prompt_file, config.prompt).hash, context.folder
        for table in folder.tables(SELECTIONS, ["prompt_hash", "error"]):
            held = zip(table["prompt_hash"].to_pylist(), table["error"].to_pylist(), strict=True)
            if any(error is None and prompt != mine for prompt, error in held):
                raise UserError(
                    f"{folder.uri} holds selections by another prompt",
                    "restore the prompt file, or start anew with --clean",
                )
        _ = config.prompt_limit  # refuses a context that holds no more than the replies
        if config.price is None:
            if config.max_cost is not None:
                raise UserError(
                    f"selector.max_cost cannot be kept: no price is known for {config.model}",
                    "unset selector.max_cost, or name the price in selector.prices_file",
                )
            _log.warning("no price is known for %s: costs are recorded as 0", config.model)
        asks = config.engine is None and config.mode == "live"
        self._actors = min(config.num_workers, config.endpoint.concurrency) if asks else 1
        share = ceil(config.at_once / self._actors)
        # Blocks that come together are one batch; those that come later must not wait for it, which takes hours.
        most = _MOST_ROWS if config.mode == "live" else _MOST_BATCHED_ROWS
        self.rows_per_block = min(most, ceil(share / _BLOCKS))
        self._blocks = ceil(share / self.rows_per_block) + 1
        self._coordinator: Any = None
        self._opened: Any = None

    def apply(self, trajectories: Dataset) -> Dataset:
        """Selections of blocks, as their last trajectory is judged."""
        import ray
        from ray.data import ActorPoolStrategy

        config, folder = self._config, self._context.folder
        if not folder.has(_READ_BY):
            folder.write_json(_READ_BY, {"parser": PARSER_VERSION})
        coordinator: Any = ray.remote(Coordinator)
        self._coordinator = coordinator.options(**beside_driver()).remote(config, folder)
        # Nobody waits here for what it finds: the judging actors do, and start meanwhile.
        self._opened = self._coordinator.open.remote("" if config.engine else key_of(config.endpoint))
        workers = ActorPoolStrategy(
            size=self._actors,
            max_tasks_in_flight_per_actor=self._blocks,
            max_concurrent_calls_per_actor=self._blocks,
        )
        model = reachable(config.model) if config.engine else config.model
        given = config, model, folder, self._context.ray, self._context.seed, self._coordinator
        # an actor waits, all but always
        return map_on_ray(trajectories, JudgingActor, *given, workers=workers, num_cpus=0)

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        """Ends the coordinator, and notes who read the replies."""
        if self._coordinator is not None:
            import ray

            with suppress(Exception):  # the judging actors have told of it; Ray prints what nobody has looked at
                ray.get(self._opened, timeout=0)
            ray.kill(self._coordinator)
        if failed is None:
            self._context.folder.write_json(_READ_BY, {"parser": PARSER_VERSION})


def read_by_another_parser(folder: RunFolder) -> bool:
    """Whether a run's replies were read by another version of the parser."""
    return folder.has(_READ_BY) and folder.read_json(_READ_BY)["parser"] != PARSER_VERSION


class JudgingActor:
    """Judges blocks, several at once, in one event loop."""

    def __init__(
        self, config: LlmSettings, model: str, folder: RunFolder, ray: RayConfig, seed: int, coordinator: Any
    ) -> None:
        self._config, self._model, self._folder, self._ray, self._seed = config, model, folder, ray, seed
        self._coordinator = coordinator
        self._judge: asyncio.Task[Judge] | None = None

    async def __call__(self, table: pa.Table) -> pa.Table:
        """Selections of a block."""
        self._judge = self._judge or asyncio.create_task(self._started())
        judge = await self._judge
        return SELECTIONS.to_table(await judge.judge_all(TRAJECTORIES.from_table(table)))

    async def _started(self) -> Judge:
        import ray

        link = Link(self._coordinator)
        key = await link.ask("join", ray.get_runtime_context().get_actor_id())
        asked = self._config.model_copy(update={"model": self._model})
        backend = backend_of(asked, self._folder, self._ray, link, key)
        return Judge(self._config, backend, link, self._seed)


def backend_of(config: LlmSettings, folder: RunFolder, ray: RayConfig, link: Link, key: str) -> Backend:
    """Whom a selector asks.

    Args:
        config: The selector's section.
        folder: The run's, where batches are on record.
        ray: How engines are reached.
        link: To the run's coordinator, which says how fast an endpoint may be asked.
        key: Of the endpoint.
    """
    if config.engine is not None:
        from atlas_ray.selection.llm.backends.vllm import EngineBackend

        return EngineBackend.of(config.model, config.engine, ray)
    if config.mode == "batch":
        return BatchBackend(config, folder, key=key)
    return ChatClient(config.model, config.endpoint, price=config.price, gate=SharedThrottle(link), key=key)
