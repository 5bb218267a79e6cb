"""What a selector is: its settings and, with them, all that the pipeline and the recipes ask of it; and its stage.

A new selector is one file with one subclass of `Selector` and one line in `SELECTORS`; outside the package it is
named as `module:Class`, or by an entry point of the group `atlas_ray.selectors`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from atlas_ray.config import (
    BackboneConfig,
    DataConfig,
    EndpointConfig,
    EngineConfig,
    EnvironmentsConfig,
    FrozenConfig,
    RayConfig,
)
from atlas_ray.models.protocol import ModelUse
from atlas_ray.plugins import Registry, is_own, source_digest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import TableSpec
from atlas_ray.trajectories.agenttraj import Shape
from atlas_ray.trajectories.rejected import Rejected
from atlas_ray.types import Selection, Trajectory, Usage

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset


@dataclass(frozen=True)
class StageContext:
    """What a stage may ask for.

    Attributes:
        folder: The run's; workers may write tables of their own into it.
        index: Of every usable trajectory of the data, in the order read: `id`, `env`, `item_id`, `n_steps`, and `todo`,
            false where an earlier attempt made its selection.
        rejected: Rows that were refused; a stage adds what it refuses of its own files.
    """

    folder: RunFolder
    data: DataConfig
    seed: int
    environments: EnvironmentsConfig
    ray: RayConfig
    index: pa.Table
    rejected: list[Rejected]

    @property
    def run(self) -> str:
        """The run folder's path or URI."""
        return self.folder.uri


