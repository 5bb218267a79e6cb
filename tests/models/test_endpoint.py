"""A policy behind an OpenAI-compatible endpoint, against a server on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.config import EndpointConfig
from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure, UserError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate, failures, played
from atlas_ray.models.client import ChatClient, key_of
from atlas_ray.models.endpoint import EndpointSpec
from atlas_ray.models.protocol import Sampling
from atlas_ray.types import Message, Task, Usage
from tests.support.endpoints import KEY, completion, policy
from tests.support.fake_endpoint import FakeEndpoint

OPENING = [Message("user", "Play."), Message("assistant", "OK"), Message("user", "A wall.")]


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_TEST_KEY", KEY)


async def test_a_conversation_is_appended_turn_by_turn() -> None:
    asked: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> web.Response:
        asked.append(body)
        return completion("Action: go\nObservation: you win", "length" if len(asked) == 2 else "stop")

    async with policy(answer) as closed:
        conversation = closed.open(Task("maze", "maze_1"), OPENING, Sampling(0.5, 32, 0.9))
        conversation.append(Message("assistant", "Action: left"))
        conversation.append(Message("user", "Still a wall."))
        first = await conversation.generate(7)
        conversation.append(Message("user", "A door."))
        second = await conversation.generate(8)
        assert (first.message.content, first.finish, second.finish) == ("Action: go", "stop", "length")
        assert first.usage == Usage(11, 8, 3, 1)
        assert closed.usage == Usage(33, 24, 9, 3)
    assert [m["content"] for m in asked[1]["messages"]] == [
        *["Play.", "OK", "A wall.", "Action: left", "Still a wall.", "Action: go", "A door."]
    ]
    given = {name: asked[0][name] for name in ("model", "temperature", "top_p", "max_tokens", "seed", "stop")}
    assert given == {
        "model": "some-model",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 32,
        "seed": 7,
        "stop": ["\nObservation:"],
    }


async def test_the_client_retries() -> None:
    left = [500, 429]
    async with policy(lambda _: web.Response(status=left.pop()) if left else completion("go"), retries=2) as closed:
        assert (await closed.open(Task("maze", "maze_1"), OPENING, Sampling()).generate(0)).text == "go"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda: web.Response(status=500, text="down"), ModelFailure),
        (lambda: web.Response(status=401, text=f"bad key {KEY}"), UserError),
        (lambda: web.Response(status=404, text="no such model"), UserError),
        (lambda: web.json_response({"error": {"message": "no credits"}}, status=402), AtlasError),
        (lambda: web.Response(status=400, text="no such option"), ModelFailure),
        (lambda: web.json_response({"choices": []}), ModelFailure),
        (lambda: web.Response(status=400, text="maximum context length is 8192 tokens"), ContextOverflow),
        (lambda: web.json_response({"error": {"code": "context_length_exceeded"}}, status=400), ContextOverflow),
    ],
)
async def test_refusals(answer: Callable[[], web.Response], error: type[Exception]) -> None:
    async with policy(lambda _: answer()) as closed:
        with pytest.raises(error) as raised:
            await closed.open(Task("maze", "maze_1"), OPENING, Sampling()).generate(0)
    assert KEY not in str(raised.value)


async def test_only_a_key_is_hidden_in_an_error() -> None:
    error = ValueError(f"none of {KEY} is known")
    assert ChatClient("m", EndpointConfig(), key=KEY).short(error) == "none of *** is known"
    client = ChatClient("m", EndpointConfig(base_url="http://127.0.0.1:1/v1", api_key_env="ATLAS_TEST_NO_KEY"))
    client.opened()  # without a key
    assert client.short(error) == str(error)
    await client.close()


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "schl\u00fcssel", "\u201csk\u201d", "sk\u200b"])
def test_what_no_request_can_carry_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("ATLAS_TEST_KEY", key)
    with pytest.raises(UserError, match="the key in ATLAS_TEST_KEY holds") as refused:
        key_of(EndpointConfig(api_key_env="ATLAS_TEST_KEY"))
    assert key not in str(refused.value)


async def test_blanks_around_a_key_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_TEST_KEY", f" {KEY}\r\n")
    async with policy(lambda _: completion("go")) as closed:  # the server compares the key
        assert (await closed.open(Task("maze", "maze_1"), OPENING, Sampling()).generate(0)).text == "go"


async def test_an_endpoint_that_is_not_there_is_tried_no_further_and_names_the_cause(closed_port: int) -> None:
    address = EndpointConfig(base_url=f"http://127.0.0.1:{closed_port}/v1", api_key_env="ATLAS_TEST_KEY")
    began = time.monotonic()
    with pytest.raises(ModelFailure, match=f"cannot reach the endpoint .*:{closed_port}/v1: .*(Connect|refused)"):
        await EndpointSpec("closed", "some-model", address).build()
    assert time.monotonic() - began < 20  # six retries of each call took minutes


async def test_a_web_page_in_place_of_an_api_is_met_once(endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda *_: web.Response(text="<html>Welcome</html>", content_type="text/html")
    address = EndpointConfig(base_url=f"http://127.0.0.1:{endpoint.port}/v1", api_key_env="FAKE_KEY")
    with pytest.raises(ModelFailure, match="answers with a web page, not as an API: '<html>Welcome"):
        await EndpointSpec("closed", "some-model", address).build()
    assert len(endpoint.calls) == 1


async def test_a_missing_key_names_its_variable() -> None:
    with pytest.raises(UserError, match="ATLAS_TEST_NO_KEY"):
        await EndpointSpec("closed", "some-model", EndpointConfig(api_key_env="ATLAS_TEST_NO_KEY")).build()


@pytest.mark.usefixtures("ray_cluster")
def test_a_refused_key_is_one_request_and_an_empty_cell(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    def answer(body: dict[str, Any], call: int) -> web.Response | str:
        return web.Response(status=401, text="no") if body["model"] == "refused" else "Action: move up"

    endpoint.answer = answer
    address = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY"}
    config = EvaluateConfig.model_validate(
        {
            "run": str(tmp_path),
            "models": {name: {"path": name, "endpoint": address} for name in ("refused", "taken")},
            "tasks": {"maze": 2},
        }
    )
    with pytest.raises(AtlasError, match="refuses the key in ATLAS_WORKERS_KEY"):
        evaluate(config)
    assert [call["model"] for call in endpoint.calls].count("refused") == 1
    assert set(played(config)) == {"taken"}
    assert "HTTP 401" in failures(config)["refused"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_key_refused_in_the_middle_ends_the_evaluation(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda _, call: web.Response(status=401) if len(endpoint.calls) > 6 else "Action: move up"
    address = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY", "concurrency": 2}
    models = {"taken": {"path": "taken", "endpoint": address}}
    config = EvaluateConfig.model_validate({"run": str(tmp_path), "models": models, "tasks": {"maze": 10}})
    with pytest.raises(UserError, match="HTTP 401"):
        evaluate(config)
    assert len(endpoint.calls) in (7, 8)  # another may have been in flight


@pytest.mark.usefixtures("ray_cluster")
def test_what_an_endpoint_refuses_is_not_asked_again_by_further_attempts_at_the_episode(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    """The client has tried again what another attempt might mend."""

    def answer(body: dict[str, Any], call: int) -> web.Response | str:
        refused = {"error": {"message": "no such option"}}
        return "OK" if len(endpoint.calls) == 1 else web.json_response(refused, status=400)

    endpoint.answer = answer
    address = {"base_url": f"http://127.0.0.1:{endpoint.port}/v1", "api_key_env": "ATLAS_WORKERS_KEY"}
    models = {"m": {"path": "m", "endpoint": address}}
    config = EvaluateConfig.model_validate({"run": str(tmp_path), "models": models, "tasks": {"maze": 4}})
    with pytest.raises(AtlasError, match=r"HTTP 400: .*no such option"):
        evaluate(config)
    assert len(endpoint.calls) == 1 + 4
