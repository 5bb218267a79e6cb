"""`max_cost` holds whatever replies say of their tokens: nothing, zero, or more than can be."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from atlas_ray.errors import AtlasError, ModelFailure
from atlas_ray.models.client import ChatClient, Completion, TransientError
from atlas_ray.models.request import CompletionRequest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm import journal
from atlas_ray.selection.llm.coordinator import Coordinator, SpentError
from atlas_ray.selection.llm.journal import REPLIES
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.types import Usage
from tests.selection.llm.test_llm_answers import GOOD
from tests.selection.test_selection import expert
from tests.support.fake_endpoint import FakeEndpoint, LocalLink, ask, chosen

SET_ASIDE = 0.013  # US dollars that a call may cost, by our count of its prompt and at its longest


def body(usage: Any, text: Any = GOOD) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}, "finish_reason": "stop"}], "usage": usage}


def cost_of(folder: RunFolder) -> float:
    return sum(reply.usage.cost for reply in folder.read(REPLIES))


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": "many", "completion_tokens": -1},
        {"prompt_tokens": 1.5, "completion_tokens": 10**30},
    ],
)
def test_a_reply_that_tells_no_tokens_counts_by_the_estimate(
    tmp_path: Path, endpoint: FakeEndpoint, usage: Any
) -> None:
    endpoint.answer = lambda *_: web.json_response(body(usage))
    config = ask(tmp_path, endpoint.port, trajectories=4, max_cost=1.0)
    found = chosen(config)
    assert all(one.chosen == (2, 7) for one in found.values())
    assert len(endpoint.calls) == 4
    assert all(0.001 < one.usage.cost < SET_ASIDE for one in found.values())
    assert cost_of(RunFolder(config.run)) == pytest.approx(sum(one.usage.cost for one in found.values()))


def test_replies_without_usage_end_the_run_at_its_limit(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda *_: web.json_response(body(None))
    config = ask(tmp_path, endpoint.port, trajectories=42, max_cost=0.05)
    with pytest.raises(SpentError, match=r"one more call could exceed max_cost=0\.05"):
        chosen(config)
    assert 0 < cost_of(RunFolder(config.run)) <= 0.05
    assert len(endpoint.calls) < 42


def test_the_first_reply_that_reports_more_than_can_be_stops_further_calls_and_is_told(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    endpoint.answer = lambda *_: web.json_response(body({"prompt_tokens": 60_000, "completion_tokens": 100}))
    config = ask(tmp_path, endpoint.port, trajectories=42, max_cost=0.5)
    with pytest.raises(
        SpentError, match=r"the endpoint reports \$0\.151\d for replies that can have cost about \$0\.00"
    ):
        chosen(config)
    assert len(endpoint.calls) == 1  # the first call goes out alone
    assert cost_of(RunFolder(config.run)) < SET_ASIDE


def test_a_reply_that_reports_somewhat_more_is_believed_and_the_excess_told(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    endpoint.answer = lambda *_: web.json_response(body({"prompt_tokens": 4_000, "completion_tokens": 1000}))
    config = ask(tmp_path, endpoint.port, trajectories=1, max_cost=0.0195)
    with pytest.raises(SpentError, match=r"\$0\.0200 are spent, more than max_cost=0\.0195"):
        chosen(config)
    assert chosen(config)["maze_0"].chosen == (2, 7)  # the reply was paid for, and is read
    assert len(endpoint.calls) == 1


def test_what_a_cache_saves_is_no_more_than_the_prompt() -> None:
    assert Usage.reported(10, 10**6, 5) == Usage(10, 10, 5, 1)


@pytest.mark.parametrize("answer", [GOOD.replace("2", "99"), "I am a teapot.", ""])
def test_replies_that_the_parser_refuses_cost_what_they_cost(
    tmp_path: Path, endpoint: FakeEndpoint, answer: str
) -> None:
    endpoint.answer = lambda *_: answer
    config = ask(tmp_path, endpoint.port, trajectories=2, max_cost=1.0)
    found = chosen(config)
    assert len(endpoint.calls) == 4  # each is asked to repair its answer
    assert sum(one.usage.cost for one in found.values()) == pytest.approx(4 * 0.0035)
    assert cost_of(RunFolder(config.run)) == pytest.approx(4 * 0.0035)


def test_what_is_no_completion_and_reports_tokens_is_paid_for_and_not_asked_again_in_the_run(
    tmp_path: Path, endpoint: FakeEndpoint
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    endpoint.answer = lambda *_: web.json_response({"choices": [], "usage": usage})
    config = ask(tmp_path, endpoint.port, trajectories=3, max_cost=1.0)
    found = chosen(config)
    assert len(endpoint.calls) == 3
    assert all("no chat completion" in (one.error or "") for one in found.values())
    assert sum(one.usage.cost for one in found.values()) == pytest.approx(3 * 0.0035)
    assert cost_of(RunFolder(config.run)) == pytest.approx(3 * 0.0035)
    endpoint.answer = lambda *_: GOOD
    assert not any(one.error for one in chosen(config).values())
    assert cost_of(RunFolder(config.run)) == pytest.approx(6 * 0.0035)


def test_an_account_out_of_credit_stops_the_run_at_once(tmp_path: Path, endpoint: FakeEndpoint) -> None:
    endpoint.answer = lambda *_: web.json_response({"error": {"message": "Insufficient credits"}}, status=402)
    with pytest.raises(AtlasError, match="the account behind FAKE_KEY is out of credit"):
        chosen(ask(tmp_path, endpoint.port, trajectories=42))
    assert len(endpoint.calls) == 1


class Wild:
    """A backend whose replies report whatever they like."""

    def __init__(self, config: LlmSelector, draw: random.Random) -> None:
        self._client, self._draw = ChatClient(config.model, config.endpoint, price=config.price), draw
        self.address, self.given = "wild", 0

    async def complete(self, request: CompletionRequest) -> Completion:
        await asyncio.sleep(self._draw.random() / 1000)  # so that replies come in any order
        self.given += 1
        wild = self._draw.random() < 0.03
        tokens = [60_000, 10**9] if wild else [0, 1, 900, 4_000, -3, "many", None, 10**30]
        usage: Any = {"prompt_tokens": self._draw.choice(tokens), "completion_tokens": self._draw.choice(tokens)}
        usage["prompt_tokens_details"] = {"cached_tokens": self._draw.choice(tokens)}
        usage = self._draw.choice([None, usage, usage, usage])
        text = self._draw.choice([GOOD, GOOD, "I am a teapot.", None, 7])
        try:
            return self._client.completion(body(usage, text))
        except TransientError as error:
            raise ModelFailure(error.what) from None

    async def close(self) -> None: ...


async def test_a_thousand_replies_stay_within_the_limit_and_one_reservation_a_call_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selections are begun anew until there is no money left, and others with another limit until there are enough."""
    monkeypatch.setattr(journal, "_GATHER_SECONDS", 0.0)
    draw, at_once, given = random.Random(7), 4, 0
    trajectories = [expert(10, i) for i in range(20)]
    while given < 1000:
        limit, folder = draw.uniform(0.05, 0.3), RunFolder(str(tmp_path / f"{given}"))
        section = {"max_cost": limit, "endpoint": {"concurrency": at_once // 2}}
        config = LlmSelector.model_validate(section)
        told, backend = "", Wild(config, draw)
        # a reservation falls short of a long reply: then more than the limit is spent, and a new beginning says so
        while "one more call could exceed" not in told and "more than max_cost" not in told:
            judge = Judge(config, backend, LocalLink(Coordinator(config, folder)), 0)  # type: ignore[arg-type]
            try:
                await judge.judge_all(trajectories)
                break
            except SpentError as error:
                told += error.what
        spent, given = cost_of(folder), given + backend.given
        assert 0 < spent <= limit + at_once * SET_ASIDE
        assert spent <= limit or told
