"""The evaluation that `bench.soak` troubles; it runs this in the head's namespace.

    python -m bench.soak_player SETTINGS.json

Flows in: an `EvaluateConfig` as JSON; flows out: its run folder, and beside the settings the file `returned`, which is
there once the replicas are: a line for each episode that came back, with the time. The policy thinks for a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from atlas_ray.config import validate
from atlas_ray.evaluation import stage
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.models import engine
from atlas_ray.models.protocol import Reply
from atlas_ray.rollouts import coordinator
from atlas_ray.rollouts.coordinator import LocalPlayer
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import FixedSpec
from atlas_ray.rollouts.scripted import ScriptedConversation, ScriptedPolicy
from atlas_ray.types import Episode

THINK_SECONDS = 1.0


class Thoughtful(ScriptedPolicy):
    """The scripted novice, a second a turn."""

    def open(self, *given: Any) -> ScriptedConversation:
        return _Slow(given[0], self)


class _Slow(ScriptedConversation):
    async def generate(self, seed: int) -> Reply:
        await asyncio.sleep(THINK_SECONDS)
        return await super().generate(seed)


def main() -> None:
    """Plays."""
    settings = Path(sys.argv[1])

    class Watched(LocalPlayer):
        """Tells of what returns."""

        def run(
            self, requests: Iterable[EpisodeRequest | None]
        ) -> Generator[tuple[EpisodeRequest, Episode], None, None]:
            with settings.with_name("returned").open("a", buffering=1) as returned:
                for request, episode in super().run(requests):
                    returned.write(f"{time.time():.1f} {episode.id}\n")
                    yield request, episode
            print(f"replicas replaced: {self.restarts}", flush=True)

    engine.EngineSpec = lambda *_, **__: FixedSpec(Thoughtful("novice"))  # type: ignore[assignment, misc]
    coordinator.LocalPlayer = Watched  # type: ignore[misc]
    stage.evaluate(validate(EvaluateConfig, json.loads(settings.read_text())))


if __name__ == "__main__":
    main()
