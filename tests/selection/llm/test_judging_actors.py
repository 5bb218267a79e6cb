"""Judging actors on Ray Data: one throttle, one journal, one budget and one end, however many there are."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.errors import AtlasError, UserError
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm import stage
from atlas_ray.selection.llm.journal import REPLIES
from atlas_ray.selection.llm.stage import JudgingActor
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.types import Message, Selection
from tests.selection.test_selection import data_in, expert
from tests.support.fake_endpoint import FakeEndpoint, ask

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Marking(JudgingActor):
    """Leaves a file that bears its process's number, in the run folder."""

    async def __call__(self, table: Any) -> Any:
        (Path(self._folder.uri) / f"actor-{os.getpid()}").touch()
        return await super().__call__(table)


class Dying(JudgingActor):
    """Dies once, with a block judged and not handed over."""

    async def __call__(self, table: Any) -> Any:
        found = await super().__call__(table)
        died = Path(self._folder.uri) / "died"
        if not died.exists():
            died.write_text(json.dumps(table["id"].to_pylist()))
            os._exit(1)
        return found


@pytest.fixture
def counted(endpoint: FakeEndpoint) -> Counter[str]:
    """How often each trajectory was asked about, repairs and votes apart."""
    asked: Counter[str] = Counter()

    def answer(body: dict[str, Any], call: int) -> str:
        number = body["messages"][1]["content"].split("You are in maze_")[1].split(".")[0]
        asked[f"{number}/{body.get('seed')}/{len(body['messages'])}"] += 1
        if int(number) % 5 == 0 and len(body["messages"]) == 2:
            return "I cannot say."
        step = 1 + (int(number) + body.get("seed", 0)) % 10
        entry = {"step": step, "category": "Critical Action", "reason": "it wins"}
        return json.dumps({"plan": f"plan {number}", "steps": [entry]})

    endpoint.answer = answer
    return asked


def prepared(tmp_path: Path, port: int, run: str, trajectories: int = 40, **section: Any) -> SelectConfig:
    if not (tmp_path / "data").exists():
        opening = [Message("user", f"You are in maze_{i}.") for i in range(trajectories)]
        data = [replace(expert(10, i), messages=(m, *expert(10).messages[1:])) for i, m in enumerate(opening)]
        data_in(tmp_path / "data", data)
    return ask(tmp_path, port, **section).model_copy(update={"run": str(tmp_path / run)})


def selections(folder: RunFolder) -> list[Selection]:
    return folder.read(SELECTIONS)


def test_selections_do_not_depend_on_the_number_of_actors(
    tmp_path: Path, endpoint: FakeEndpoint, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "JudgingActor", Marking)
    found = {}
    for actors in (1, 2):
        counted.clear()
        limits = {"concurrency": 8}
        config = prepared(tmp_path, endpoint.port, f"{actors}", votes=2, num_workers=actors, endpoint=limits)
        endpoint.seconds = 0.05
        found[actors] = selections(select_steps(config))
        assert set(counted.values()) == {1}
        assert len(list((tmp_path / f"{actors}").glob("actor-*"))) == actors
    assert len(found[1]) == 40
    assert not any(s.error for s in found[1])
    assert found[1] == found[2]


PER_REQUEST = 1000 + 1024  # prompt tokens as the endpoint reports them, and the longest reply


@pytest.mark.parametrize(
    "limit",
    [{"requests_per_minute": 60 * 20}, {"tokens_per_minute": 60 * 20 * PER_REQUEST}],
    ids=["requests", "tokens"],
)
def test_two_actors_exceed_no_limit_of_the_endpoint(
    tmp_path: Path, endpoint: FakeEndpoint, counted: Counter[str], limit: dict[str, int]
) -> None:
    starts: list[float] = []
    inner = endpoint.answer

    def answer(body: dict[str, Any], call: int) -> web.Response | str:
        starts.append(time.monotonic())
        return inner(body, call)

    endpoint.answer, endpoint.seconds = answer, 0.3
    select_steps(prepared(tmp_path, endpoint.port, "run", num_workers=2, endpoint={"concurrency": 5} | limit))
    assert len(starts) == 48  # 40, and 8 repairs
    assert endpoint.peak == 5
    # 20 a second, 0.05 s apart: 21 of them take a second, but for jitter
    assert all(late - early >= 0.9 for early, late in zip(starts, starts[20:], strict=False))


def test_two_actors_keep_one_budget_and_pay_nothing_twice(
    tmp_path: Path, endpoint: FakeEndpoint, counted: Counter[str]
) -> None:
    # A reply costs 0.0035 dollars, and at most about 0.012 by the rule of thumb.
    endpoint.seconds = 0.02
    config = prepared(tmp_path, endpoint.port, "run", num_workers=2, max_cost=0.07, endpoint={"concurrency": 8})
    with pytest.raises(AtlasError, match=r"max_cost=0\.07"):
        select_steps(config)
    first = sum(counted.values())
    assert 14 <= first <= 20
    assert len(RunFolder(config.run).read(REPLIES)) == first
    selector = config.selector.model_copy(update={"max_cost": 1.0})
    found = selections(select_steps(config.model_copy(update={"selector": selector})))
    assert len(found) == 40
    assert set(counted.values()) == {1}
    assert sum(s.usage.calls for s in found) == sum(counted.values()) == 48


def test_a_refused_key_is_one_request_of_all_actors(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda body, call: web.Response(status=401, text="no such key: secret-key")
    with pytest.raises(UserError, match="HTTP 401") as refused:
        select_steps(prepared(tmp_path, endpoint.port, "run", num_workers=2))
    assert len(endpoint.calls) == 1
    assert "secret-key" not in str(refused.value)


def test_what_a_dead_actor_was_paid_for_is_not_asked_for_again(
    tmp_path: Path, endpoint: FakeEndpoint, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "JudgingActor", Dying)
    endpoint.seconds = 0.05
    config = prepared(tmp_path, endpoint.port, "run", endpoint={"concurrency": 4})
    found = selections(select_steps(config))
    assert len(found) == 40
    assert not any(s.error for s in found)
    judged = json.loads((tmp_path / "run" / "died").read_text())
    for trajectory in judged:
        number = trajectory.removeprefix("maze/maze_")
        assert {n for key, n in counted.items() if key.startswith(f"{number}/")} == {1}
    # Those that were under way are asked for again: their replies had not come.
    assert sum(n - 1 for n in counted.values()) <= 4
