"""OpenAI's Batch API as a backend: gathering, collecting, failures, limits, and runs that are killed in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.config import RayConfig, validate
from atlas_ray.errors import AtlasError, ModelFailure, UserError
from atlas_ray.models.client import Completion, SchemaRefusal
from atlas_ray.models.request import CompletionRequest
from atlas_ray.runs.folder import RunFolder
from atlas_ray.selection.llm.backends.batch import MAX_BATCHES, BatchBackend
from atlas_ray.selection.llm.backends.protocol import Backend
from atlas_ray.selection.llm.backends.submissions import BATCHES, MOST_BATCHED, Submission
from atlas_ray.selection.llm.coordinator import Coordinator
from atlas_ray.selection.llm.estimate import estimate
from atlas_ray.selection.llm.journal import REPLIES
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.prompt import load_prompt
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.llm.stage import LlmStage, backend_of
from atlas_ray.selection.pipeline import select_steps
from atlas_ray.types import Usage
from tests.selection.llm.test_llm_answers import GOOD
from tests.selection.test_selection import expert
from tests.support.batches import FakeBatches
from tests.support.fake_endpoint import LocalLink, ask
from tests.support.selecting import context_of
from tests.support.serving import running


def echo(body: dict[str, Any]) -> str | int:
    """The request itself; "fails with N" fails with HTTP status N."""
    text = str(body["messages"][-1]["content"])
    return int(text.rsplit(" ", 1)[1]) if text.startswith("fails") else f"re: {text}"


def request(text: str, **given: Any) -> CompletionRequest:
    return CompletionRequest([{"role": "user", "content": text}], 0.0, 16, **given)


@contextlib.asynccontextmanager
async def backend(fake: FakeBatches, folder: Path, **given: Any) -> AsyncIterator[BatchBackend]:
    async with running(fake.app) as address, reopened(address, folder, **given) as opened:
        yield opened


@contextlib.asynccontextmanager
async def reopened(address: str, folder: Path, **given: Any) -> AsyncIterator[BatchBackend]:
    endpoint = {"base_url": f"{address}/v1", "max_retries": 2}
    config = LlmSelector.model_validate({"mode": "batch", "endpoint": endpoint, "structured": "text"})
    made = BatchBackend(config, RunFolder(str(folder)), window_s=0.05, poll_s=(0.01, 0.02), **given)
    try:
        yield made
    finally:
        await made.close()


async def ask_all(backend: Backend, *texts: str) -> list[Completion | BaseException]:
    return await asyncio.gather(*(backend.complete(request(t)) for t in texts), return_exceptions=True)


def texts(found: list[Completion | BaseException]) -> list[str]:
    return [c.text if isinstance(c, Completion) else repr(c) for c in found]


async def test_requests_that_come_together_travel_together_at_half_the_price(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    async with backend(fake, tmp_path) as opened:
        found = await ask_all(opened, "a", "b", "c", "a")
        assert texts(found) == ["re: a", "re: b", "re: c", "re: a"]
        assert len(fake.batches) == 1
        assert set(fake.asked.values()) == {1}
        assert isinstance(found[0], Completion)
        assert isinstance(found[3], Completion)
        assert found[3].usage == Usage()
        # gpt-4o, whose cache saves nothing in a batch
        assert found[0].usage == Usage(1000, 400, 100, 1, pytest.approx((1000 * 2.5e-6 + 100 * 1e-5) / 2))
        assert texts(await ask_all(opened, "a", "d")) == ["re: a", "re: d"]
        assert [len(fake._lines(b["input_file_id"])) for b in fake.batches] == [3, 1]
    line = fake._lines(fake.batches[0]["input_file_id"])[0]
    assert (line["method"], line["url"]) == ("POST", "/v1/chat/completions")
    assert (line["body"]["model"], line["body"]["max_tokens"]) == ("gpt-4o-2024-08-06", 16)


async def test_a_full_batch_goes_out_at_once(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    async with backend(fake, tmp_path, max_requests=4) as opened:
        names = [f"q{i}" for i in range(10)]
        assert texts(await ask_all(opened, *names)) == [f"re: {n}" for n in names]
    assert sorted(len(fake._lines(b["input_file_id"])) for b in fake.batches) == [2, 4, 4]


async def test_failed_requests_are_told_from_those_to_be_asked_again(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    async with backend(fake, tmp_path) as opened:
        good, refused, broken = await ask_all(opened, "a", "fails with 400", "fails with 503")
        assert isinstance(good, Completion)
        assert isinstance(refused, ModelFailure)
        assert "HTTP 400: failed with 400" in refused.what
        assert isinstance(broken, ModelFailure)
        assert "HTTP 503" in broken.what
        assert fake.asked == {"a": 1, "fails with 400": 1, "fails with 503": MAX_BATCHES}
        fake.answer = lambda body: 400
        assert isinstance((await ask_all(opened, "b"))[0], ModelFailure)


async def test_a_refused_schema_is_said_so(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    fake.answer = lambda body: 422 if "response_format" in body else "text"
    fake.words = "response_format is not supported"
    async with backend(fake, tmp_path) as opened:
        with pytest.raises(SchemaRefusal):
            await opened.complete(request("a", schema={"type": "object"}))
        assert (await opened.complete(request("a"))).text == "text"


async def test_what_expired_goes_into_another_batch(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    fake.ends = ["expired:2"]
    async with backend(fake, tmp_path) as opened:
        assert texts(await ask_all(opened, "a", "b", "c", "d")) == ["re: a", "re: b", "re: c", "re: d"]
    assert fake.asked == {"a": 1, "b": 1, "c": 2, "d": 2}
    fake.ends = ["expired:0"] * MAX_BATCHES
    async with backend(fake, tmp_path) as opened:
        (found,) = await ask_all(opened, "e")
        assert isinstance(found, ModelFailure)
        assert "expired" in found.what


@pytest.mark.parametrize(("end", "words"), [("cancelled:1", "was cancelled"), ("failed", "no model of that name")])
async def test_a_cancelled_or_refused_batch_stops_the_run_and_keeps_its_replies(
    tmp_path: Path, end: str, words: str
) -> None:
    fake = FakeBatches(echo)
    fake.ends = [end]
    if end.startswith("cancelled"):
        fake._end = _cut_short(fake)  # type: ignore[method-assign]
    async with running(fake.app) as address:
        async with reopened(address, tmp_path) as opened:
            first, second = await ask_all(opened, "a", "b")
        assert type(second) is AtlasError
        assert words in second.what
        if end.startswith("cancelled"):
            assert texts([first]) == ["re: a"]
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "a", "b")) == ["re: a", "re: b"]
    assert fake.asked == ({"a": 1, "b": 2} if end.startswith("cancelled") else {"a": 2, "b": 2})


def _cut_short(fake: FakeBatches) -> Any:
    """A cancelled batch's unanswered requests stand in no file."""
    whole = fake._end

    def end(batch: dict[str, Any]) -> None:
        whole(batch)
        if batch["status"] == "cancelled":
            batch["error_file_id"] = None

    return end


