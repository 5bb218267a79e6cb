"""Questions to engines of our own, on real actors: routing, deaths, limits; a model that sleeps stands in for vLLM."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from atlas_ray.errors import AtlasError, ContextOverflow, ModelFailure, UserError
from atlas_ray.models.client import Completion
from atlas_ray.models.protocol import Reply, Sampling
from atlas_ray.models.request import CompletionRequest
from atlas_ray.rollouts.retry_queue import MAX_DEATHS
from atlas_ray.selection.llm.backends.vllm import EngineBackend
from atlas_ray.types import Message, Usage

pytestmark = pytest.mark.usefixtures("ray_cluster")


@dataclass(frozen=True)
class Echo:
    """Answers with what it was asked and who answers; certain words make trouble. `notes` counts who was asked."""

    notes: str = ""
    seconds: float = 0.01
    gpus: int = 0
    start: str = "well"
    dead: bool = False

    async def build(self) -> Echo:
        if self.start == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.start == "refuse":
            raise UserError("no such model", "name another")
        return self

    async def answer(
        self, messages: Sequence[Message], sampling: Sampling, seed: int, schema: Mapping[str, Any] | None = None
    ) -> Reply:
        text = messages[-1].content
        await asyncio.sleep(self.seconds)
        if self.notes:
            with Path(self.notes, text).open("a") as note:
                note.write(f"{os.getpid()}\n")
        if text == "poison" or (text == "die once" and len(Path(self.notes, text).read_text().splitlines()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "long":
            raise ContextOverflow("9000 tokens fill the context of 4096")
        if text == "odd":
            raise ZeroDivisionError("odd")
        made = {"text": text, "pid": os.getpid(), "seed": seed, "schema": schema, "max": sampling.max_tokens}
        return Reply(json.dumps(made), Usage(3, 2, 1, 1), "length" if text == "cut" else "stop")

    async def close(self) -> None: ...


def request(text: str, **given: Any) -> CompletionRequest:
    return CompletionRequest([{"role": "user", "content": text}], 0.0, 16, **given)


async def ask_all(backend: EngineBackend, texts: Sequence[str]) -> dict[str, Completion | BaseException]:
    try:
        found = await asyncio.gather(*(backend.complete(request(t)) for t in texts), return_exceptions=True)
    finally:
        await backend.close()
    return dict(zip(texts, found, strict=True))


def said(found: Any) -> dict[str, Any]:
    assert isinstance(found, Completion), found
    return dict(json.loads(found.text))


async def test_requests_spread_over_replicas_and_arrive_whole(tmp_path: Path) -> None:
    backend = EngineBackend(Echo(str(tmp_path)), replicas=2, in_flight=4)
    texts = [f"q{i}" for i in range(40)]
    whole = asyncio.create_task(backend.complete(request("schema", seed=7, schema={"type": "object"})))
    early = set[int]()
    while len(early) < 2:  # until both replicas have started
        early |= {said(c)["pid"] for c in await asyncio.gather(*(backend.complete(request("early")) for _ in range(8)))}
    found = await asyncio.gather(*(backend.complete(request(t)) for t in texts))
    assert [said(c)["text"] for c in found] == texts
    assert len({said(c)["pid"] for c in found}) == 2
    assert all(len((tmp_path / t).read_text().splitlines()) == 1 for t in texts)
    given = said(await whole)
    assert (given["seed"], given["schema"], given["max"]) == (7, {"type": "object"}, 16)
    cut = await backend.complete(request("cut"))
    assert (cut.finish, cut.usage) == ("length", Usage(3, 2, 1, 1))
    with pytest.raises(ModelFailure, match="does not fit: 9000 tokens fill the context of 4096"):
        await backend.complete(request("long"))
    with pytest.raises(ModelFailure, match="ZeroDivisionError: odd"):
        await backend.complete(request("odd"))
    assert said(await backend.complete(request("still here")))["text"] == "still here"
    await backend.close()


async def test_a_dead_replica_is_replaced_and_its_requests_are_asked_again(tmp_path: Path) -> None:
    texts = ["die once", *(f"q{i}" for i in range(12))]
    found = await ask_all(EngineBackend(Echo(str(tmp_path), seconds=0.05), in_flight=16), texts)
    assert [said(found[t])["text"] for t in texts] == texts
    assert len((tmp_path / "die once").read_text().splitlines()) == 2


async def test_a_request_that_kills_replicas_is_given_up_and_takes_no_other_with_it(tmp_path: Path) -> None:
    texts = ["poison", *(f"q{i}" for i in range(6))]
    found = await ask_all(EngineBackend(Echo(str(tmp_path)), replicas=2, in_flight=8), texts)
    poison = found.pop("poison")
    assert isinstance(poison, ModelFailure)
    assert f"{MAX_DEATHS} engines died" in poison.what
    assert {said(c)["text"] for c in found.values()} == set(texts[1:])


@pytest.mark.parametrize(
    ("start", "kind", "words"), [("die", AtlasError, "engines died in a row"), ("refuse", UserError, "no such model")]
)
async def test_engines_that_do_not_start_end_the_run_for_all(start: str, kind: type, words: str) -> None:
    found = await ask_all(EngineBackend(Echo(start=start)), ["a", "b", "c"])
    for error in found.values():
        assert type(error) is kind
        assert words in str(error)


async def test_nothing_starts_before_the_first_request() -> None:
    backend = EngineBackend(Echo(start="refuse"), address="here")
    assert backend.address == "here"
    await backend.close()
