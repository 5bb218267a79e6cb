"""What an endpoint that fails in any way costs a selection and an evaluation: requests, and dollars, within bounds.

A failure that every call would meet is met once; others end the run after as many in a row as make no sense.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.errors import AtlasError
from atlas_ray.evaluation.settings import EvaluateConfig
from atlas_ray.evaluation.stage import evaluate, failures
from atlas_ray.runs.failures import IN_A_ROW
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm.journal import REPLIES
from tests.support.endpoints import completion
from tests.support.fake_endpoint import FakeEndpoint, ask, chosen

AT_ONCE, RETRIES, UNITS = 8, 1, 60
IN_FLIGHT = IN_A_ROW + 2 * AT_ONCE  # judgements, or episodes, that have begun when the last straw comes


def error(status: int, **headers: str) -> Callable[[], web.Response]:
    return lambda: web.json_response({"error": {"message": "the cause"}}, status=status, headers=headers)


def page() -> web.Response:
    return web.Response(text="<!DOCTYPE html><title>Welcome</title>", content_type="text/html")


def junk() -> web.Response:
    return web.json_response({"error": "upstream"})


# By name: the answer, the words of the error, and requests for a unit of work; None: one in all.
MODES: dict[str, tuple[Callable[[], web.Response | str], str, int | None]] = {
    "a web page": (page, "answers with a web page", None),
    "401": (error(401), "refuses the key in .* .HTTP 401", None),
    "402": (error(402), "is out of credit", None),
    "403": (error(403), "refuses the key in .* .HTTP 403", None),
    "404": (error(404), "knows no model", None),
    "400": (error(400), "HTTP 400: .*the cause", 1),
    "429": (error(429, **{"Retry-After": "0"}), "HTTP 429: .*the cause", 1 + RETRIES),
    "429 for hours": (error(429, **{"Retry-After": "7200"}), "asks to wait 7200 s", None),
    "500": (error(500), "HTTP 500: .*the cause", 1 + RETRIES),
    "no completion": (junk, "no chat completion", 1 + RETRIES),
}


def address(endpoint: FakeEndpoint, key: str) -> dict[str, Any]:
    base_url = f"http://127.0.0.1:{endpoint.port}/v1"
    return {"base_url": base_url, "api_key_env": key, "max_retries": RETRIES, "concurrency": AT_ONCE}


def evaluation(tmp_path: Path, endpoint: FakeEndpoint) -> EvaluateConfig:
    models = {"m": {"path": "m", "endpoint": address(endpoint, "ATLAS_WORKERS_KEY")}}
    return EvaluateConfig.model_validate({"run": str(tmp_path / "run"), "models": models, "tasks": {"maze": UNITS}})


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_ray.models.client.back_off", lambda _: 0.0)


@pytest.mark.parametrize("mode", MODES)
def test_a_selection_from_an_endpoint_that_fails_from_the_start(
    mode: str, tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    answer, words, each = MODES[mode]
    endpoint.answer = lambda *_: answer()
    config = ask(tmp_path, endpoint.port, trajectories=UNITS, max_cost=0.5, endpoint=address(endpoint, "FAKE_KEY"))
    with pytest.raises(AtlasError, match=words):
        chosen(config)
    assert len(endpoint.calls) <= (each * IN_FLIGHT if each else 1)
    assert RunFolder(config.run).read(REPLIES) == []  # nothing was answered, and nothing is paid for


@pytest.mark.parametrize("text", ["I am a teapot.", ""])
def test_a_selection_from_an_endpoint_that_babbles(text: str, tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda *_: text
    config = ask(tmp_path, endpoint.port, trajectories=UNITS, max_cost=0.5, endpoint=address(endpoint, "FAKE_KEY"))
    with pytest.raises(AtlasError, match="32 judgements in a row failed; the first: unusable answer"):
        chosen(config)
    assert len(endpoint.calls) <= 2 * IN_FLIGHT
    paid = sum(reply.usage.cost for reply in RunFolder(config.run).read(REPLIES))
    assert paid == pytest.approx(0.0035 * len(endpoint.calls))
    assert paid <= 0.5


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", MODES)
def test_an_evaluation_behind_an_endpoint_that_fails_from_the_start(
    mode: str, tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    answer, words, each = MODES[mode]
    endpoint.answer = lambda *_: answer()
    config = evaluation(tmp_path, endpoint)
    with pytest.raises(AtlasError, match=words):
        evaluate(config)
    assert len(endpoint.calls) == (each or 1)  # it is asked for one token before episodes begin
    assert failures(config)["m"]


LATE = {name: MODES[name] for name in ("401", "402", "400", "500")}
GOOD_CALLS = 6


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("mode", [*LATE, "gone"])
def test_an_evaluation_behind_an_endpoint_that_fails_on_the_way(
    mode: str, tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    answer, words, each = LATE.get(mode, (None, "cannot reach the endpoint .*: .*(Connect|refused)", None))

    gone: list[bool] = []

    def late(_: dict[str, Any], __: int) -> web.Response | str:
        if len(endpoint.calls) <= GOOD_CALLS:
            return "Action: move up"
        if answer is not None:
            return answer()
        if not gone:  # it listens no longer, and closes what is open
            gone.append(True)
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(endpoint._runner.cleanup()))
        last = completion("Action: move up")
        last.force_close()
        return last

    endpoint.answer = late
    config = evaluation(tmp_path, endpoint)
    with pytest.raises(AtlasError, match=words):
        evaluate(config)
    assert len(endpoint.calls) <= GOOD_CALLS + (each * IN_FLIGHT if each else 2 * AT_ONCE)
    assert failures(config)["m"]
    if mode != "gone":
        endpoint.answer = lambda *_: "Action: move up"
        assert [result.n for result in evaluate(config)["m"]] == [UNITS]  # what was played is kept
        assert failures(config) == {}
