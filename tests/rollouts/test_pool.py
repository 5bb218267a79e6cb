"""Many episodes on real replica actors, with a policy that sleeps in place of a model."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.cluster.connection import fetched_by
from atlas_ray.config import EngineConfig
from atlas_ray.environments import registry
from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.rollouts import replica_set as module
from atlas_ray.rollouts.episode import EpisodeRequest
from atlas_ray.rollouts.pool import FixedSpec, RolloutPool
from atlas_ray.types import Episode, Message, StopReason, Task, Usage
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass
class Sleeper:
    """Walks at random and sleeps between steps. `trouble` names what to do in some tasks, and where to count it."""

    seconds: float = 0.005
    trouble: str = ""
    tasks: tuple[str, ...] = ()
    folder: str = ""
    tell: bool = False
    name: str = "sleeper"
    usage: Usage = Usage()

    def open(self, task: Task, opening: Sequence[Message], sampling: Sampling) -> _Conversation:
        return _Conversation(self, task)


class _Conversation:
    def __init__(self, policy: Sleeper, task: Task) -> None:
        self._policy, self._task, self._turns = policy, task, 0

    async def generate(self, seed: int) -> Reply:
        await asyncio.sleep(self._policy.seconds)
        self._turns += 1
        if self._task.item_id in self._policy.tasks and self._turns == 2:
            self._make_trouble()
        where = random.Random(seed).choice(["up", "down", "left", "right"])
        thought = str(os.getpid()) if self._policy.tell else "which way"
        usage = Usage(completion_tokens=1, calls=1)
        self._policy.usage += usage
        return Reply(f"Thought: {thought}\nAction: move {where}", usage)

    def _make_trouble(self) -> None:
        note = Path(self._policy.folder) / f"{self._task.item_id}.{os.getpid()}.{time.monotonic_ns()}"
        first = not list(note.parent.glob(f"{self._task.item_id}.*"))
        note.touch()
        if self._policy.trouble == "die" or (self._policy.trouble == "die once" and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._policy.trouble == "fail" or (self._policy.trouble == "fail once" and first):
            raise ModelFailure("no answer")

    def append(self, message: Message) -> None: ...


def requests(n: int, **given: Any) -> list[EpisodeRequest]:
    tasks = registry.get("maze").tasks("test", n)
    return [EpisodeRequest(task, Sampling(), seed=3, **given) for task in tasks]


def facts(episode: Episode) -> Episode:
    return replace(episode, seconds=0.0)


def play(pool: RolloutPool, asked: Sequence[EpisodeRequest]) -> dict[str, Episode]:
    found: dict[str, Episode] = {}
    for request, episode in pool.run(asked):
        assert request.task.item_id == episode.item_id
        assert episode.id not in found
        found[episode.id] = facts(episode)
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def alone(ray_cluster: None) -> dict[str, Episode]:
    """Episodes of one replica that plays one at a time."""
    with RolloutPool(FixedSpec(Sleeper(seconds=0.0)), EngineConfig(episodes_in_flight=1)) as pool:
        return play(pool, requests(60))


def test_replicas_order_and_crowding_change_nothing(alone: dict[str, Episode]) -> None:
    assert len(alone) == 60
    assert {e.stop_reason for e in alone.values()} == {StopReason.DONE, StopReason.MAX_ROUNDS}
    with RolloutPool(FixedSpec(Sleeper()), EngineConfig(replicas=3, episodes_in_flight=16)) as pool:
        pids = [handle.pid for handle in pool._handles]
        assert play(pool, requests(60)[::-1]) == alone
        assert pool.restarts == 0
    assert all(eventually(lambda pid=pid: gone(pid)) for pid in pids if pid)


def test_a_killed_replica_loses_and_repeats_nothing(alone: dict[str, Episode]) -> None:
    with RolloutPool(FixedSpec(Sleeper(seconds=0.02)), EngineConfig(replicas=2, episodes_in_flight=8)) as pool:
        found: dict[str, Episode] = {}
        for _, episode in pool.run(iter(requests(60))):
            assert episode.id not in found
            found[episode.id] = facts(episode)
            if len(found) == 10:
                os.kill(pool._handles[0].pid or 0, signal.SIGKILL)
        assert found == alone
        assert pool.restarts == 1
        assert eventually(lambda: pool._next_completions(time.monotonic()) or all(s.ready for s in pool._handles))


def test_an_episode_that_kills_its_replica_is_given_up(tmp_path: Path, alone: dict[str, Episode]) -> None:
    policy = Sleeper(trouble="die", tasks=("maze_5",), folder=str(tmp_path))
    with RolloutPool(FixedSpec(policy), EngineConfig(episodes_in_flight=6)) as pool:
        found = play(pool, requests(12))
    lost = found.pop("maze/maze_5@0+0")
    assert (lost.stop_reason, lost.error) == (StopReason.MODEL_ERROR, "4 replicas died while they played this episode")
    assert found == {key: alone[key] for key in found}
    assert len(found) == 11


def test_replicas_that_keep_dying_end_the_run(tmp_path: Path) -> None:
    policy = Sleeper(trouble="die", tasks=tuple(f"maze_{i}" for i in range(8)), folder=str(tmp_path))
    with RolloutPool(FixedSpec(policy), EngineConfig(episodes_in_flight=8)) as pool, pytest.raises(AtlasError) as error:
        play(pool, requests(8))
    assert "died in a row" in error.value.what


def test_infrastructure_failures_are_tried_again_and_then_told(tmp_path: Path, alone: dict[str, Episode]) -> None:
    mended, broken = tmp_path / "mended", tmp_path / "broken"
    for folder in (mended, broken):
        folder.mkdir()
    policy = Sleeper(trouble="fail once", tasks=("maze_2",), folder=str(mended))
    with RolloutPool(FixedSpec(policy), EngineConfig(replicas=2), retries=1) as pool:
        assert play(pool, requests(6)) == {r.task.id + "@0+0": alone[r.task.id + "@0+0"] for r in requests(6)}
        assert len({file.name.split(".")[1] for file in mended.iterdir()}) == 2 or len(list(mended.iterdir())) == 1
        pool.load(FixedSpec(replace(policy, trouble="fail", folder=str(broken))))
        found = play(pool, requests(6))["maze/maze_2@0+0"]
    assert (found.stop_reason, found.error, found.rounds) == (StopReason.MODEL_ERROR, "no answer", 1)
    tried = [file.name.split(".")[1] for file in broken.iterdir()]
    assert len(tried) == len(set(tried)) == 2


def test_requests_are_taken_only_when_there_is_room() -> None:
    taken = finished = 0

    def source() -> Iterator[EpisodeRequest]:
        nonlocal taken
        for request in requests(40):
            taken += 1
            assert taken - finished <= 8
            yield request

    with RolloutPool(FixedSpec(Sleeper()), EngineConfig(replicas=2, episodes_in_flight=4)) as pool:
        for _ in pool.run(source()):
            finished += 1
    assert finished == 40


def test_a_source_may_wait_for_episodes() -> None:
    asked = iter(requests(9))
    waiting = False

    def source() -> Iterator[EpisodeRequest | None]:
        nonlocal waiting
        for number, request in enumerate(asked):
            if number % 3 == 0 and number:
                waiting = True
                while waiting:
                    yield None
            yield request

    with RolloutPool(FixedSpec(Sleeper())) as pool:
        done = 0
        for _ in pool.run(source()):
            done += 1
            waiting = waiting and done % 3 != 0
        assert done == 9
        with pytest.raises(ValueError, match="waits"):
            list(pool.run(iter([None])))


def test_a_group_stays_together() -> None:
    asked = [replace(r, sample=k, group=r.task.id) for r in requests(9) for k in range(6)]
    with RolloutPool(FixedSpec(Sleeper(tell=True)), EngineConfig(replicas=3)) as pool:
        where: dict[str, set[str]] = {}
        for request, episode in pool.run(asked):
            where.setdefault(request.task.id, set()).add(episode.messages[3].content.split("\n")[0])
    assert all(len(found) == 1 for found in where.values())
    assert len(set.union(*where.values())) == 3


def test_a_run_can_be_left_early(alone: dict[str, Episode]) -> None:
    with RolloutPool(FixedSpec(Sleeper(seconds=0.02)), EngineConfig(episodes_in_flight=4)) as pool:
        running = pool.run(requests(60))
        next(running)
        running.close()
        assert play(pool, requests(4)) == {r.task.id + "@0+0": alone[r.task.id + "@0+0"] for r in requests(4)}


def test_what_no_replica_can_do_is_said_at_once() -> None:
    with RolloutPool(FixedSpec(Sleeper())) as pool, pytest.raises(UserError, match="no environment is called"):
        play(pool, [EpisodeRequest(Task("nowhere", "nowhere_0"), Sampling(), seed=0)])

    class Broken:
        gpus = 0

        async def build(self) -> Any:
            raise RuntimeError("no such model")

    with pytest.raises(ModelFailure, match="no such model"):
        RolloutPool(Broken())


def test_replicas_are_waited_for_as_long_as_they_fetch_their_model(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = ["", "s3://bucket/model: 1.0 of 16.0 GB"]
    monkeypatch.setattr(module, "fetched_by", lambda replicas: told.pop())
    with RolloutPool(FixedSpec(Sleeper())) as pool:
        [handle] = pool._handles
        handle.pid, handle.since = None, time.monotonic() - 2 * module.START_SECONDS
        pool._remind(everyone=True)
        assert "replicas fetch s3://bucket/model: 1.0 of 16.0 GB" in caplog.text
        assert time.monotonic() - handle.since < module.START_SECONDS
        handle.since -= 2 * module.START_SECONDS
        with pytest.raises(AtlasError, match="1 of 1 replicas have not started"):
            pool._remind(everyone=True)


def test_a_replica_says_what_it_fetches() -> None:
    with RolloutPool(FixedSpec(Sleeper(), 0)) as pool:
        assert fetched_by([handle.actor for handle in pool._handles]) == ""
