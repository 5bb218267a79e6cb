"""What of a recipe is still to be done: a preflight looks at nothing else.

Flows in: a recipe and the stages that were asked for; flows out: their configurations, without those of finished runs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from atlas_ray.address import below, name_of
from atlas_ray.config import DataConfig, EngineConfig
from atlas_ray.evaluation.items import remote_environments
from atlas_ray.evaluation.settings import EvaluateConfig, VerifyConfig
from atlas_ray.recipes.graph import Recipe
from atlas_ray.recipes.stages import evaluation_stages
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.training.settings import TrainConfig


@dataclass(frozen=True)
class Pending:
    """Configurations by the names that the recipe's stages have.

    Attributes:
        made_here: Paths of the models that the recipe trains.
    """

    recipe: Recipe
    select: dict[str, SelectConfig]
    train: dict[str, TrainConfig]
    evaluations: dict[str, EvaluateConfig]
    verify: list[VerifyConfig]

    @classmethod
    def of(cls, recipe: Recipe, stages: Collection[str] | None = None) -> Pending:
        """What is left.

        Args:
            stages: Names of the stages that will run; None: all.
        """

        def chosen(name: str) -> bool:
            return stages is None or name in stages

        def open_(uri: str) -> bool:
            return RunFolder(uri).finished is None

        return cls(
            recipe,
            {n: c for n, c in recipe.select.items() if chosen(f"select/{n}") and open_(c.run)},
            {n: c for n, c in recipe.train.items() if chosen(f"train/{n}") and open_(c.run)},
            {
                key: c
                for key, c in recipe.evaluations.items()
                if any(chosen(name) for name in evaluation_stages(key, c))
                and any(open_(RunFolder(c.run).child(arm).uri) for arm in c.models)
            },
            [c for c in recipe.verify.values() if chosen(name_of(c.run)) and open_(c.run)],
        )

    @property
    def nothing(self) -> bool:
        """Whether all is done."""
        return not (self.select or self.train or self.evaluations or self.verify)

    @cached_property
    def made_here(self) -> set[str]:
        """Models that the recipe writes, tiny bases' first weights among them."""
        trained = {below(c.run, "model") for c in self.recipe.train.values()}
        return trained | {self.recipe.train[name].model for name in self.recipe.tiny}

    @property
    def data(self) -> DataConfig | None:
        """The expert's trajectories, where they are brought and needed; None where the recipe collects them."""
        brought = isinstance(self.recipe.config.expert, DataConfig)
        own = {n for n in self.train if n not in self.recipe.tiny}
        return self.recipe.expert if brought and (self.select or own or self.verify) else None

    @property
    def remote(self) -> set[str]:
        """Environments whose test tasks are a server's own, named by items."""
        return {env for c in self.evaluations.values() for env in remote_environments(c)}

    def plays(self, env: str) -> bool:
        """Whether episodes start from trajectories of an environment: to value their steps, or to verify them."""
        return any(data.envs is None or env in data.envs for data in self._begun_from)

    @property
    def _begun_from(self) -> list[DataConfig]:
        """Trajectories from which episodes start."""
        return [*(c.data for c in self.select.values() if c.selector.plays), *(c.data for c in self.verify)]

    @property
    def engines(self) -> list[EngineConfig]:
        """Of all that plays or judges with engines of its own."""
        selecting = [engine for c in self.select.values() for engine in c.selector.engines()]
        local = [c.engine for c in self.evaluations.values() for m in c.played.values() if m.models()]
        return [*selecting, *local, *(c.engine for c in self.verify)]

    @property
    def environments(self) -> list[str]:
        """Environments in which episodes will be played, as far as the settings name them."""
        names = [env for c in self.evaluations.values() for env in c.tasks]
        return list(dict.fromkeys([*names, *(env for data in self._begun_from for env in data.envs or [])]))