class Stage(ABC):
    """Makes selections of a stream of trajectories; used as a context manager, in the driver.

    Workers write each block of selections as it comes out of `apply`, so a block is what a kill may cost. What stops
    the whole run (a refused key, a budget that is spent) is raised in a worker as an `AtlasError`, and reaches the
    driver as it is; what concerns one trajectory is its selection's `error`.

    Attributes:
        rows_per_block: Trajectories that come as one block, at most.
        whole_blocks: Whether blocks come with the trajectories that are done already, as they came in every attempt;
            their selections are not written again.
        checked: Trajectories of each environment that `check` is given, at most.
    """

    rows_per_block: int = 1024
    whole_blocks: bool = False
    checked: int = 0

    def check(self, trajectories: Dataset) -> None:  # noqa: B027
        """Refuses what cannot succeed, before anything is spent on it.

        Args:
            trajectories: The first ones of each environment in which something is to be selected.

        Raises:
            UserError: With the reason.
        """

    def heartbeat(self) -> str:
        """How the work goes on while no selection comes out, in a few words; none where that is never for long."""
        return ""

    @abstractmethod
    def apply(self, trajectories: Dataset) -> Dataset:
        """Rows of `TRAJECTORIES` to rows of `SELECTIONS`, in any order; none lost, none twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:  # noqa: B027
        """Ends what the stage holds; `failed` is None where every selection has been written."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a selection takes, for a plan: `words` with the arithmetic; tokens that engines read and write, calls of an
    endpoint and their US dollars."""

    words: str = ""
    read: float = 0.0
    written: float = 0.0
    calls: float = 0.0
    dollars: float = 0.0


class Selector(FrozenConfig, ABC):
    """A selector's section of the settings, and what it means.

    Attributes:
        drawn: Whether another seed draws other steps, at no cost: a recipe then selects anew under each of its seeds.
        retries_failures: Whether the failures of a finished run are tried again, for another attempt may mend them.
    """

    drawn: ClassVar[bool] = False
    retries_failures: ClassVar[bool] = False

    name: str

    @classmethod
    def subclass_for(cls, section: Mapping[str, Any]) -> type[Selector]:
        """The class whose settings a section holds.

        Raises:
            UserError: If no selector has its name.
        """
        return SELECTORS.find(str(section.get("name", "llm")))  # the paper's

    # --- where it comes from ---

    @property
    def modules(self) -> list[str]:
        """Modules that workers run: its own."""
        return [type(self).__module__]

    def sources(self) -> list[str]:
        """The finished selections that it reads, by name or path."""
        return []

    def digests(self) -> dict[str, str]:
        """Digests of what else it is made from, by name; a run is refused once one has changed.

        Here: of the source of a selector from outside of the package.

        Raises:
            UserError: If something cannot be read.
        """
        module = type(self).__module__
        return {} if is_own(module) else {module: source_digest(module)}

    def settled(self, run: str, ray: RayConfig, begun: Mapping[str, Any]) -> Self:
        """With everything that is decided before the run begins, for the manifest to name.

        Args:
            run: The run folder, beside which sources are looked for.
            ray: How Ray is reached, where a device must be asked about.
            begun: This section in the manifest of the run that is continued; empty where it starts.
        """
        return self

    # --- in a recipe ---

    def for_arm(self, start: BackboneConfig, engine: EngineConfig, own_engine: EngineConfig) -> Self:
        """With the arm's model and engines, where it scores by a model and its section does not say otherwise.

        Args:
            start: The model that the arm starts from.
            engine: The recipe's engines.
            own_engine: The same with the context that `start` is given.
        """
        return self

    def for_seed(self, named: Callable[[str], str]) -> Self:
        """With sources drawn under the same seed; `named` tells what a source is called under it."""
        return self

    def models(self) -> list[ModelUse]:
        """The models that it loads."""
        return []

    def engines(self) -> list[EngineConfig]:
        """The engines that it starts."""
        return []

    @property
    def plays(self) -> bool:
        """Whether episodes start from the trajectories."""
        return False

    @property
    def paid_endpoint(self) -> EndpointConfig | None:
        """The endpoint that it asks, if it does."""
        return None

    async def check_endpoint(self) -> str:
        """Asks the endpoint for one token, and says what it answered.

        Raises:
            AtlasError: If it does not.
        """
        raise NotImplementedError

    def forecast(self, shapes: Mapping[str, Shape]) -> Forecast | None:
        """What the selection takes; None: nothing, whatever the data is.

        Args:
            shapes: Of the data, by environment; empty where it is not there yet.
        """
        return None

    # --- in a run ---

    def budgets(self, outline: pa.Table) -> pa.Array | None:
        """Steps that may be chosen in each trajectory, where that is decided over all of them: `Trajectory.budget`.

        Args:
            outline: Of all trajectories of the data: see `atlas_ray.trajectories.index:OUTLINE`.
        """
        return None

    def estimate(self, trajectories: Iterable[Trajectory]) -> list[str]:
        """What selecting in these would ask for, in lines; nothing is called."""
        return ["no model call, no dollars"]

    def kept_on_clean(self) -> list[TableSpec[Any]]:
        """Tables that outlast `--clean`, for they were paid for."""
        return []

    def outdated(self, folder: RunFolder) -> bool:
        """Whether all selections of an earlier attempt are to be made anew, at no cost."""
        return False

    @abstractmethod
    def stage(self, context: StageContext) -> Stage:
        """What makes the selections.

        Raises:
            UserError: If a setting, or a source, is unusable.
        """

    def note(self, usage: Usage, done: int, total: int) -> str | None:
        """A figure beside the progress: `done` of `total` selections took `usage`."""
        return f"${usage.cost:.2f} of about ${usage.cost / done * total:.2f}" if usage.cost else None

    def figures(self, selections: Iterable[Selection]) -> dict[str, Any]:
        """What the run's record holds besides what every selector's does; `selections` may be read once."""
        return {}


SELECTORS: Registry[type[Selector]] = Registry(
    "selector",
    Selector,
    {
        "all": f"{__package__}.baselines:AllSelector",
        "random": f"{__package__}.baselines:RandomSelector",
        "matched_random": f"{__package__}.matched:MatchedRandomSelector",
        "gold": f"{__package__}.baselines:GoldSelector",
        "complement": f"{__package__}.baselines:ComplementSelector",
        "first": f"{__package__}.baselines:FirstSelector",
        "last": f"{__package__}.baselines:LastSelector",
        "file": f"{__package__}.file:FileSelector",
        "python": f"{__package__}.python_function:PythonSelector",
        "combine": f"{__package__}.combine:CombineSelector",
        "perplexity": f"{__package__}.perplexity.selector:PerplexitySelector",
        "value": f"{__package__}.value.selector:ValueSelector",
        "llm": f"{__package__}.llm.selector:LlmSelector",
    },
    "atlas_ray.selectors",
)
