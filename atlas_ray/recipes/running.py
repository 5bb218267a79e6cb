"""The running of a recipe: a preflight, then its stages, as many at once as have room.

Flows in: a `Recipe`; flows out: run folders, the report, and `stages.json` beside them: what runs, waits and failed.
One at a time, stages run in this process; else each in one of its own, on the Ray cluster that this one has joined.
"""

from __future__ import annotations

import os
import queue
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from rich.text import Text

from atlas_ray.cluster.connection import connect
from atlas_ray.errors import AtlasError, ConfigurationChanged, Stopped, Unresponsive, UserError, is_interrupted
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.nodes import named, nodes_at_hand
from atlas_ray.recipes.plan import timed
from atlas_ray.recipes.scheduling import Node, Scheduler, Stage, makespan
from atlas_ray.recipes.stage_process import StageProcess, as_ours
from atlas_ray.recipes.stages import answers_to, stages_for
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.loading import AGAIN, failure_of, record_failure
from atlas_ray.runs.progress import console
from atlas_ray.runs.status import StageRecord
from atlas_ray.runs.units import is_unit_line

_PASSED_OVER = 2.0  # seconds; a stage that takes no longer was finished before, and says nothing about the pace
_EXPECTED = 60.0  # seconds of the plan that count as timed already, lest one short stage sets the pace


def run(
    recipe: Recipe,
    only: Sequence[str] = (),
    whole: Recipe | None = None,
    *,
    jobs: int | None = None,
    skip_preflight: bool = False,
) -> None:
    """Runs a preflight, then the stages; what is finished is passed over by the stages themselves.

    A stage that fails leaves its cells empty, and what needs it is skipped; the rest goes on.

    Args:
        recipe: What to run.
        only: Names or groups (`train`, `select/gold`) of stages to run; all where empty.
        whole: What the report is about, where that is more.
        jobs: Stages that run at once at most; None: as the recipe says, else as the cluster allows.
        skip_preflight: Starts without it, and records that.

    Raises:
        UserError: If no stage is of such a name, the preflight finds a fault, or a run folder holds a run of another
            configuration.
        AtlasError: If stages failed; every other has run by then.
        Stopped: If a SIGTERM ended it.
    """
    from atlas_ray.recipes.preflight.run import require_passed, skip

    try:
        nodes = nodes_at_hand(recipe.config.ray)
    except AtlasError:
        nodes = []  # the preflight says so, beside all else, or the stage that needs it
    planned, jobs = stages_for(recipe, nodes, jobs, whole)
    wanted = set(only)
    chosen = [s for s in planned if not wanted or wanted & answers_to(s.name)]
    if not chosen:
        tables = [f"; tables: {', '.join(recipe.config.tables)}"] if recipe.config.tables else []
        valid = ", ".join(s.name for s in planned)
        raise UserError(f"the recipe has no stage {', '.join(only)}", f"valid: {valid}{''.join(tables)}")
    if skip_preflight:
        skip(recipe)
    else:
        require_passed(recipe, [s.name for s in chosen], console)
    run = _Run(recipe, chosen, nodes, jobs)
    with run.record:
        run.one_by_one() if jobs == 1 or len(chosen) == 1 else run.at_once()
    run.raise_failures()


