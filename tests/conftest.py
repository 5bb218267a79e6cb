"""Fixtures that several test files share."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.absent import absent
from tests.support.local_ray import start_ray

if TYPE_CHECKING:
    from atlas_ray.models.engine import VllmPolicy
    from tests.support.fake_endpoint import FakeEndpoint
    from tests.support.store import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is asked of a simulator that lacks its extra, or Java; in CI it fails instead."""
    for item in items:
        given = getattr(item, "callspec", None)
        if given and (why := absent(str(given.params.get("env", given.params.get("name"))))):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an environment that is not built in: one whose simulator is taken away."""
    from atlas_ray.environments.registry import ENVIRONMENTS

    monkeypatch.setitem(ENVIRONMENTS, "sciworld", replace(ENVIRONMENTS["sciworld"], simulator=None))
    return "sciworld"


# Any will do for what is on loopback; set for the session, as workers hold what was there when Ray began.
_OF_THE_STORE = {
    "AWS_ACCESS_KEY_ID": "anyone",
    "AWS_SECRET_ACCESS_KEY": "anything",
    "AWS_EC2_METADATA_DISABLED": "true",
    "ATLAS_WORKERS_KEY": "for fake endpoints",
}


@pytest.fixture(scope="session", autouse=True)
def _store_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Credentials for the store on loopback, and a place for copies of what lies there."""
    os.environ |= _OF_THE_STORE | {"ATLAS_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of this process, for the whole session."""
    import ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def verifiers_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has verifiers and environments of it, from PyPI; `ATLAS_VERIFIERS` names one that is there."""
    from tests.support import published

    return os.environ.get("ATLAS_VERIFIERS") or published.verifiers_python(tmp_path_factory.mktemp("verifiers"))


@pytest.fixture(scope="session")
def openenv_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python that has OpenEnv and an environment of it, from PyPI; `ATLAS_OPENENV` names one that is there."""
    from tests.support import published

    return os.environ.get("ATLAS_OPENENV") or published.openenv_python(tmp_path_factory.mktemp("openenv"))


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of two untrained Llamas that differ in weights alone."""
    from atlas_ray.models.tiny import write_untrained
    from atlas_ray.types import Message, Trajectory

    words = " ".join(a + b + c for a in "abcdefgh" for b in "aeiou" for c in "klmnop")
    text = f"{words} Thought: Action: move up down left right OK Task 0123456789 .,\n\nObservation:"
    data = [Trajectory("maze/maze_0", "maze", "maze_0", (Message("user", text),))]
    folders = []
    for seed in (0, 1):
        folder = str(tmp_path_factory.mktemp(f"tiny{seed}"))
        write_untrained(folder, data, hidden_size=96, layers=4, heads=3, context=1024, seed=seed)
        folders.append(folder)
    return folders[0], folders[1]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(tiny_models: tuple[str, str]) -> AsyncIterator[VllmPolicy]:
    """The one vLLM engine of the session, with the first tiny model."""
    from atlas_ray.config import EngineConfig
    from atlas_ray.models.engine import EngineSpec
    from atlas_ray.models.protocol import opened

    async with opened(EngineSpec("tiny", tiny_models[0], EngineConfig())) as policy:
        yield policy


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEndpoint]:
    """An OpenAI-compatible server that answers as the test says, and its key."""
    from tests.support.fake_endpoint import FakeEndpoint

    monkeypatch.setenv("FAKE_KEY", "secret-key")
    fake = FakeEndpoint()
    yield fake
    fake.close()


@pytest.fixture
def store() -> Iterator[Store]:
    """An object store on loopback."""
    from tests.support.store import Store

    made = Store()
    yield made
    made.close()


@pytest.fixture
def closed_port() -> int:
    """A port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
