"""Selectors that choose in one trajectory at a time, by a function: what most selectors are."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from atlas_ray.cluster.dataset import map_on_ray
from atlas_ray.errors import AtlasError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS, TRAJECTORIES
from atlas_ray.selection.protocol import Selector, Stage, StageContext
from atlas_ray.selection.sources import find_source
from atlas_ray.trajectories.index import Outline
from atlas_ray.types import Selection, Trajectory

if TYPE_CHECKING:
    from ray.data import Dataset

Rule = Callable[[Any], Selection]  # of a Trajectory, or of an Outline
_made: dict[str, Rule] = {}  # in a worker: of the stage that it works for


class RowStage(Stage):
    """Applies a rule to each trajectory; the pipeline does so where they are read.

    Args:
        make: Makes the rule, once in each process that applies it: what it reads is read there.
        outlines: Whether the rule looks at ids and numbers of steps alone: it is given each trajectory's `Outline`, and
            no text is read.
    """

    rows_per_block = 4096

    def __init__(self, make: Callable[[], Rule], *, outlines: bool = False) -> None:
        self.outlines, self._make, self._key = outlines, make, uuid.uuid4().hex

    def select(self, rows: Iterable[Trajectory] | Iterable[Outline]) -> Iterator[pa.Table]:
        """Selections of rows, in their order; in any process. Those before an error that ends the run come first."""
        if self._key not in _made:
            _made.clear()
            _made[self._key] = self._make()
        rule, selections = _made[self._key], list[Selection]()
        try:
            for row in rows:
                selections.append(rule(row))
        except AtlasError:
            yield SELECTIONS.to_table(selections)
            raise
        yield SELECTIONS.to_table(selections)

    def apply(self, trajectories: Dataset) -> Dataset:
        """The same of blocks."""
        return map_on_ray(trajectories, lambda table: self.select(TRAJECTORIES.from_table(table)))


class RowSelector(Selector):
    """A selector by a rule for one trajectory. What it draws comes from (run seed, selector, trajectory id)."""

    reads_texts: ClassVar[bool] = True  # whether the rule looks at more than ids and numbers of steps

    @abstractmethod
    def make_rule(self, sources: Mapping[str, RunFolder], seed: int) -> Rule:
        """The rule, made in each process that applies it.

        Args:
            sources: The finished selections that the section names.
            seed: The run's.
        """

    def stage(self, context: StageContext) -> Stage:
        """The rule, applied to each.

        Raises:
            UserError: If a source is no finished selection.
        """
        sources, seed = {name: find_source(name, context.run) for name in self.sources()}, context.seed
        return RowStage(lambda: self.make_rule(sources, seed), outlines=not self.reads_texts)
