"""The selection stage: reads trajectories, runs one selector, writes selections. The one module here that speaks Ray.

Flows in: a `SelectConfig`; flows out: a run folder with the table `selections` (and `replies`, for `llm`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from math import ceil
from typing import TYPE_CHECKING, Any

from atlas_ray.cluster import placement
from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.client import key_of
from atlas_ray.models.source import fetch_for_workers
from atlas_ray.runs.folder import RunFolder, reachable
from atlas_ray.runs.progress import Tracker
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.baselines import control
from atlas_ray.selection.budget import record
from atlas_ray.selection.combine import CombineSelector, combination
from atlas_ray.selection.file import FileSelector, imported
from atlas_ray.selection.llm.answer import PARSER_VERSION
from atlas_ray.selection.llm.coordinator import Coordinator, LocalLink
from atlas_ray.selection.llm.journal import REPLIES
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.settings import LlmSelector
from atlas_ray.selection.llm.stage import LlmStage, backend_of
from atlas_ray.selection.perplexity.scores import select_perplexity
from atlas_ray.selection.perplexity.settings import PerplexitySelector, dtype_of, engine_of, workers_of
from atlas_ray.selection.perplexity.torch_engine import TorchScorer
from atlas_ray.selection.perplexity.vllm_engine import start_vllm
from atlas_ray.selection.protocol import StageContext
from atlas_ray.selection.python_function import PythonSelector, load_call, select_own
from atlas_ray.selection.rescore import rescored
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.sources import watch_sources
from atlas_ray.selection.value.settings import ValueSelector
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.trajectories.rejected import Rejected, rejected_figures, write_rejected
from atlas_ray.types import Selection, Trajectory, Usage

if TYPE_CHECKING:
    import pyarrow as pa

_log = logging.getLogger(__name__)

# Scored together, whatever the number of workers: packs, and with them rounding, are then the same in every run.
_CHUNK = 16
_READ_BY = "parser.json"  # which version of the parser read the replies
_NO_MODEL = "no model: "  # an error that concerns every trajectory


def select_steps(config: SelectConfig, *, clean: bool = False) -> RunFolder:
    """Selects critical steps in a data set, or goes on where an earlier run stopped.

    A finished run is left alone, unless it holds failures of calls or rollouts: those are tried again.

    Args:
        config: What to select in, by which selector, and where to write.
        clean: Starts anew; paid replies are kept.

    Raises:
        UserError: If the folder holds a run of another configuration, the data set is unusable, or a selector's
            setting is.
        AtlasError: If a model, an endpoint or Ray fails as a whole.
    """
    begun = time.monotonic()
    folder = RunFolder(config.run)
    config = settled(config, folder, clean)
    paid = [(table, folder.read(table)) for table in config.selector.kept_on_clean()] if clean else []
    folder.begin(config, stage="select", clean=clean)
    for table, rows in paid:
        if rows:
            folder.write_shard(table, rows)
    watch_sources(folder, config.selector, config.run)
    finished = folder.finished
    outdated = isinstance(config.selector, LlmSelector) and _outdated(folder)
    if finished is not None and not outdated and not (finished["errors"] and config.selector.retries_failures):
        return folder

    rejected: list[Rejected] = []
    trajectories = read_trajectories(config.data, rejected)
    write_rejected(folder, rejected)
    if not trajectories:
        raise UserError(f"{config.data.path} holds no usable trajectory", f"see rejected.jsonl in {config.run}")

    done = set() if outdated else folder.done(SELECTIONS)
    found, usage = _run(config, trajectories, done, folder, rejected), Usage()
    total = len(trajectories) - len(done)
    title = f"select ({config.selector.name})"
    with (
        folder.writer(SELECTIONS) as writer,
        closing(found),
        Tracker(title, len(trajectories), sum(t.id in done for t in trajectories)) as tracker,
    ):
        for count, selection in enumerate(found, 1):
            writer.add(selection)
            if isinstance(config.selector, ValueSelector):
                writer.flush()  # hundreds of episodes each
            usage += selection.usage
            tracker.advance(note=config.selector.note(usage, count, total))
    folder.compact(SELECTIONS)
    folder.compact(REPLIES)
    figures = _figures(folder.read(SELECTIONS), config)
    if isinstance(config.selector, LlmSelector):
        folder.write_json(_READ_BY, {"parser": PARSER_VERSION})
    folder.finish(**figures, **rejected_figures(rejected), seconds=round(time.monotonic() - begun, 3))
    return folder


def settled(config: SelectConfig, folder: RunFolder, clean: bool) -> SelectConfig:
    """The configuration with all that its selector decides before the run begins."""
    begun = {} if clean or not folder.exists else folder.read_json("manifest.json")["config"].get("selector", {})
    return config.model_copy(update={"selector": config.selector.settled(config.run, config.ray, begun)})


def _run(
    config: SelectConfig,
    trajectories: Sequence[Trajectory],
    done: Collection[str],
    folder: RunFolder,
    rejected: list[Rejected],
) -> Generator[Selection, None, None]:
    """Selections of what is not done, in any order; rows that `file` refuses join `rejected`."""
    selector = config.selector
    todo = [t for t in trajectories if t.id not in done]
    if not todo:
        return
    if isinstance(selector, PerplexitySelector | ValueSelector) and selector.scores is not None:
        yield from map(rescored(selector, config.run), todo)
    elif isinstance(selector, PerplexitySelector):
        yield from _perplexity(config, selector, trajectories, done)
    elif isinstance(selector, LlmSelector):
        yield from _llm(config, selector, todo, folder)
    elif isinstance(selector, ValueSelector):
        from atlas_ray.selection.value.stage import select_value

        yield from select_value(config, selector, todo)
    elif isinstance(selector, FileSelector):
        select = imported(selector, trajectories, rejected)
        write_rejected(folder, rejected)
        yield from map(select, todo)
    elif isinstance(selector, PythonSelector):
        yield from _own(config, selector, todo)
    elif isinstance(selector, CombineSelector):
        yield from map(combination(selector, config.run, trajectories), todo)
    else:
        yield from map(control(selector, config.seed, config.run), todo)


def _perplexity(
    config: SelectConfig, selector: PerplexitySelector, trajectories: Sequence[Trajectory], done: Collection[str]
) -> Generator[Selection, None, None]:
    """Scores on an actor pool, chunks of like length; a chunk that an earlier run left half done is scored anew."""
    from atlas_ray.cluster.connection import connect

    connect(config.ray)
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    by_length = sorted(trajectories, key=lambda t: (-sum(len(m.content) for m in t.messages), t.id))
    chunks = [by_length[i : i + _CHUNK] for i in range(0, len(by_length), _CHUNK)]
    # Into Ray's object store one by one: what it has no room for goes to disk, and nothing is held here twice.
    refs: Any = [ray.put(TRAJECTORIES.to_table(chunk)) for chunk in chunks if any(t.id not in done for t in chunk)]
    fetch_for_workers(selector.model)
    gpus = placement.gpus()
    workers = workers_of(selector, ray.cluster_resources().get("GPU", 0), len(refs))
    # A whole number of workers to a GPU, lest the last ones find no room.
    share = 1 / ceil(workers / gpus) if gpus else 0.0
    remedy = "lower selector.num_workers, or add nodes (ray.num_cpus where Ray runs here alone)"
    need = {"CPU": 1, "GPU": share}
    labels = placement.labels_for(placement.ROLLOUT, None if share else {}, need)
    placement.require(need, workers, "scoring workers", remedy, labels)
    scored = from_arrow_refs(refs).map_batches(
        _PerplexityWorker,
        fn_constructor_args=(selector, engine_of(selector, gpus), reachable(selector.model), workers, share),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=workers),
        num_cpus=1,
        num_gpus=share,
        label_selector=labels or None,
    )
    try:
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for selection in SELECTIONS.from_table(table):
                if selection.error and selection.error.startswith(_NO_MODEL):
                    raise UserError(selection.error, "check selector.model, or try another selector.engine")
                if selection.id not in done:
                    yield selection
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[-1]
        raise AtlasError(f"scoring failed: {why}", "run the same command again; ATLAS_RAY_LOGS=1 shows more") from error


def _own(
    config: SelectConfig, selector: PythonSelector, todo: Sequence[Trajectory]
) -> Generator[Selection, None, None]:
    """A user's function on Ray's tasks; it travels with its module, which no worker needs to have."""
    from atlas_ray.cluster.connection import connect

    call = load_call(selector.call)
    connect(config.ray)
    import ray
    from ray.data import from_arrow_refs

    ray.cloudpickle.register_pickle_by_value(sys.modules[call.__module__])
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]

    def select(table: pa.Table) -> pa.Table:
        return SELECTIONS.to_table(select_own(t, selector, call) for t in TRAJECTORIES.from_table(table))

    refs: Any = [ray.put(TRAJECTORIES.to_table(chunk)) for chunk in chunks]
    found = from_arrow_refs(refs).map_batches(select, batch_size=None, batch_format="pyarrow")
    for table in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from SELECTIONS.from_table(table)


class _PerplexityWorker:
    """One actor: scores a chunk of trajectories; a trajectory that fails costs only itself."""

    def __init__(self, config: PerplexitySelector, engine: str, model: str, workers: int, gpu_share: float) -> None:
        self._config, self._engine, self._model = config, engine, model
        self._workers, self._gpu_share = workers, gpu_share
        self._score: Callable[[Sequence[Trajectory]], list[tuple[float, ...]]] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        c, trajectories = self._config, TRAJECTORIES.from_table(table)
        if self._score is None:
            try:
                self._score = self._load()
            except Exception as error:  # noqa: BLE001 (Ray would wrap it in pages; the driver raises it in one line)
                why = _NO_MODEL + _line(error)
                return SELECTIONS.to_table(record(t, c, error=why) for t in trajectories)
        try:
            scores = self._score(trajectories)
            return SELECTIONS.to_table(select_perplexity(t, c, s) for t, s in zip(trajectories, scores, strict=True))
        except ModelFailure:
            raise  # an engine that broke would fail every trajectory to come
        except Exception:  # noqa: BLE001 (one of them; which one, shows alone)
            return SELECTIONS.to_table(self._alone(t) for t in trajectories)

    def _load(self) -> Callable[[Sequence[Trajectory]], list[tuple[float, ...]]]:
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
            return select_perplexity(trajectory, self._config, self._score([trajectory])[0])
        except Exception as error:  # noqa: BLE001 (a row's failure is data)
            why = f"cannot be scored: {_line(error)}"
            return record(trajectory, self._config, model=self._config.model, error=why)


def _outdated(folder: RunFolder) -> bool:
    """Whether the replies were read by another version of the parser: they are then read anew, at no cost."""
    return folder.has(_READ_BY) and folder.read_json(_READ_BY)["parser"] != PARSER_VERSION


def _llm(
    config: SelectConfig, selector: LlmSelector, todo: Sequence[Trajectory], folder: RunFolder
) -> Generator[Selection, None, None]:
    """Asks the model, in this process: waiting needs no workers."""
    stage = LlmStage(selector, StageContext(folder, config.data, config.seed, config.environments, config.ray, None))
    if not folder.has(_READ_BY):
        folder.write_json(_READ_BY, {"parser": PARSER_VERSION})
    with asyncio.Runner() as runner:
        yield from runner.run(_judged(config, selector, todo, folder))
    del stage


async def _judged(
    config: SelectConfig, selector: LlmSelector, todo: Sequence[Trajectory], folder: RunFolder
) -> list[Selection]:
    key = "" if selector.engine else key_of(selector.endpoint)
    coordinator = Coordinator(selector, folder)
    await coordinator.open(key)
    link = LocalLink(coordinator)
    backend = backend_of(selector, folder, config.ray, link, key)
    try:
        return await Judge(selector, backend, link, config.seed).judge_all(todo)
    finally:
        await backend.close()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _figures(selections: Sequence[Selection], config: SelectConfig) -> dict[str, Any]:
    """What the run found, counted over all attempts."""
    good = [s for s in selections if s.error is None]
    steps, chosen = sum(s.n_steps for s in good), sum(len(s.chosen) for s in good)
    usage = sum((s.usage for s in selections), Usage())
    figures = {
        "trajectories": len(selections),
        "steps": steps,
        "chosen": chosen,
        "requested": getattr(config.selector, "ratio", None),
        "actual": chosen / steps if steps else None,
        "empty": sum(not s.chosen for s in good),  # training leaves these out
        "errors": dict(Counter(s.error.split(":")[0] for s in selections if s.error)),
        "usage": asdict(usage),
    }
    return figures | config.selector.figures(selections)
