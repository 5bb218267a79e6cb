"""Values of trajectories in environments of other libraries: rollouts from recorded steps, which replay there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.client import open_session
from atlas_ray.environments.foreign import openenv_servers
from atlas_ray.environments.openings import OpeningTemplate
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts.episode import EpisodeRequest, run_episode
from atlas_ray.rollouts.recorded import play_again
from atlas_ray.selection.value.settings import ValueSettings
from atlas_ray.selection.value.stage import value_steps
from atlas_ray.trajectories.collect import to_trajectory
from atlas_ray.types import Episode, Message, Task, Trajectory
from tests.support import solutions
from tests.support.docs_blocks import ROOT
from tests.support.episodes import calling, play_all
from tests.support.foreign import OURS, forget

SUPPORT = ROOT / "tests" / "support"
ROLLOUTS, TASKS = 2, range(1)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, OURS)


def acting(actions: Sequence[str]) -> list[str]:
    return [f"Thought: it is the way.\nAction: {action}" for action in actions]


def solved() -> dict[str, dict[int, Sequence[str | Reply]]]:
    """The winning replies to each task: calls of tools, or texts."""
    boxes = {i: range(1, random.Random(i).randint(1, 7) + 1) for i in TASKS}
    wanted = {i: random.Random(i).randint(3, 9) for i in TASKS}
    return {
        "boxes": {i: [*(calling("open_box", number=n) for n in tried), Reply("Found.")] for i, tried in boxes.items()},
        "counting": {i: [calling("add", number=1), calling("add", number=n - 1)] for i, n in wanted.items()},
        "lake": {i: acting(solutions.frozen_lake(i)) for i in TASKS},
        "taxi": {i: acting(solutions.taxi(i)) for i in TASKS},
    }


async def recorded(places: dict[str, str]) -> list[Trajectory]:
    validate(EnvironmentsConfig, {"register": places})
    found = []
    for env, replies in solved().items():
        by_calls = OpeningTemplate.of_tools(registry.get(env)) if env in ("boxes", "counting") else None
        found += [to_trajectory(e) for e in await play_all(env, replies, 2, by_calls)]
    return found


class Wandering:
    """A policy that draws each reply from some, by the turn's seed."""

    name = "wandering"

    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = replies

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> Wandering:
        return self

    async def generate(self, seed: int) -> Reply:
        return random.Random(seed).choice(self._replies)

    def append(self, message: Message) -> None: ...


DRAWN = {
    "boxes": [*(calling("open_box", "q", number=n) for n in range(1, 8)), Reply("Found.")],
    "counting": [calling("add", "q", number=n) for n in (1, 2, 3)],
    "lake": [Reply(said) for said in acting(["[right]", "[down]"])],
    "taxi": [Reply(said) for said in acting(["south", "north", "pickup"])],
}


@pytest.mark.slow
async def test_each_library_replays_its_trajectories_and_gives_their_rollouts_the_same_rewards_twice(
    verifiers_python: str, openenv_python: str
) -> None:
    places = {
        "boxes": f"verifiers:{verifiers_python}:atlas-boxes",
        "counting": f"openenv:{openenv_python}:counting_env",
        "lake": "textarena:FrozenLake-v0",
        "taxi": "gymnasium:tests.support.toy_text:TaxiInWords-v0",
    }
    room, selector = asyncio.Semaphore(4), ValueSettings.model_validate({"rollouts": ROLLOUTS})

    async def rollout(request: EpisodeRequest) -> Episode:
        async with room:
            session = open_session(registry.get(request.task.env), EnvironmentsConfig())
            try:
                return await run_episode(Wandering(DRAWN[request.task.env]), session, request)
            finally:
                await session.close()

    for trajectory in await recorded(places):
        assert trajectory.calls_tools == (trajectory.env in ("boxes", "counting"))
        again = await play_again(trajectory, EnvironmentsConfig())
        assert (again.replay, again.error, again.reward) == ("exact", None, trajectory.reward)
        found, same = [await value_steps(trajectory, rollout, selector, seed=0) for _ in range(2)]
        assert (found.error, found.excluded) == (None, {})
        assert found == same
        assert [len(rewards) for rewards in found.rewards] == [ROLLOUTS] * len(trajectory.steps) + [1]
        assert found.replays == {"exact": len(trajectory.steps) - 1, "near": 0, "differs": 0}
    openenv_servers.end_all()