async def test_a_limit_of_queued_tokens_makes_batches_small_and_patient(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    fake.limit = 3
    async with backend(fake, tmp_path) as opened:
        names = [f"q{i}" for i in range(10)]
        assert texts(await ask_all(opened, *names)) == [f"re: {n}" for n in names]
        assert set(fake.asked.values()) == {1}
        fake.limit = 0
        (stuck,) = await ask_all(opened, "one more")
        assert type(stuck) is AtlasError
        assert "Enqueued token limit" in stuck.what


async def test_a_killed_run_is_taken_up_and_pays_nothing_twice(tmp_path: Path) -> None:
    fake = FakeBatches(echo, looks=10**9)
    async with running(fake.app) as address:
        async with reopened(address, tmp_path) as killed:
            waiting = asyncio.create_task(ask_all(killed, "a", "b"))
            while not fake.seen:
                await asyncio.sleep(0.01)
            # Nothing but the folder is left of it: no clean-up writes anything.
            waiting.cancel()
        fake.looks = 1
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "b", "c", "a")) == ["re: b", "re: c", "re: a"]
        # Even replies that were collected, and lost before they were used.
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "a", "b", "c")) == ["re: a", "re: b", "re: c"]
    assert fake.asked == {"a": 1, "b": 1, "c": 1}


async def test_a_run_killed_before_it_learnt_the_batchs_name_finds_it(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    async with running(fake.app) as address:
        async with reopened(address, tmp_path) as killed:
            record = killed._record

            async def first_record_only(submission: Any) -> None:
                if submission.batch_id:
                    raise asyncio.CancelledError
                await record(submission)

            killed._record = first_record_only  # type: ignore[method-assign]
            with contextlib.suppress(asyncio.CancelledError):
                await killed.complete(request("a"))
        assert [s.batch_id for s in RunFolder(str(tmp_path)).read(BATCHES)] == [""]
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "a")) == ["re: a"]
        assert [s.batch_id for s in RunFolder(str(tmp_path)).read(BATCHES)] == ["batch_0"]
        # Nor does an answer that got lost make a second batch.
        fake.lost = 1
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "b")) == ["re: b"]
    assert fake.asked == {"a": 1, "b": 1}


