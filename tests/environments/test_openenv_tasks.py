"""Tasks that OpenEnv's servers offer by split and index, under this package's numbers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.config import EnvironmentsConfig, validate
from atlas_ray.environments import registry
from atlas_ray.environments.foreign.openenv_tasks import Offer
from atlas_ray.errors import EnvironmentFailure, UserError
from atlas_ray.types import StopReason
from tests.support.episodes import play_all
from tests.support.foreign import forget
from tests.support.serving import running

VALUES: Any = [{"name": "val", "type": "validation"}, {"name": "train", "type": "train"}]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)


def offering(splits: Mapping[str, int] | None, resets: list[dict[str, Any]]) -> web.Application:
    """A server as OpenEnv's are, of an environment with such splits (one called "" without a name); notes resets."""

    async def schema(_: web.Request) -> web.Response:
        return web.json_response({"action": {"properties": {"message": {"type": "string"}}, "required": ["message"]}})

    async def names(_: web.Request) -> web.Response:
        return web.json_response(["echo"])

    async def listed(_: web.Request) -> web.Response:
        if splits is None:
            return web.json_response({"detail": "list_splits is not supported"}, status=501)
        return web.json_response([{"type": name} | ({"name": name} if name else {}) for name in splits])

    async def counted(request: web.Request) -> web.Response:
        assert splits
        return web.json_response({"num_tasks": splits[(await request.json())["split"]]})

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        async for message in answer:
            told = json.loads(message.data)
            if told["type"] == "reset":
                resets.append(told["data"])
            done = told["type"] == "step"
            data = {"observation": {"text": "so"}, "reward": float(done), "done": done}
            await answer.send_str(json.dumps({"type": "observation", "data": data}))
        return answer

    app = web.Application()
    app.router.add_get("/schema", schema)
    app.router.add_get("/list_environments", names)
    app.router.add_get("/echo/splits", listed)
    app.router.add_post("/echo/num_tasks", counted)
    app.router.add_get("/ws", socket)
    return app


async def test_a_servers_tasks_are_counted_and_reset_by_split_and_index() -> None:
    resets: list[dict[str, Any]] = []
    async with running(offering({"train": 5, "test": 3}, resets)) as url:
        validate(EnvironmentsConfig, {"register": {"echo": f"openenv:{url}"}})
        spec = registry.get("echo")
        tests, train = [await asyncio.to_thread(spec.tasks, split) for split in ("test", "train")]
        assert [spec.number(task) for task in tests + train] == list(range(8))
        with pytest.raises(UserError, match="echo has 3 test tasks, 4 were asked for"):
            spec.tasks("test", 4)
        *found, beyond = await play_all("echo", {index: ["Action: a"] for index in (0, 2, 3, 7, 8)}, 1)
    assert {e.stop_reason for e in found} == {StopReason.DONE}
    places = [("test", 0), ("test", 2), ("train", 0), ("train", 4)]
    assert [(told["split"], told["index"]) for told in resets] == places
    assert [told["seed"] for told in resets] == [0, 2, 3, 7]
    assert beyond.stop_reason is StopReason.ENV_ERROR
    assert "it has 8 tasks, and number 8 was asked for" in str(beyond.error)


async def test_a_server_without_tasks_is_told_seeds() -> None:
    resets: list[dict[str, Any]] = []
    async with running(offering(None, resets)) as url:
        validate(EnvironmentsConfig, {"register": {"echo": f"openenv:{url}"}})
        assert len(await asyncio.to_thread(registry.get("echo").tasks, "test")) == 200
        await play_all("echo", {7: ["Action: a"]}, 1)
    assert resets == [{"seed": 7}]


def test_a_server_that_does_not_answer_is_named_when_its_tasks_are_listed(closed_port: int) -> None:
    validate(EnvironmentsConfig, {"register": {"echo": f"openenv:http://127.0.0.1:{closed_port}"}})
    with pytest.raises(UserError, match="the server of echo does not tell its tasks"):
        registry.get("echo").tasks("test", 2)


async def test_a_split_without_a_name_is_told() -> None:
    async with running(offering({"": 3}, [])) as url:
        validate(EnvironmentsConfig, {"register": {"echo": f"openenv:{url}"}})
        with pytest.raises(UserError, match="lists a split without a name") as refused:
            await asyncio.to_thread(registry.get("echo").tasks, "test")
    assert "echo" in str(refused.value)


@pytest.mark.parametrize(
    ("splits", "sizes", "offer"),
    [
        (VALUES, {"train": 9, "val": 4}, Offer((("val", 4), ("train", 9)), 4, 9)),
        (VALUES, {"train": 9}, Offer((("train", 9),), 5, 4)),
        ([{"name": "all"}], {"all": 1000}, Offer((("all", 1000),), 200, 800)),
        (VALUES, {}, Offer()),
        ([], {}, Offer()),
    ],
)
def test_the_first_splits_of_their_kind_are_played_and_a_single_one_is_parted(
    splits: Any, sizes: dict[str, int], offer: Offer
) -> None:
    assert Offer.of(splits, sizes) == offer


def test_a_seed_needs_no_task() -> None:
    assert Offer().reset(12_345) == {"seed": 12_345}
    with pytest.raises(EnvironmentFailure, match="it has 2 tasks"):
        Offer((("all", 2),), 1, 1).reset(2)