class _Run:
    """A recipe under way."""

    def __init__(self, recipe: Recipe, stages: Sequence[Stage], nodes: Sequence[Node], jobs: int) -> None:
        self._recipe, self._stages = recipe, stages
        self._scheduler = Scheduler(timed(recipe, stages), nodes, jobs)
        self.record = StageRecord(RunFolder(recipe.root), self._states)
        self._errors: dict[str, AtlasError] = {}
        self._began: dict[str, float] = {}
        self._spent = self._weighed = 0.0
        self._processes: dict[str, StageProcess] = {}

    def one_by_one(self) -> None:
        """In this process, in order."""
        total = len(self._scheduler.states)
        while (stage := self._scheduler.next()) is not None:
            number = total - len(self._scheduler.of("waiting"))
            planned = sum(s.seconds for s in self._scheduler.of("waiting", "running"))
            self._say_begun(f"{number}/{total} {stage.name}", self._left(planned), stage.description)
            self._run_here(stage)

    def at_once(self) -> None:
        """Each in a process of its own, but for the last one."""
        ended: queue.SimpleQueue[str] = queue.SimpleQueue()
        environment = self._join_cluster()  # first: Ray takes SIGTERM for itself
        with self._ended_together():
            while waiting := self._scheduler.of("waiting", "running"):
                if len(waiting) == 1 and (stage := self._scheduler.next()) is not None:
                    self._announce(stage)
                    self._run_here(stage)
                    continue
                while (stage := self._scheduler.next()) is not None:
                    self._announce(stage)
                    width = {"COLUMNS": str(console.width - len(_prefix(stage.name)))}
                    said, over = partial(_say, stage.name), partial(ended.put, stage.name)
                    process = StageProcess(environment | width, said, over)
                    self._processes[stage.name] = process  # first: a signal from here on ends it too
                    process.begin(self._call(stage))
                self.record.write()
                name = ended.get()
                self._over(name, self._processes.pop(name).error())

    def raise_failures(self) -> None:
        """Raises what to say at the end.

        Raises:
            AtlasError: If a stage failed.
        """
        if not self._errors:
            return
        said = [f"{name}: {e.what}" + (f" ({e.remedy})" if e.remedy else "") for name, e in self._errors.items()]
        if skipped := self._scheduler.of("skipped"):
            said.append(f"skipped, for they need these: {', '.join(stage.name for stage in skipped)}")
        many = "stages" if len(self._errors) > 1 else "stage"
        raise AtlasError(f"{len(self._errors)} {many} failed:\n  " + "\n  ".join(said), AGAIN)

    def _run_here(self, stage: Stage) -> None:
        self._began[stage.name] = time.monotonic()
        self.record.write()
        error: Exception | None = None
        try:
            self._call(stage)()
        except Exception as failure:  # whatever ends a stage, the others go on
            if is_interrupted(failure):
                raise
            if os.environ.get("ATLAS_VERBOSE") and not isinstance(failure, AtlasError):
                traceback.print_exc()
            error = failure
        self._over(stage.name, error)

    def _call(self, stage: Stage) -> Callable[[], Any]:
        without = self._scheduler.left_out(stage)
        return partial(stage.run, without) if without else stage.run

    def _over(self, name: str, error: Exception | None) -> None:
        """Writes down what became of a stage.

        Raises:
            AtlasError: If it concerns the whole recipe.
        """
        if isinstance(error, ConfigurationChanged | Stopped | Unresponsive):
            raise error
        (stage,) = (s for s in self._scheduler.of("running") if s.name == name)
        if (seconds := time.monotonic() - self._began[name]) > _PASSED_OVER:
            self._spent, self._weighed = self._spent + seconds, self._weighed + stage.seconds
        if error is None:
            self._scheduler.finish(name)
            if name.startswith("collect/"):  # what was collected can be counted from now on
                self._scheduler.plan(timed(self._recipe, self._stages))
        else:
            self._errors[name] = as_ours(error)
            for empty in self._scheduler.fail(name, self._errors[name].what):
                why = AtlasError(self._scheduler.why[empty.name], self._errors[name].remedy)
                for folder in map(RunFolder, empty.folders):
                    if folder.finished is None and (empty.name != name or failure_of(folder) is None):
                        record_failure(folder, why)
            console.print(Text(f"{name} failed: {as_ours(error)}\n  what does not need it goes on", "red"))
        self.record.write()

    def _announce(self, stage: Stage) -> None:
        self._began[stage.name] = time.monotonic()
        running, waiting = (self._scheduler.of(state) for state in ("running", "waiting"))
        left = self._left(makespan([*running, *waiting], self._scheduler.nodes, self._scheduler.jobs))
        begun = len(self._scheduler.states) - len(waiting)
        together = f"{len(waiting)} waiting, running: {', '.join(s.name for s in running)}"
        self._say_begun(f"{begun}/{len(self._scheduler.states)} {stage.name}", left, together)

    @staticmethod
    def _say_begun(name: str, *words: str) -> None:
        """One line, whose end narrow screens cut off."""
        console.rule(Text.assemble((name, "bold"), f"  {'; '.join(filter(None, words))}"), align="left")

    def _left(self, planned: float) -> str:
        """How long what is planned at so many seconds takes at the pace so far; nothing while no stage was timed."""
        pace = (self._spent + _EXPECTED) / (self._weighed + _EXPECTED)
        return f"about {max(1, round(planned * pace / 60))} min left in all" if self._weighed else ""

    def _states(self) -> dict[str, dict[str, Any]]:
        scheduler = self._scheduler
        found: dict[str, dict[str, Any]] = {name: {"state": state} for name, state in scheduler.states.items()}
        for stage in scheduler.of("waiting"):
            found[stage.name]["for"] = scheduler.waits_for(stage) or ["room"]
        for name, why in [*scheduler.why.items()]:  # another thread may add to them
            found[name]["why"] = why
        return found

    def _join_cluster(self) -> dict[str, str]:
        """What the stages' processes are told, to join the cluster that this one has joined or started."""
        # workers and the stages' processes find this package where this process found it
        source = str(Path(__file__).parents[2])
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        if named(self._recipe.config.ray):
            return {}
        import ray

        connect(self._recipe.config.ray)
        return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    @contextmanager
    def _ended_together(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM, and what concerns the whole recipe end the stages under way in good order, and wait."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise Stopped("the recipe was stopped (SIGTERM)", "the same command goes on from there")

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except BaseException as error:
            number = signal.SIGTERM if isinstance(error, Stopped) else signal.SIGINT
            console.print(f"stopping {', '.join(self._processes)}", style="yellow")
            try:
                for process in self._processes.values():
                    process.send(number)
                for process in self._processes.values():
                    process.wait()
            finally:  # once more: at once
                for process in self._processes.values():
                    process.send(signal.SIGKILL)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def _prefix(stage: str) -> str:
    """What stands before the lines of a stage that does not run alone."""
    return f"{stage} | "


def _say(stage: str, line: str) -> None:
    """A line of a stage's process, under its name; those for log collectors as they are."""
    console.print(Text(line if is_unit_line(line) else f"{_prefix(stage)}{line}"), soft_wrap=True)