async def test_what_never_reached_the_endpoint_or_is_gone_there_is_submitted_anew(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    async with running(fake.app) as address:
        async with reopened(address, tmp_path) as opened:
            await ask_all(opened, "a", "b")
        fake.batches.clear()
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "a")) == ["re: a"]
        folder = RunFolder(str(tmp_path))
        (last,) = [s for s in folder.read(BATCHES) if len(s.questions) == 1]
        folder.write_shard(BATCHES, [type(last)("another", "", last.created + 1, last.questions)])
        async with reopened(address, tmp_path) as opened:
            assert texts(await ask_all(opened, "a")) == ["re: a"]
    assert fake.asked == {"a": 3, "b": 1}


async def test_an_endpoint_without_batches_says_so(tmp_path: Path) -> None:
    fake = FakeBatches(echo)
    fake.app = type(fake.app)()
    async with backend(fake, tmp_path) as opened:
        (found,) = await ask_all(opened, "a")
    assert isinstance(found, UserError)
    assert "has no Batch API" in found.what


async def test_the_judge_in_batches_and_repairs_in_one_more(tmp_path: Path) -> None:
    fake = FakeBatches(lambda body: GOOD if len(body["messages"]) > 2 else "no idea")
    async with running(fake.app) as address:
        config = LlmSelector.model_validate(
            {"mode": "batch", "structured": "text", "max_cost": 1.0, "endpoint": {"base_url": f"{address}/v1"}}
        )
        folder = RunFolder(str(tmp_path))
        link = LocalLink(Coordinator(config, folder))
        assert isinstance(backend_of(config, folder, RayConfig(), link, "none"), BatchBackend)
        async with reopened(address, tmp_path) as opened:
            judge = Judge(config, opened, link, seed=0)
            found = await judge.judge_all([expert(10 + i, i) for i in range(4)])
    assert [s.chosen for s in found] == [(2, 7)] * 4
    assert [len(fake._lines(b["input_file_id"])) for b in fake.batches] == [4, 4]
    paid = sum(reply.usage.cost for reply in folder.read(REPLIES))
    assert paid == pytest.approx(8 * (1000 * 2.5e-6 + 100 * 1e-5) / 2)
    assert paid == pytest.approx(sum(s.usage.cost for s in found))


def test_the_estimate_knows_what_batches_and_own_engines_cost() -> None:
    data = [expert(10 + i, i) for i in range(4)]
    live, batch = (estimate(data, LlmSelector.model_validate({"mode": mode})) for mode in ("live", "batch"))
    assert live.dollars is not None
    assert batch.dollars == pytest.approx(live.dollars / 2)
    assert estimate(data, LlmSelector.model_validate({"model": "my-model", "engine": {}})).dollars == 0
    with pytest.raises(UserError, match="leave it out beside engine"):
        validate(LlmSelector, {"mode": "batch", "engine": {}})


@pytest.mark.usefixtures("ray_cluster")
def test_a_clean_start_keeps_what_batches_are_paid_for(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    folder.write_shard(BATCHES, [Submission("ours", "theirs", 1.0, ("a", "b"))])
    config = ask(tmp_path, 1, mode="batch")
    with pytest.raises(AtlasError, match="cannot reach the endpoint"):
        select_steps(config, clean=True)
    assert folder.read(BATCHES) == [Submission("ours", "theirs", 1.0, ("a", "b"))]


def test_blocks_of_large_data_do_not_wait_for_the_batch_of_an_earlier_one(tmp_path: Path) -> None:
    stage = LlmStage(LlmSelector.model_validate({"mode": "batch"}), context_of([expert(4, 0)], str(tmp_path)))
    assert stage._blocks > 1
    assert stage._blocks * stage.rows_per_block >= MOST_BATCHED  # and still fill one


def test_workers_read_the_files_that_the_command_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "prompt.txt").write_text("Critical steps in {{ conversation }}?")
    monkeypatch.chdir(tmp_path)
    config = LlmSelector.model_validate({"prompt_file": "prompt.txt", "cache": "cache"})
    stage = LlmStage(config, context_of([expert(4, 0)], str(tmp_path / "run")))
    monkeypatch.chdir("elsewhere")
    given = stage._config
    assert load_prompt(given.prompt_file).hash != load_prompt(None).hash
    assert given.cache == str(tmp_path / "cache")
