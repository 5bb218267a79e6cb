"""An OpenAI-compatible server on loopback that answers as a test says, and a selection that asks it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from atlas_ray.models.client import key_of
from atlas_ray.runs.folder import RunFolder
from atlas_ray.runs.tables import SELECTIONS
from atlas_ray.selection.llm.coordinator import Coordinator
from atlas_ray.selection.llm.judge import Judge
from atlas_ray.selection.llm.selector import LlmSelector
from atlas_ray.selection.llm.stage import backend_of
from atlas_ray.selection.settings import SelectConfig
from atlas_ray.selection.sources import watch_sources
from atlas_ray.trajectories.readers import read_trajectories
from atlas_ray.types import Selection, Trajectory
from tests.selection.llm.test_llm_answers import GOOD
from tests.selection.test_selection import config_of, data_in, expert


class LocalLink:
    """A `Link` to a coordinator in its own process and event loop."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        coordinator.admit("here", "here")

    async def ask(self, name: str, *arguments: Any) -> Any:
        """Calls one of the coordinator's methods and waits for the answer, or raises what the method does."""
        return await getattr(self._coordinator, name)("here", *arguments)

    def tell(self, name: str, *arguments: Any) -> None:
        """The same, where no answer is wanted."""
        getattr(self._coordinator, name)("here", *arguments)


Answer = Callable[[dict[str, Any], int], "web.Response | str"]


class FakeEndpoint:
    """An OpenAI-compatible server on loopback; `answer(body, call number of this conversation)` decides."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body, call: GOOD
        self.seconds = 0.0
        self.calls: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.active = self.peak = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner, self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls.append(body)
        self.keys.add(request.headers["Authorization"])
        call = sum(c["messages"] == body["messages"] for c in self.calls)
        self.active += 1
        self.peak = max(self.peak, self.active)
        await asyncio.sleep(self.seconds)
        self.active -= 1
        answer = self.answer(body, call)
        if isinstance(answer, web.Response):
            return answer
        message = {"role": "assistant", "content": answer}
        return web.json_response(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
            }
        )

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def ask(tmp_path: Path, port: int, trajectories: int = 4, retries: int = 2, **section: Any) -> SelectConfig:
    data = {"path": str(tmp_path / "data")}
    if not (tmp_path / "data").exists():
        data_in(tmp_path / "data", [expert(10, i) for i in range(trajectories)])
    address = {"base_url": f"http://127.0.0.1:{port}/v1", "api_key_env": "FAKE_KEY", "max_retries": retries}
    return config_of(
        tmp_path / "run", data, {"name": "llm", "endpoint": address | section.pop("endpoint", {}), **section}
    )


def chosen(config: SelectConfig) -> dict[str, Selection]:
    """Selections of what is to do, by a judge in this process, beside those that the run folder holds."""
    folder = RunFolder(config.run)
    folder.begin(config, stage="select")
    watch_sources(folder, config.selector, config.run)
    trajectories, done = read_trajectories(config.data, []), folder.done(SELECTIONS)
    todo = [t for t in trajectories if t.id not in done]
    if todo:
        folder.write_shard(SELECTIONS, asyncio.run(_judged(config, folder, todo)))
    return {s.item_id: s for s in folder.read(SELECTIONS)}


async def _judged(config: SelectConfig, folder: RunFolder, todo: list[Trajectory]) -> list[Selection]:
    selector = config.selector
    assert isinstance(selector, LlmSelector)
    key, coordinator = key_of(selector.endpoint), Coordinator(selector, folder)
    await coordinator.open(key)
    link = LocalLink(coordinator)
    backend = backend_of(selector, folder, config.ray, link, key)
    try:
        return await Judge(selector, backend, link, config.seed).judge_all(todo)
    finally:
        await backend.close()
